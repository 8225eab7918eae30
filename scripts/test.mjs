// Runs every test file under tap and closes with one line that counts: N passed, N failed, N skipped.
import { spawn } from 'node:child_process'
import { tapResults } from './tap-results.mjs'

const EXPECTED_SKIPS = []

const child = spawn('node_modules/.bin/tap', ['run', '--reporter=tap', ...process.argv.slice(2)], { stdio: ['ignore', 'pipe', 'inherit'] })
const { parser, counts, failures } = tapResults(EXPECTED_SKIPS, result => {
  const time = result.time === undefined ? '' : ` (${(result.time / 1000).toFixed(1)} s)`
  process.stdout.write(`${result.ok ? 'ok' : 'NOT OK'} ${result.name}${time}\n`)
})
let raw = ''
child.stdout.on('data', chunk => { raw = (raw + chunk).slice(-20_000) })
child.stdout.pipe(parser)
const [code] = await Promise.all([
  new Promise(resolve => child.once('exit', (status, signal) => resolve(status ?? signal))),
  new Promise(resolve => parser.once('complete', resolve)),
])
for (const failure of failures) process.stdout.write(`\nFAILED ${failure}\n`)
if (counts.passed + counts.failed === 0) { process.stdout.write(raw); counts.failed++ }
if (code !== 0 && counts.failed === 0) { process.stdout.write(raw); counts.failed++; process.stdout.write(`the test runner ended with ${code}\n`) }
process.stdout.write(`\n${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped\n`)
process.exitCode = counts.failed === 0 ? 0 : 1
