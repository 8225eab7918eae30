// Many cells of every kind at one daemon, and what is left of them: processes, namespaces, cgroups, mounts, eBPF programs, maps
// and links, descriptors, files. Nothing may be. The daemon's memory may not grow with the cells either.
import { spawn, spawnSync } from 'node:child_process'
import { mkdtempSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const root = join(import.meta.dirname, '..')
const client = join(root, 'build/Release/ambit-client')
const cells = Number(process.argv[2] ?? 1000)
/** Before the first count: what is made once and kept, V8's compiled code and the allocators' pools among it. */
const WARM = 1000
const AT_ONCE = 8
/** Of the daemon's memory, for each cell of the second half, garbage collected. The first half is left out: pools still grow to what AT_ONCE cells take. */
const MOST_KIB_A_CELL = 12
const MARKER = `ambit-leaks-${process.pid}`

const dir = mkdtempSync(join(tmpdir(), 'ambit-leaks-'))
const state = join(dir, 'state')
const socket = join(dir, 'run/ambit.sock')
const work = join(dir, 'work')
mkdirSync(work)

function contract(name, spec, mode = 'enforce', ttl = '60s') {
  const file = join(dir, `${name}.yaml`)
  writeFileSync(file, `apiVersion: ambit/v1
kind: Cell
metadata: { name: ${name} }
spec:
  mode: ${mode}
  ttl: ${ttl}
${spec}  authority:
    filesystem: { read: [/usr/lib, /usr/bin, /bin, /lib, /lib64], write: [/tmp] }
    exec: ['*']
    syscall: { profile: build }
`)
  return file
}
const plain = contract('plain', '')
const kinds = [
  { name: 'good', args: [plain, 'true'], status: [0], share: 8 },
  { name: 'failing', args: [plain, 'sh', '-c', 'exit 3'], status: [3], share: 4 },
  { name: 'killed by itself', args: [plain, 'sh', '-c', 'kill -9 $$'], status: [137], share: 2 },
  { name: 'with orphans', args: [plain, 'sh', '-c', `(setsid sleep 100 ${MARKER} &); exit 0`], status: [0], share: 2 },
  { name: 'no such command', args: [plain, 'no-such-command'], status: [127], share: 1 },
  { name: 'refused', args: [contract('bad', '  workspace: everywhere\n'), 'true'], status: [2], share: 1 },
  { name: 'out of memory', args: [contract('small', '  limits: { memory: 32MiB }\n'), 'python3', '-c', 'x = bytearray(64 << 20)'], status: [137], share: 1 },
  { name: 'out of processes', args: [contract('few', '  limits: { pids: 4 }\n'), 'sh', '-c', 'for i in 1 2 3 4 5 6; do sleep 0.05 & done; wait'], status: [0, 2], share: 1 },
  { name: 'out of time', args: [contract('short', '', 'enforce', '1s'), 'sleep', '100', MARKER], status: [124, 1], share: 1 },
  { name: 'with groups for time and disk', args: [contract('held', '  limits: { cpus: 1.5, io: { read: 100MiB } }\n'), 'true'], status: [0], share: 1 },
  { name: 'observed', args: [contract('observed', '', 'observe'), 'true'], status: [0], share: 1 },
  { name: 'that would outlive the daemon', args: [contract('lasting', '  onDaemonLoss: continue\n'), 'true'], status: [0], share: 2 },
  { name: 'whose client is killed', args: [plain, 'sleep', '100'], status: [null], share: 1, kill: 'SIGKILL' },
]
const order = kinds.flatMap(kind => Array.from({ length: kind.share }, () => kind))

/** Told to the daemon with SIGUSR2: collects, and writes how much memory the process has, KiB. */
const collected = join(dir, 'collected')
const collector = `data:text/javascript,${encodeURIComponent(`import { renameSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
process.on('SIGUSR2', async () => {
  for (let i = 0; i < 4; i++) { gc(); await sleep(20) }
  writeFileSync(${JSON.stringify(`${collected}.draft`)}, String(process.memoryUsage.rss() / 1024))
  renameSync(${JSON.stringify(`${collected}.draft`)}, ${JSON.stringify(collected)})
})`)}`

let daemon
async function start() {
  daemon = spawn(process.execPath, ['--expose-gc', '--import', collector, join(root, 'dist/cli/main.js'), 'daemon', '--state', state, '--socket', socket, '--changes', join(dir, 'changes'), '--feed-port', '0', '--log-level', 'error', '--spare-cells', '2'], { stdio: ['ignore', 'inherit', 'inherit'] })
  for (let i = 0; i < 3000; i++) {
    try {
      if (JSON.parse(readFileSync(join(state, 'daemon.json'), 'utf8')).pid === daemon.pid) return
    } catch { /* not yet */ }
    await sleep(10)
  }
  throw new Error('the daemon did not get ready')
}

function runOne(kind) {
  return new Promise(resolve => {
    const [file, ...command] = kind.args
    const child = spawn(client, ['run', '--socket', socket, '--contract', file, '--', ...command], { cwd: work, stdio: 'ignore' })
    if (kind.kill !== undefined) setTimeout(() => child.kill(kind.kill), 60)
    child.once('exit', status => resolve(kind.status.includes(status) ? null : `a cell ${kind.name}: status ${status}, not ${kind.status.join(' or ')}`))
  })
}

async function runMany(count) {
  const wrong = []
  let at = 0
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    while (at < count) {
      const fault = await runOne(order[at++ % order.length])
      if (fault !== null) wrong.push(fault)
    }
  }))
  return wrong
}

const pids = () => readdirSync('/proc').filter(name => /^\d+$/.test(name))
const at = (path, read, otherwise) => { try { return read(path) } catch { return otherwise } }
/** This daemon, its spawner, and everything below them. */
function family() {
  const parent = new Map(pids().map(pid => [pid, at(`/proc/${pid}/stat`, path => readFileSync(path, 'utf8').split(') ').at(-1).split(' ')[1], '')]))
  const own = new Set([String(daemon.pid)])
  for (let grown = true; grown;) {
    grown = false
    for (const [pid, of] of parent) if (own.has(of) && !own.has(pid)) { own.add(pid); grown = true }
  }
  return [...own]
}
const spawnerOf = () => family().find(pid => at(`/proc/${pid}/comm`, path => readFileSync(path, 'utf8'), '').startsWith('ambit-spawner'))
const descriptors = pid => at(`/proc/${pid}/fd`, path => readdirSync(path).length, -1)

/** eBPF objects that this family holds open, by kind: other daemons of the machine have their own. */
function bpf() {
  const counts = { 'bpf-map': 0, 'bpf-prog': 0, 'bpf_link': 0 }
  for (const pid of family()) {
    for (const fd of at(`/proc/${pid}/fd`, path => readdirSync(path), [])) {
      const target = at(`/proc/${pid}/fd/${fd}`, readlinkSync, '')
      for (const kind of Object.keys(counts)) if (target.includes(kind)) counts[kind]++
    }
  }
  return counts
}
const groups = () => readFileSync('/proc/self/mountinfo', 'utf8').split('\n').filter(line => / - cgroup2? /.test(line)).map(line => join(line.split(' ')[4], `ambit-${daemon.pid}`))
  .flatMap(folder => at(folder, path => readdirSync(path, { withFileTypes: true }).filter(entry => entry.isDirectory()).map(entry => entry.name), [])).length
const namespaces = () => new Set(family().flatMap(pid => at(`/proc/${pid}/ns`, path => readdirSync(path).map(name => at(join(path, name), readlinkSync, '')), []))).size
const files = () => readdirSync(state).filter(name => name !== 'evidence').length + readdirSync(join(dir, 'run')).length + at(join(state, 'spawners'), path => readdirSync(path).length, 0) + at(join(dir, 'changes'), path => readdirSync(path).length, 0)
async function memory() {
  rmSync(collected, { force: true })
  daemon.kill('SIGUSR2')
  for (let i = 0; i < 1000; i++) {
    const text = at(collected, path => readFileSync(path, 'utf8'), null)
    if (text !== null) return Math.round(Number(text))
    await sleep(20)
  }
  throw new Error('the daemon did not tell its memory')
}

const count = () => ({
  processes: family().length, 'processes of jobs': spawnSync('pgrep', ['-c', '-f', `sleep 100 ${MARKER}`], { encoding: 'utf8' }).stdout.trim(), namespaces: namespaces(), cgroups: groups(),
  mounts: readFileSync(`/proc/${daemon.pid}/mountinfo`, 'utf8').split('\n').filter(line => line.includes(dir)).length,
  'descriptors of the daemon': descriptors(daemon.pid), 'descriptors of the spawner': descriptors(spawnerOf()), ...bpf(), files: files(),
})

/** Counts until nothing moves any more: spares are made again, probes linger for a moment. */
async function settled(wanted) {
  let last = count()
  for (let i = 0; i < 60; i++) {
    await sleep(250)
    const now = count()
    if (JSON.stringify(now) === JSON.stringify(wanted ?? last)) return now
    last = now
  }
  return last
}

let failed = false
try {
  await start()
  const wrong = await runMany(WARM)
  const before = await settled()
  const half = Math.floor(cells / 2)
  const memories = [await memory()]
  wrong.push(...await runMany(half))
  await settled(before)
  memories.push(await memory())
  wrong.push(...await runMany(cells - half))
  const after = await settled(before)
  memories.push(await memory())
  const slope = (memories[2] - memories[1]) / (cells - half)
  process.stdout.write(`${cells} cells, ${AT_ONCE} at once, of ${kinds.length} kinds: ${kinds.map(kind => kind.name).join(', ')}\n`)
  for (const [what, number] of Object.entries(before)) {
    const left = String(number) !== String(after[what])
    failed ||= left
    process.stdout.write(`  ${what.padEnd(28)} ${String(number).padStart(6)} before  ${String(after[what]).padStart(6)} after${left ? '   LEFT BEHIND' : ''}\n`)
  }
  failed ||= slope > MOST_KIB_A_CELL
  process.stdout.write(`  ${'memory of the daemon'.padEnd(28)} ${memories.join(', ')} KiB before, in the middle, after: ${slope.toFixed(1)} KiB more for each cell of the second half, at most ${MOST_KIB_A_CELL}${slope > MOST_KIB_A_CELL ? '   TOO MUCH' : ''}\n`)
  for (const fault of [...new Set(wrong)].slice(0, 10)) process.stdout.write(`  ${fault}\n`)
  failed ||= wrong.length > 0
  const gone = new Promise(resolve => daemon.once('exit', resolve))
  const all = family()
  daemon.kill('SIGTERM')
  await gone
  await sleep(500)
  const left = [...all.filter(pid => at(`/proc/${pid}/stat`, path => !readFileSync(path, 'utf8').includes(') Z '), false)), ...Array.from({ length: groups() }, () => 'a cgroup'), ...at(join(state, 'spawners'), path => readdirSync(path), [])]
  process.stdout.write(`  ${'after the daemon\'s end'.padEnd(28)} ${left.length === 0 ? 'nothing' : `LEFT BEHIND: ${left.join(' ')}`}\n`)
  failed ||= left.length > 0
} finally {
  if (daemon?.exitCode === null) daemon.kill('SIGKILL')
  rmSync(dir, { recursive: true, force: true })
}
process.exitCode = failed ? 1 : 0
