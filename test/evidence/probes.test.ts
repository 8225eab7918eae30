import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { chmodSync, existsSync, linkSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { runCanaries } from '../../src/evidence/canary.ts'
import { openProbes, type Probes } from '../../src/evidence/probes.ts'
import type { EvidenceBody, SyscallCount } from '../../src/evidence/records.ts'
import { native, type NativeProbes } from '../../src/native.ts'

const objectDir = join(import.meta.dirname, '../../build/Release/bpf')
const fixtures = join(import.meta.dirname, '../fixtures')
const dir = mkdtempSync(join(tmpdir(), 'ambit-probes-'))
chmodSync(dir, 0o755)
const acts = join(dir, 'acts')
execFileSync('gcc', ['-O1', '-pthread', '-static', '-o', acts, join(fixtures, 'probes-acts.c')])

const v2 = existsSync('/sys/fs/cgroup/unified/cgroup.procs') ? '/sys/fs/cgroup/unified' : '/sys/fs/cgroup'
const parent = join(v2, `ambit-test-${process.pid}`)
mkdirSync(parent)
const idOf = (folder: string): bigint => statSync(folder, { bigint: true }).ino
let folders = 0
function makeCell(): { folder: string; id: bigint } {
  const folder = join(parent, `cell${folders++}`)
  mkdirSync(folder)
  return { folder, id: idOf(folder) }
}

const probes = openProbes({ native: native(), objectDir, level: 2, parentCgroup: parent, tls: [] })
t.teardown(() => {
  probes.close()
  for (const name of readdirSync(parent, { withFileTypes: true })) if (name.isDirectory()) rmdirSync(join(parent, name.name))
  rmdirSync(parent)
  rmSync(dir, { recursive: true, force: true })
})

const lsm = probes.hooks().some(hook => hook.name === 'lsm/file_open' && hook.state === 'attached')
/** Where the file of an open comes from on this kernel. */
const source = lsm ? 'lsm' : 'descriptor'

type Of<T extends EvidenceBody['type']> = Extract<EvidenceBody, { type: T }>
type Seen = { log: EvidenceBody[]; calls: SyscallCount[]; outOfRange: number; losses: Of<'loss'>[]; status: number | null; signal: string | null; pid: number; of<T extends EvidenceBody['type']>(type: T): Of<T>[]; call(name: string, arch?: string): Omit<SyscallCount, 'arch' | 'nr' | 'name'> | undefined }

function settle(probes: Probes, id: bigint, log: EvidenceBody[], ended: { status: number | null; signal: string | null; pid: number }): Seen {
  const sets = probes.finalSets(id)
  const { calls, outOfRange } = sets.find(set => set.type === 'syscalls') as Of<'syscalls'>
  return {
    log, calls, outOfRange, ...ended, losses: sets.filter(set => set.type === 'loss') as Of<'loss'>[],
    of: type => log.filter(body => body.type === type) as never,
    call(name, arch = 'x86_64') {
      const call = calls.find(each => each.name === name && each.arch === arch)
      if (call === undefined) return undefined
      const { succeeded, failed, refused, unfinished } = call
      return { succeeded, failed, refused, unfinished }
    },
  }
}
/** Runs the acts in a cell of their own, and gives what the evidence then says. */
async function observe(list: (string | number)[], options: { cwd?: string; probes?: Probes } = {}): Promise<Seen> {
  const own = options.probes ?? probes
  const { folder, id } = makeCell()
  own.addCell(id, 0)
  own.watch(id, null)
  const log: EvidenceBody[] = []
  own.route(id, { append: body => { log.push(body) } })
  try {
    const { status, signal, pid, stderr } = spawnSync(acts, [folder, ...list.map(String)], { cwd: options.cwd ?? '/', encoding: 'utf8' })
    if (stderr !== '') throw new Error(stderr)
    await own.flush()
    return settle(own, id, log, { status, signal, pid })
  } finally {
    own.removeCell(id)
    rmdirSync(folder)
  }
}
/** What was opened or changed; what was only looked at (the loader and Python look a lot) has a test of its own. */
const opened = (seen: Seen): Extract<EvidenceBody, { type: 'file' }>[] => seen.of('file').filter(file => file.source !== 'name')
const counts = (succeeded: number, failed = 0, refused = 0, unfinished = 0): object => ({ succeeded, failed, refused, unfinished })
const path = (name: string): string => join(dir, name)

t.test('every hook attaches on this kernel, or says what it is instead', async t => {
  t.same([...new Set(probes.hooks().map(hook => hook.state))].sort(), lsm ? ['attached'] : ['attached', 'fallback'])
  for (const family of ['process', 'exec', 'file', 'syscall', 'network']) t.ok(probes.hooks().some(hook => hook.family === family), family)
  for (const hook of probes.hooks().filter(hook => hook.state === 'fallback')) t.match(hook.detail, /not an LSM hook|exit of the call: |root alone: /)
})

t.test('syscalls are counted to the one, by architecture and outcome', async t => {
  const seen = await observe(['getppid', 1000, 'int80', 20, 'read', '/nothing', 'read', '/etc/passwd', 'exit', 0])
  t.same(seen.call('getppid'), counts(1000))
  t.same(seen.call('getppid', 'i386'), counts(20))
  t.same(seen.call('openat'), counts(1, 1))
  t.same(seen.call('exit_group'), counts(0, 0, 0, 1), 'never returns')
  t.equal(seen.call('execve'), undefined, 'what it did before it came into the cell is not the cell\'s')
  t.equal(seen.call('write'), undefined, 'nor the call that brought it in')
  t.equal(seen.outOfRange, 0)
})

t.test('a call that seccomp stops is refused, not failed, and is told once for each process', async t => {
  const getppid = 110
  const seen = await observe(['getppid', 2, 'refuse', getppid, 'getppid', 7, 'fork', 0])
  t.same(seen.call('getppid'), counts(2, 0, 7))
  t.same(seen.of('syscall.refused').map(({ process, arch, nr, name, errno }) => [process.pid, arch, nr, name, errno]), [[seen.pid, 'x86_64', getppid, 'getppid', 'EPERM']])
  t.same(seen.call('clone'), counts(1), 'the child that leaves its parent\'s clone is no refusal')
  const stopped = await observe(['refuse', 257, 'read', '/etc/hosts', 'read', '/nothing'])
  t.same(stopped.call('openat'), counts(0, 0, 2))
  t.same(stopped.log.map(body => body.type), ['syscall.refused', 'exit'], 'what seccomp stopped never looked at a path')
  const killed = await observe(['kill-on', getppid, 'getppid', 1])
  t.equal(killed.signal, 'SIGSYS')
  t.same(killed.call('getppid'), counts(0, 0, 1), 'its result looks like success')
  t.match(killed.of('syscall.refused'), [{ name: 'getppid', errno: 'SIGSYS' }])
  t.match(killed.of('exit'), [{ code: null, signal: 31 }])
})

t.test('numbers out of range, foreign numbers and rt_sigreturn are told for what they are', async t => {
  const seen = await observe(['syscall', 9999, 'syscall', -5, 'syscall', 0x40000000 | 110, 'sigreturn'])
  t.equal(seen.outOfRange, 2)
  t.same(seen.call('getppid', 'x32'), counts(0, 1), 'this kernel has no x32: ENOSYS, under its own name')
  t.same(seen.call('rt_sigreturn'), counts(1), 'its result is another call\'s')
  t.same(seen.call('getppid'), undefined)
})

t.test('an exec is told with the file really run, across links, scripts, memfds and long arguments', async t => {
  const script = path('build.sh')
  writeFileSync(script, `#!${acts} -\nexit 5`, { mode: 0o755 })
  symlinkSync(acts, path('linked'))
  const stat = statSync(acts, { bigint: true })
  const linked = await observe(['exec', './linked', '-', 'exit', 4], { cwd: dir })
  t.equal(linked.status, 4)
  const [exec] = linked.of('exec')
  t.match(exec, { path: acts, argv: ['./linked', '-', 'exit', '4'], argvTruncated: false, ino: String(stat.ino), dev: `${stat.dev >> 8n}:${stat.dev & 0xffn}`, unlinked: false, parent: process.pid, process: { pid: linked.pid, comm: 'linked' } })
  t.same(linked.call('execve'), counts(1))

  writeFileSync(script, `#!/bin/sh\nexit 5\n`, { mode: 0o755 })
  const scripted = await observe(['exec', './build.sh', 'x'], { cwd: dir })
  t.equal(scripted.status, 5)
  t.match(scripted.of('exec'), [{ path: script, ino: '0', argv: ['/bin/sh', './build.sh', 'x'] }, { path: '/usr/bin/dash', argv: ['/bin/sh', './build.sh', 'x'] }], 'the script and what ran it')

  const hidden = await observe(['memfd-exec', acts])
  t.match(hidden.of('exec'), [{ path: '(unreachable)/memfd:hidden', unlinked: true, argv: ['hidden'] }])

  const long = await observe(['exec', '/bin/true', 'y'.repeat(5000)])
  t.match(long.of('exec'), [{ argvTruncated: true }])
  t.equal(long.of('exec')[0]!.argv.join('\0').length, 4096)
})

t.test('a failed exec is told with what was tried', async t => {
  writeFileSync(path('plain'), 'no program', { mode: 0o644 })
  const seen = await observe(['try-exec', '/usr/bin/absent', 'try-exec', 'plain', 'try-exec', '/etc/../bin/absent2'], { cwd: dir })
  t.match(seen.of('exec.failed'), [
    { path: '/usr/bin/absent', errno: 'ENOENT', onHost: false }, { path: path('plain'), errno: 'EACCES', onHost: true }, { path: '/bin/absent2', errno: 'ENOENT', onHost: false },
  ])
  t.same(seen.call('execve'), counts(0, 3))
  t.same(seen.of('exec'), [])
})

t.test('forks and exits name both processes, the code and the signal', async t => {
  const seen = await observe(['fork', 3, 'thread-read', '/etc/hosts', 'kill', 15])
  t.equal(seen.signal, 'SIGTERM')
  const [fork] = seen.of('fork')
  t.equal(seen.of('fork').length, 1, 'a thread is no fork')
  t.equal(fork!.process.pid, seen.pid)
  t.match(seen.of('exit'), [{ process: { pid: fork!.child }, code: 3, signal: null }, { process: { pid: seen.pid }, code: null, signal: 15 }])
  t.equal(seen.of('exit').length, 2, 'a thread\'s end is no exit')
  t.match(opened(seen), [{ path: '/etc/hosts' }], 'threads share what is seen of files')
})

t.test('an opened file is told once for each way it is used, however it was opened', async t => {
  writeFileSync(path('one'), '1')
  linkSync(path('one'), path('twin'))
  writeFileSync(path('handled'), '')
  const seen = await observe(['read', path('one'), 'read', path('one'), 'readwrite', path('one'), 'read', path('twin'), 'write', path('new'), 'creat', path('made'), 'openat2', path('linked'), 'open-at', dir, 'plain', 'mmap-i386-open', '/etc/hostname', 'open-handle', path('handled')], { cwd: dir })
  t.same(opened(seen).map(({ path, access, created, source }) => [path, access, created, source]), [
    [path('one'), 'read', false, source],
    [path('one'), 'readwrite', false, source],
    [path('twin'), 'read', false, source],
    [path('new'), 'write', true, source],
    [path('made'), 'write', true, source],
    [acts, 'read', false, source],
    [path('plain'), 'read', false, source],
    ['/etc/hostname', 'read', false, source],
    [path('handled'), 'read', false, source],
  ])
  const one = statSync(path('one'), { bigint: true })
  t.match(opened(seen)[0], { ino: String(one.ino), dev: `${one.dev >> 8n}:${one.dev & 0xffn}`, process: { pid: seen.pid, comm: 'acts' } })
  const child = await observe(['read', '/etc/hosts', 'exec', acts, '-', 'read', '/etc/hosts'])
  t.equal(opened(child).length, 1, 'once for a cell, not for each program')
})

t.test('a descriptor that another thread takes away does not take the act out of the evidence', async t => {
  const seen = await observe(['race', path('one'), 100_000])
  t.ok(opened(seen).length >= 1)
  for (const file of opened(seen)) t.match(file, { path: path('one'), access: 'read' })
  if (lsm) t.match(opened(seen), [{ source: 'lsm' }])
  else t.match(opened(seen).find(file => file.source === 'argument'), { ino: '0', dev: '0:0' }, 'only what the process said, and told as that')
  t.ok(opened(seen).length <= 2)
})

t.test('relative paths, mounts and a changed root are seen as the process sees them', async t => {
  mkdirSync(path('root/etc'), { recursive: true })
  writeFileSync(path('root/etc/inner'), '')
  const seen = await observe(['chdir', path('root'), 'read', 'etc/inner', 'read', '../gone', 'read', './a/../b', 'bad-fd', 'lost', 'chroot', path('root'), 'read', '/etc/inner', 'read', '/proc/gone', 'read', '/etc/passwd', 'exit', 0])
  t.same(opened(seen).map(file => file.path), [path('root/etc/inner'), ], 'the same file by the same name is one')
  t.same(seen.of('file.failed').map(({ path, errno, onHost }) => [path, errno, onHost]), [
    [path('gone'), 'ENOENT', false], [path('root/b'), 'ENOENT', false], ['(unknown)/lost', 'EBADF', false],
    ['/proc/gone', 'ENOENT', false], ['/etc/passwd', 'ENOENT', true],
  ], 'what the new root lacks and the host has')
  const inside = await observe(['chroot', path('root'), 'read', '/etc/inner', 'read', 'etc/nothing'])
  t.match(opened(inside), [{ path: '/etc/inner' }])
  t.match(inside.of('file.failed'), [{ path: '/etc/nothing' }])
  const mounted = spawnSync('unshare', ['--mount', 'sh', '-c', `mount -t tmpfs none ${path('root/etc')} && mkdir -p ${path('root/etc/x/y')} && echo > ${path('root/etc/x/y/z')} && exec "$@"`, 'sh', 'true'])
  t.equal(mounted.status, 0)
  const { folder, id } = makeCell()
  probes.addCell(id, 0)
  probes.watch(id, null)
  const log: EvidenceBody[] = []
  probes.route(id, { append: body => { log.push(body) } })
  spawnSync('unshare', ['--mount', 'sh', '-c', `mount -t tmpfs none ${path('root/etc')} && mkdir -p ${path('root/etc/x/y')} && echo > ${path('root/etc/x/y/z')} && exec "$@"`, 'sh', acts, folder, 'chdir', path('root/etc/x'), 'read', 'y/z'])
  await probes.flush()
  probes.removeCell(id)
  rmdirSync(folder)
  t.match(log.find(body => body.type === 'file' && body.source !== 'name'), { path: path('root/etc/x/y/z') }, 'across a mount that only the cell has')
})

t.test('a path longer than the kernel takes in one piece, and one that is deeper than can be walked, say so', async t => {
  const script = `import os, sys
os.chdir(sys.argv[1])
for i in range(600):
  os.mkdir('d'); os.chdir('d')
open('/sys/fs/cgroup/x' if False else sys.argv[2] + '/cgroup.procs', 'w').write('0')
open('bottom', 'w')
`
  const { folder, id } = makeCell()
  probes.addCell(id, 0)
  probes.watch(id, null)
  const log: EvidenceBody[] = []
  probes.route(id, { append: body => { log.push(body) } })
  mkdirSync(path('deep'))
  const { status, stderr } = spawnSync('python3', ['-c', script, path('deep'), folder], { encoding: 'utf8' })
  t.equal(status, 0, stderr)
  await probes.flush()
  probes.removeCell(id)
  rmdirSync(folder)
  execFileSync('rm', ['-r', path('deep')])
  t.match(log.find(body => body.type === 'file' && body.path.endsWith('/bottom')), { path: /^\(truncated\)\/d\/d\// })
})

t.test('what is looked at and not opened, changed by descriptor, or spoken to by a socket\'s path is told', async t => {
  const python = `import os, socket, sys
open(sys.argv[1] + '/cgroup.procs', 'w').write('0')
os.chdir(sys.argv[2])
os.stat('looked')
os.access('/etc/hostname', os.R_OK)
os.readlink('link')
fd = os.open('held', os.O_RDONLY)
os.fstat(fd)
os.fchmod(fd, 0o640)
os.utime('timed', (0, 0))
there = socket.socket(socket.AF_UNIX)
there.connect('sock')
bound = socket.socket(socket.AF_UNIX)
bound.bind('made.sock')
`
  mkdirSync(path('look'))
  for (const name of ['looked', 'held', 'timed']) writeFileSync(path(`look/${name}`), '')
  symlinkSync('looked', path('look/link'))
  const server = createServer().listen(path('look/sock'))
  const { folder, id } = makeCell()
  probes.addCell(id, 0)
  probes.watch(id, null)
  const log: EvidenceBody[] = []
  probes.route(id, { append: body => { log.push(body) } })
  const child = spawn('python3', ['-c', python, folder, path('look')], { stdio: ['ignore', 'ignore', 'inherit'] })
  t.equal(await new Promise(resolve => child.once('close', resolve)), 0)
  server.close()
  await probes.flush()
  probes.removeCell(id)
  rmdirSync(folder)
  const told = (name: string, source: string, access: string): void => {
    t.ok(log.some(body => body.type === 'file' && body.path === path(`look/${name}`) && body.source === source && body.access === access), `${name} ${source} ${access}`)
  }
  told('looked', 'name', 'read')
  told('link', 'name', 'read')
  told('held', source, 'read')
  told('held', 'descriptor', 'readwrite')
  told('timed', 'argument', 'write')
  told('sock', 'argument', 'write')
  told('made.sock', 'argument', 'write')
  t.ok(log.some(body => body.type === 'file' && body.path === '/etc/hostname' && body.source === 'name'))
})

t.test('what changes a directory or an object is a write on its path', async t => {
  mkdirSync(path('w'))
  for (const name of ['old', 'older', 'cut']) writeFileSync(path(`w/${name}`), 'x')
  const seen = await observe(['chdir', path('w'), 'unlink', 'older', 'mkdir', 'sub', 'truncate', 'cut', 'rename', 'old', 'sub/new', 'unlink', '/nothing/here', 'mkdir', '/etc/hosts/x', 'mkdir', path('w/sub')])
  t.same(opened(seen).map(({ path, access, source }) => [path, access, source]), [
    [path('w/older'), 'write', 'descriptor'],
    [path('w/cut'), 'write', 'argument'],
    [path('w/sub/new'), 'write', 'argument'],
  ], 'once for a directory: who may change one entry may change them all')
  t.same(seen.of('file.failed').map(({ path, access, errno }) => [path, access, errno]), [['/nothing/here', 'write', 'ENOENT']], 'that a name exists already says nothing of authority')
  t.notOk(existsSync(path('w/older')))
})

t.test('connections are told with address, port and protocol, once for each process', async t => {
  const seen = await observe(['connect4', '127.0.0.1', 9, 'connect4', '127.0.0.1', 9, 'connect6', '::1', 10, 'connect6', '::ffff:127.0.0.2', 11, 'udp4', '127.0.0.3', 12, 'send4', '127.0.0.4', 13, 'send6', '::1', 14])
  t.same(seen.of('connect').map(({ address, port, protocol }) => [address, port, protocol]), [
    ['127.0.0.1', 9, 'tcp'], ['::1', 10, 'tcp'], ['127.0.0.2', 11, 'tcp'], ['127.0.0.3', 12, 'udp'], ['127.0.0.4', 13, 'udp'], ['::1', 14, 'udp'],
  ])
})

t.test('a nested cgroup belongs to its cell; a process outside every cell leaves nothing', async t => {
  const { folder, id } = makeCell()
  const other = makeCell()
  const nested = join(folder, 'nested')
  mkdirSync(join(nested, 'deeper'), { recursive: true })
  probes.addCell(id, 0)
  probes.watch(id, null)
  probes.addCell(other.id, 0)
  probes.watch(other.id, null)
  const log: EvidenceBody[] = []
  const others: EvidenceBody[] = []
  probes.route(id, { append: body => { log.push(body) } })
  probes.route(other.id, { append: body => { others.push(body) } })
  const list = ['getppid', '100', 'read', '/etc/hosts', 'connect4', '127.0.0.1', '9', 'fork', '0', 'read', '/nothing']
  const inside = spawnSync(acts, [join(nested, 'deeper'), ...list])
  spawnSync(acts, [parent, ...list])
  spawnSync(acts, ['-', ...list])
  await probes.flush()
  const seen = settle(probes, id, log, { status: inside.status, signal: null, pid: inside.pid })
  t.same(seen.call('getppid'), counts(100))
  t.same(log.map(body => body.type).sort(), ['connect', 'exit', 'exit', 'file', 'file.failed', 'fork'])
  t.same(others, [])
  t.same(settle(probes, other.id, others, { status: 0, signal: null, pid: 0 }).calls, [])
  probes.removeCell(id)
  probes.removeCell(other.id)
  for (const name of [join(nested, 'deeper'), nested, folder, other.folder]) rmdirSync(name)
})

t.test('cell-init and its child before the first exec are not evidence; the command, and a command that cannot start, are', async t => {
  const start = async (list: string[]): Promise<Seen> => {
    const { folder, id } = makeCell()
    const child = spawn(acts, [folder, 'init', ...list], { stdio: ['pipe', 'pipe', 'inherit'] })
    await new Promise(resolve => child.stdout.once('data', resolve))
    probes.addCell(id, child.pid!)
  probes.watch(id, null)
    const ended = new Promise<number | null>(resolve => child.once('close', resolve))
    child.stdin.write('g')
    const status = await ended
    await probes.flush()
    // Nobody had asked for the events so far: they waited.
    const log: EvidenceBody[] = []
    probes.route(id, { append: body => { log.push(body) } })
    const seen = settle(probes, id, log, { status, signal: null, pid: child.pid! })
    probes.removeCell(id)
    rmdirSync(folder)
    return seen
  }
  const seen = await start(['read', '/etc/hostname', 'read', '/nothing', 'getppid', '50', 'refuse', '39', 'try-exec', '/absent/acts', 'exec', acts, '-', 'read', '/etc/hosts', 'fork', '0', 'getppid', '7', 'exit', '6'])
  t.equal(seen.status, 6)
  t.same(seen.log.filter(body => body.type !== 'file' || body.source !== 'name').map(body => body.type), ['exec', 'file', 'fork', 'exit', 'exit'])
  t.match(seen.of('exec'), [{ path: acts, parent: seen.pid }])
  t.match(opened(seen), [{ path: '/etc/hosts' }])
  t.same(seen.call('getppid'), counts(7))
  t.same(seen.call('execve'), counts(1), 'the exec that made it the command is its first act')
  t.same(seen.call('openat'), counts(1))
  t.ok(seen.losses.every(loss => loss.dropped === 0))

  const never = await start(['read', '/etc/hostname', 'try-exec', '/absent/one', 'try-exec', '/absent/two', 'exit', '127'])
  t.same(never.log.map(body => [body.type, (body as Of<'exec.failed'>).path]), [['exec.failed', '/absent/one'], ['exec.failed', '/absent/two']])
  t.same(never.calls, [])
  t.ok(never.losses.every(loss => loss.dropped === 0))

  const orphaned = await start(['exec', acts, '-', 'orphan', 'read', '/etc/hosts', 'getppid', '3'])
  t.match(opened(orphaned), [{ path: '/etc/hosts' }], 'a job\'s orphan, which becomes cell-init\'s child, is no part of the set-up')
})

t.test('under a flood what was produced is what was delivered and what was dropped, to the event; what was dropped is told the next time', async t => {
  const small = openProbes({ native: native(), objectDir, level: 2, parentCgroup: parent, tls: [], ringBytes: 4096 })
  t.teardown(() => small.close())
  const FLOOD = 20_000
  const { folder, id } = makeCell()
  small.addCell(id, 0)
  small.watch(id, null)
  const log: EvidenceBody[] = []
  small.route(id, { append: body => { log.push(body) } })
  const run = (...list: string[]): void => { t.equal(spawnSync(acts, [folder, ...list]).status, 0) }
  run('reads', String(FLOOD), 'forks', '500')
  await small.flush()
  const lossOf = (event: string): Of<'loss'> => small.finalSets(id).find(set => set.type === 'loss' && set.event === event) as Of<'loss'>
  const heard = (type: string): number => log.filter(body => body.type === type).length
  for (const [event, acts] of [['file.failed', FLOOD], ['fork', 500], ['exit', 501]] as const) {
    const loss = lossOf(event)
    t.equal(loss.produced, acts, event)
    t.equal(loss.delivered, heard(event))
    t.equal(loss.produced, loss.delivered + loss.dropped)
  }
  t.ok(lossOf('file.failed').dropped > 0, 'the ring was too small')
  const told = new Set(log.map(body => (body.type === 'file.failed' ? body.path : '')))
  const missed = Array.from({ length: FLOOD }, (_, i) => `/nothing/${i + 1}`).find(name => !told.has(name))!
  run('read', missed)
  await small.flush()
  t.ok(log.some(body => body.type === 'file.failed' && body.path === missed))
  t.equal(lossOf('file.failed').produced, FLOOD + 1)
  small.removeCell(id)
  rmdirSync(folder)
  const calm = await observe(['reads', '2000', 'forks', '200'])
  t.ok(calm.losses.every(loss => loss.dropped === 0), 'the usual ring takes it all')
  t.equal(calm.of('file.failed').length, 2000)
  t.equal(calm.of('fork').length, 200)
})

t.test('probes are attached only while there is a cell, and a moment longer', async t => {
  const attached = (): number => readdirSync('/proc/self/fdinfo').filter(fd => { try { return /^link_type:/m.test(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')) } catch { return false } }).length
  const none = async (): Promise<boolean> => {
    for (let i = 0; i < 200 && attached() > 0; i++) await sleep(50)
    return attached() === 0
  }
  t.ok(await none())
  const a = makeCell()
  const b = makeCell()
  probes.addCell(a.id, 0)
  t.equal(attached(), 0, 'a cell that is not looked at costs the host nothing')
  probes.watch(a.id, null)
  t.equal(attached(), lsm ? 15 : 13)
  probes.addCell(b.id, 0)
  probes.watch(b.id, null)
  probes.removeCell(a.id)
  t.equal(attached(), lsm ? 15 : 13)
  probes.removeCell(b.id)
  t.ok(await none())
  t.throws(() => probes.finalSets(a.id), { code: 'INTERNAL' })
  for (const { folder } of [a, b]) rmdirSync(folder)
})

t.test('the relay gets every TCP connection that is not for loopback, under the name that was dialled; without it nothing gets out', async t => {
  const { status, stdout, stderr } = spawnSync('unshare', ['--net', process.execPath, '--import', 'tsx', join(fixtures, 'probes-relay.ts'), objectDir, parent], { encoding: 'utf8' })
  t.equal(status, 0, stderr)
  const seen = JSON.parse(stdout) as { without: Record<string, string>; with: Record<string, string>; names: Record<string, string>; after: Record<string, string>; datagram: string; refused: string }
  const closed = { v4: 'ECONNREFUSED', v6: 'ECONNREFUSED', mapped: 'ECONNREFUSED', dummy: 'ECONNREFUSED', dns: 'dns', loopback: 'own', nothing: 'ECONNREFUSED', six: 'ECONNREFUSED' }
  t.same(seen.without, closed)
  t.same(seen.with, { ...closed, v4: 'relay4', v6: 'relay6', mapped: 'relay4', dummy: 'relay4' })
  t.match(seen.names, { relay4: '192.0.2.10 25', relay6: '2001:db8::7 443', dns: '8.8.8.8 53' })
  t.same(seen.after, closed, 'detached')
  t.equal(seen.datagram, 'ECONNREFUSED')
  t.match(seen.refused, /does not take them/, 'other sockets would make it drop everything')
})

t.test('canaries prove that each hook fires, and tell of one that does not', async t => {
  const cgroups = {
    createCell(id: string) { const v2 = join(parent, id); mkdirSync(v2); return { id: idOf(v2), v2, v1: [] } },
    removeCell(id: string) { rmdirSync(join(parent, id)) },
  }
  const hooks = await runCanaries(probes, cgroups)
  t.same(hooks.filter(hook => hook.state !== 'attached' && hook.state !== 'fallback'), [])
  t.same(hooks.map(hook => hook.name), probes.hooks().map(hook => hook.name))
  const deaf: Probes = { ...probes, route: (id, log) => probes.route(id, { append: body => { if (body.type !== 'connect') log.append(body) } }) }
  const heard = await runCanaries(deaf, cgroups)
  t.same(heard.filter(hook => hook.state === 'canary-failed').map(hook => hook.name), ['cgroup/connect4', 'cgroup/connect6', 'cgroup/sendmsg4', 'cgroup/sendmsg6'])
})

t.test('every method throws after close, and close may come twice', async t => {
  const Native = native().Probes as unknown as new (...args: unknown[]) => NativeProbes
  const own = new Native(objectDir, 2, parent, () => {}, 4096)
  t.throws(() => own.addCell(1n, 0), /before they were loaded/)
  own.load()
  t.throws(() => own.load(), /second time/)
  own.addCell(1n, 0)
  t.throws(() => own.addCell(1n, 0), { code: 'NATIVE', errno: 17 })
  t.throws(() => own.readCell(2n), { code: 'NATIVE', errno: 2 })
  t.throws(() => own.addCell(3 as never, 0), TypeError)
  t.throws(() => own.addCell(-1n, 0), TypeError)
  t.throws(() => own.attachRelay(0, 0, 0, -1, -1), { code: 'NATIVE' })
  const hanging = own.flush()
  own.close()
  own.close()
  await t.rejects(hanging, /were closed/)
  for (const call of ['load', 'attach', 'detach', 'detachTls', 'flush'] as const) t.throws(() => own[call](), { code: 'NATIVE', errno: 9 }, call)
  for (const call of ['addCell', 'readCell', 'removeCell'] as const) t.throws(() => (own[call] as (id: bigint, pid: number) => void)(1n, 0), { code: 'NATIVE', errno: 9 }, call)
  t.throws(() => own.attachTls('/x', 'openssl'), { code: 'NATIVE', errno: 9 })
  t.throws(() => own.attachRelay(0, 0, 0, -1, -1), { code: 'NATIVE', errno: 9 })
  t.throws(() => own.detachRelay(1), { code: 'NATIVE', errno: 9 })
  t.throws(() => new Native(objectDir, 2, join(parent, 'absent'), () => {}), { code: 'NATIVE', errno: 2 })
  t.throws(() => openProbes({ native: native(), objectDir: dir, level: 2, parentCgroup: parent, tls: [] }), { code: 'KERNEL_LACKS' }, 'not one object is there')
  const ending = spawnSync(process.execPath, ['-e', `
    const { Probes } = require(${JSON.stringify(join(import.meta.dirname, '../../build/Release/ambit.node'))})
    const probes = new Probes(${JSON.stringify(objectDir)}, 2, ${JSON.stringify(parent)}, () => {})
    probes.load(); probes.attach(); process.stdout.write('up')`], { encoding: 'utf8' })
  t.match(ending, { status: 0, stdout: 'up', stderr: '' }, 'a process that never closes ends cleanly, and is not kept alive')
})
