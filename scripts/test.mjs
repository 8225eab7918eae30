// Runs every test file under tap and closes with one line that counts: N passed, N failed, N skipped.
// A skip whose reason is not listed here is a failure: a test that quietly does not run proves nothing.
import { spawn } from 'node:child_process'
import { Parser } from 'tap-parser'

const EXPECTED_SKIPS = []

const child = spawn('node_modules/.bin/tap', ['run', '--reporter=tap', ...process.argv.slice(2)], { stdio: ['ignore', 'pipe', 'inherit'] })
const counts = { passed: 0, failed: 0, skipped: 0 }
const failures = []

function follow(parser, trail) {
  let children = 0
  parser.on('child', sub => { children++; follow(sub, [...trail, sub.name]) })
  parser.on('assert', result => {
    if (trail.length === 0) {
      const time = result.time === undefined ? '' : ` (${(result.time / 1000).toFixed(1)} s)`
      process.stdout.write(`${result.ok ? 'ok' : 'NOT OK'} ${result.name}${time}\n`)
    }
    // A subtest reports itself once more to its parent: only what has no children of its own counts.
    if (children > 0) { children--; return }
    if (result.skip) {
      counts.skipped++
      const reason = `${trail.join(' > ')} > ${result.name}: ${result.skip}`
      if (!EXPECTED_SKIPS.some(expected => reason.includes(expected))) { counts.failed++; failures.push(`unexpected skip: ${reason}`) }
    } else if (result.todo) {
      counts.failed++
      failures.push(`todo: ${trail.join(' > ')} > ${result.name}`)
    } else if (result.ok) counts.passed++
    else {
      counts.failed++
      failures.push(`${trail.join(' > ')} > ${result.name}\n${JSON.stringify(result.diag, null, 2)}`)
    }
  })
}

const parser = new Parser()
follow(parser, [])
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
