// Boots Debian's kernels under emulation and runs the tests that depend on a kernel in each: npm run test:vm -- [KERNEL…] [FILE…]
// Says of each kernel what runs there, what fell back and what was skipped; an unexpected skip fails.
// Closes with one line that counts: N passed, N failed, N skipped.
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { tapResults } from './tap-results.mjs'
import { boot } from '../vagrant/vm/machine.mjs'
import { initramfs, kernel, KERNELS } from '../vagrant/vm/kernels.mjs'

const DEFAULT = ['6.1', '6.12']
/** Seconds: a test file that takes longer hangs. */
const FILE_SECONDS = 900
const BOOT_SECONDS = 180
const DOCTOR_SECONDS = 120
const FILES = [
  'test/network/egress.test.ts', 'test/escapes/escapes.test.ts', 'test/evidence/lsm.test.ts', 'test/cell/cgroup.test.ts',
  'test/native/system.test.ts', 'test/integration/cell.test.ts', 'test/evidence/probes.test.ts', 'test/native/spawner.test.ts',
]
/** They look at the kernel, too, and run only where they are named. */
const SLOW = [
  'test/evidence/tls.test.ts', 'test/escapes/plus.test.ts', 'test/escapes/bombs.test.ts', 'test/escapes/neighbours.test.ts', 'test/escapes/races.test.ts',
  'test/integration/datagrams.test.ts', 'test/integration/life.test.ts', 'test/integration/limits.test.ts', 'test/integration/loop.test.ts', 'test/integration/profiles.test.ts',
  'test/integration/rootfs.test.ts', 'test/integration/take-back.test.ts', 'test/integration/unix-sockets.test.ts', 'test/integration/workspace-overlay.test.ts',
  'test/native/relay.test.ts', 'test/native/client.test.ts',
]
/** By kernel ('*': each): what its guest lacks, in the words of the test's own reason. */
const EXPECTED_SKIPS = { '*': [] }

const root = join(import.meta.dirname, '..')
const work = join(root, 'build/vm')
const say = text => { process.stdout.write(`${text}\n`) }
const refuse = text => { process.stderr.write(`test:vm: ${text}\n`); process.exit(2) }

const kernels = process.argv.slice(2).filter(each => each in KERNELS)
const files = process.argv.slice(2).filter(each => each.endsWith('.test.ts'))
const unknown = process.argv.slice(2).filter(each => !kernels.includes(each) && !files.includes(each))
if (unknown.length > 0) refuse(`"${unknown[0]}" is neither a kernel (${Object.keys(KERNELS).join(', ')}) nor a test file`)
if (process.getuid() !== 0) refuse('it needs root: the guest shows the host\'s files with their owners')

function must(command, args) {
  const { status, error, stdout, stderr } = spawnSync(command, args, { cwd: root, encoding: 'utf8' })
  if (error !== undefined || status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? (stderr || stdout).trim().slice(-2000)}`)
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, () => process.exit(130))

const began = Date.now()
const since = () => `${((Date.now() - began) / 1000).toFixed(0)} s`
const wanted = files.length > 0 ? files : FILES
const tests = readdirSync(join(root, 'test'), { recursive: true }).map(path => `test/${path}`).filter(path => path.endsWith('.test.ts')).sort()
for (const listed of [...FILES, ...SLOW, ...files]) if (!tests.includes(listed)) refuse(`there is no ${listed}`)
const left = tests.filter(file => !wanted.includes(file))
say(`run on each kernel: ${wanted.join(', ')}`)
say(`not run: they look at the kernel, too, and take too long under emulation: ${left.filter(file => SLOW.includes(file)).join(', ')}`)
say(`not run: they depend on nothing of the kernel that the list does not test: ${left.filter(file => !SLOW.includes(file)).join(', ')}`)

mkdirSync(work, { recursive: true })
say('compiling the tests')
must('node_modules/.bin/tsc', ['-p', 'tsconfig.vm.json'])

const total = { passed: 0, failed: 0, skipped: 0 }
// Each machine takes one processor of the host (machine.mjs).
await Promise.all((kernels.length > 0 ? kernels : DEFAULT).map(name => testOn(name).catch(error => {
  total.failed++
  say(`${name}  FAILED nothing could be tested on this kernel: ${error.message}`)
})))
say(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`)
process.exitCode = total.failed === 0 ? 0 : 1

async function testOn(name) {
  const say = text => { process.stdout.write(`${text.replace(/^/gm, `${name}  `)}\n`) }
  const own = kernel(name, join(work, 'kernels'))
  say(`Linux ${own.release} (${since()})`)
  const folder = join(work, `run-${name}`)
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder)
  const job = join(folder, 'job.json')
  // Emulation is ten times slower than the machine: time limits within tests are longer there.
  writeFileSync(job, JSON.stringify({ doctorSeconds: DOCTOR_SECONDS, files: wanted.map(file => ({ file, seconds: FILE_SECONDS })), environment: { TAP_TIMEOUT: String(FILE_SECONDS), AMBIT_VM: name } }))
  const disk = join(folder, 'disk.img')
  must('truncate', ['-s', '4G', disk])
  must('mkfs.ext4', ['-q', '-F', disk])
  const image = initramfs(own, join(folder, 'initramfs'), `/bin/sh ${join(root, 'vagrant/vm/guest.sh')} ${root} ${job}`, '/bin/busybox')

  const results = new Map()
  const seen = { up: false, done: false, running: null }
  const { status, late, console } = await boot({
    image: own.image, initramfs: image, disk, folder, seconds: BOOT_SECONDS + DOCTOR_SECONDS + wanted.length * FILE_SECONDS,
    onMessage(message) {
      switch (message.type) {
        case 'up':
          seen.up = true
          say(`up after ${message.seconds.toFixed(0)} s; LSMs ${message.lsm}`)
          break
        case 'doctor':
          examined(say, message)
          break
        case 'begin':
          seen.running = message.file
          results.set(message.file, { ...tapResults([...EXPECTED_SKIPS['*'], ...(EXPECTED_SKIPS[name] ?? [])]), raw: '' })
          break
        case 'stdout': results.get(message.file).parser.write(message.text)
        // falls through
        case 'stderr': {
          const result = results.get(message.file)
          result.raw = (result.raw + message.text).slice(-20_000)
          break
        }
        case 'end':
          seen.running = null
          conclude(say, message, results.get(message.file))
          break
        case 'done': seen.done = true
      }
    },
  })
  rmSync(disk)
  if (!seen.done) {
    total.failed++
    say(`FAILED the machine ended (${late ? 'it was taking too long' : status})${seen.running === null ? '' : ` in ${seen.running}`}${seen.up ? '' : ' before it was up'}`)
    say(console)
  }
}

/** What `ambit doctor` says of the kernel: what is on, what fell back, what is missing. A host on which it cannot say is a failure. */
function examined(say, { text, error }) {
  let checks
  try {
    ({ checks } = JSON.parse(text))
  } catch {
    total.failed++
    say(`FAILED ambit doctor: ${error || 'it said nothing'}`)
    return
  }
  const whole = checks.filter(({ state }) => state === 'ok')
  say(`ambit doctor: ${whole.length} as they should be: ${whole.map(({ name }) => name).join(', ')}`)
  for (const { name, state, found } of checks.filter(each => !whole.includes(each))) say(`  ${state}: ${name}: ${found}`)
}

function conclude(say, { file, status, hung, seconds }, { parser, counts, failures, skips, comments, raw }) {
  parser.end()
  if (hung) failures.push(`${file}: it took more than ${FILE_SECONDS} s and was killed`)
  else if (status !== 0 && failures.length === 0) failures.push(`${file}: it ended with ${status}`)
  else if (counts.passed === 0) failures.push(`${file}: nothing was tested`)
  const failed = Math.max(counts.failed, failures.length)
  total.passed += counts.passed
  total.failed += failed
  total.skipped += counts.skipped
  say(`${failed === 0 ? 'ok' : 'NOT OK'} ${file}: ${counts.passed} passed, ${failed} failed, ${counts.skipped} skipped (${seconds.toFixed(0)} s)`)
  for (const skip of skips) say(`  skipped ${skip}`)
  // An attack that this kernel has no target for: bare, it says so, and in the cell it is refused all the same (test/escapes/asserted.ts).
  for (const comment of comments.filter(text => text.startsWith('bare: '))) say(`  absent here, ${comment}`)
  for (const failure of failures) say(`\nFAILED ${failure}`)
  if (failed > 0) say(`\n${raw.slice(-6000)}`)
}
