// The tests on this machine's kernel, then those on emulated ones; closes with one line that counts both: N passed, N failed, N skipped.
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

/** `minutes`: who takes longer hangs. */
const SUITES = [
  { script: 'test', files: [], minutes: 45 },
  // The hooks, which each kernel takes or refuses in its own way; the whole list is `npm run test:vm`.
  { script: 'test:vm', files: ['test/evidence/lsm.test.ts', 'test/evidence/probes.test.ts'], minutes: 20 },
]
/** Between being asked to end and being killed. */
const GRACE_MS = 10_000
const COUNT = /^(\d+) passed, (\d+) failed, (\d+) skipped$/

const total = { passed: 0, failed: 0, skipped: 0 }
for (const suite of SUITES) {
  const { passed, failed, skipped } = await countsOf(suite)
  process.stdout.write(`npm run ${suite.script}: passed ${passed}, failed ${failed}, skipped ${skipped}\n`)
  total.passed += passed
  total.failed += failed
  total.skipped += skipped
}
process.stdout.write(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped\n`)
process.exitCode = total.failed === 0 ? 0 : 1

/** Runs a suite to its end and hands on what it says, but for the line that counts. One that ends without that line, or badly, has failed. */
async function countsOf({ script, files, minutes }) {
  process.stdout.write(`== npm run ${script}\n`)
  // In a group of its own, so that what it started goes with it.
  const child = spawn('npm', ['run', '--silent', script, '--', ...files], { stdio: ['ignore', 'pipe', 'inherit'], detached: true })
  const end = signal => { try { process.kill(-child.pid, signal) } catch (error) { if (error.code !== 'ESRCH') throw error } }
  const stop = () => { end('SIGTERM'); process.exit(130) }
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, stop)
  let late = false
  const limits = [
    setTimeout(() => { late = true; end('SIGTERM') }, minutes * 60_000),
    setTimeout(() => { end('SIGKILL'); child.stdout.destroy() }, minutes * 60_000 + GRACE_MS),
  ]
  let counts
  createInterface({ input: child.stdout }).on('line', line => {
    const [, ...numbers] = COUNT.exec(line) ?? []
    if (numbers.length === 0) process.stdout.write(`${line}\n`)
    else counts = numbers.map(Number)
  })
  const status = await new Promise((resolve, reject) => child.once('error', reject).once('close', (code, signal) => resolve(signal ?? code)))
  for (const limit of limits) clearTimeout(limit)
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.removeListener(signal, stop)
  const [passed, failed, skipped] = counts ?? [0, 0, 0]
  if (late) process.stdout.write(`FAILED npm run ${script}: it took more than ${minutes} minutes and was ended\n`)
  else if (counts === undefined) process.stdout.write(`FAILED npm run ${script}: it ended with ${status} and counted nothing\n`)
  else if (status !== 0 && failed === 0) process.stdout.write(`FAILED npm run ${script}: it ended with ${status}\n`)
  return { passed, failed: failed === 0 && (late || status !== 0 || counts === undefined) ? 1 : failed, skipped }
}
