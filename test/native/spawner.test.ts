import { spawn, spawnSync } from 'node:child_process'
import dgram from 'node:dgram'
import { chmodSync, chownSync, closeSync, constants, existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { constants as os } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import { openCgroups } from '../../src/cell/cgroup.ts'
import { rootBuilder } from '../../src/cell/root.ts'
import { native, type CellExit, type LaunchPlan, type Mount, type NativeSpawner, type Reservation, type ReservedCell } from '../../src/native.ts'

const root = join(import.meta.dirname, '../..')
const release = join(root, 'build/Release')
const dir = mkdtempSync('/var/tmp/ambit-spawner-')
const probe = join(dir, 'probe')
chmodSync(dir, 0o755)

type Ended = { exit: CellExit; stdout: string; stderr: string }
type Launched = { id: string; prepared: ReservedCell; ended: Promise<Ended> }

const cgroups = openCgroups()
const exits = new Map<string, CellExit[]>()
const waiting = new Map<string, (exit: CellExit) => void>()
const onExit = (exit: CellExit): void => {
  exits.set(exit.id, [...(exits.get(exit.id) ?? []), exit])
  waiting.get(exit.id)?.(exit)
}
const children = (pid: number | string): string[] => readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean)
const comm = (pid: string): string => readFileSync(`/proc/${pid}/comm`, 'utf8').trim()
const alive = (pid: number | string): boolean => existsSync(`/proc/${pid}/status`) && !/^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
function start(): { spawner: NativeSpawner; pid: string } {
  const before = new Set(children(process.pid))
  const spawner = new (native().Spawner)(join(release, 'ambit-spawner'), join(release, 'ambit-init'), onExit)
  return { spawner, pid: children(process.pid).find(pid => !before.has(pid))! }
}
const { spawner, pid: spawnerPid } = start()

t.before(() => {
  const built = spawnSync('gcc', ['-O1', '-Wall', '-Werror', '-static', '-o', probe, join(import.meta.dirname, 'probe.c')], { encoding: 'utf8' })
  if (built.status !== 0) throw new Error(built.stderr)
})
t.teardown(async () => {
  spawner.close()
  for (let i = 0; i < 500 && alive(spawnerPid); i++) await sleep(10)
  await cgroups.close()
  rmSync(dir, { recursive: true, force: true })
})

const READ_ONLY_USR: Mount[] = [
  { type: 'bind', source: '/usr', target: '/usr', readonly: true, recursive: true },
  ...['bin', 'lib', 'lib64'].map((name): Mount => ({ type: 'symlink', target: `/${name}`, to: `usr/${name}` })),
]
const TMP: Mount[] = [{ type: 'tmpfs', target: '/tmp', sizeBytes: 8 << 20, mode: 0o1777 }]
const probeMount = (): Mount => ({ type: 'bind', source: probe, target: '/probe', readonly: true, recursive: false })

let cells = 0
function closeAll(cell: ReservedCell): void {
  for (const [name, fd] of Object.entries(cell)) if (name !== 'pid' && fd >= 0) try { closeSync(fd) } catch { /* the test closed it */ }
}
type Change = Partial<LaunchPlan> & { more?: Mount[]; input?: string; cgroups?: Reservation['cgroups'] }
const idsOf = (slot: number): Reservation['ids'] => ({ base: 1_879_048_192 + slot * 65536, count: 65536 })
function plan(argv: string[], change: Change, id: string, slot: number, stdio: [number, number, number]): LaunchPlan {
  const { more, input: _, cgroups: __, ...rest } = change
  return {
    id, argv, env: ['PATH=/usr/bin:/'], cwd: '/', stdio, ids: idsOf(slot),
    hostname: 'cell', mounts: [...READ_ONLY_USR, ...TMP, probeMount(), ...(more ?? [])], seccomp: null, landlock: null,
    rlimits: [], userNamespaces: false, uid: 0, gid: 0, ...rest,
  }
}

/** Prepares a cell with pipes' worth of files for its output; the caller lets it go. */
async function prepare(argv: string[], change: Change = {}, by: NativeSpawner = spawner): Promise<Launched> {
  const number = cells++
  const id = `t${number}`
  const file = (name: string): string => join(dir, `${id}.${name}`)
  writeFileSync(file('in'), change.input ?? '')
  const stdio = [openSync(file('in'), 'r'), openSync(file('out'), 'w'), openSync(file('err'), 'w')] as [number, number, number]
  const done = new Promise<CellExit>(resolve => waiting.set(id, resolve))
  try {
    const group = cgroups.createCell(id, { memoryBytes: 128 << 20, pids: 50 })
    const prepared = await by.reserve({ id, cgroups: change.cgroups ?? group, ids: idsOf(number % 200) })
    try {
      await by.prepare(plan(argv, change, id, number % 200, stdio))
    } catch (error) {
      closeAll(prepared)
      cgroups.killCell(id)
      throw error
    }
    const ended = done.then(async exit => {
      closeAll(prepared)
      await cgroups.removeCell(id)
      return { exit, stdout: readFileSync(file('out'), 'utf8'), stderr: readFileSync(file('err'), 'utf8') }
    })
    return { id, prepared, ended }
  } catch (error) {
    await cgroups.removeCell(id)
    throw error
  } finally {
    for (const fd of stdio) closeSync(fd)
  }
}
async function run(argv: string[], change: Change = {}): Promise<Ended> {
  const cell = await prepare(argv, change)
  spawner.go(cell.id)
  return cell.ended
}
const sh = (script: string, change: Change = {}): Promise<Ended> => run(['sh', '-c', script], change)
const settled = async (check: () => boolean): Promise<boolean> => {
  for (let i = 0; i < 500; i++) {
    if (check()) return true
    await sleep(10)
  }
  return false
}

t.test('the command gets its stdio, environment, folder, ids and limits, and its end is told as it was', async t => {
  const { exit, stdout, stderr } = await sh('cat; echo problem >&2; echo "$FIXED" "$(pwd)" "$(id -u):$(id -g)" "$(hostname)" $(ulimit -n) $(umask); env | wc -l; exit 7', {
    input: 'given ', env: ['PATH=/usr/bin', 'FIXED=yes'], cwd: '/tmp', rlimits: [{ name: 'nofile', soft: 100, hard: 200 }],
  })
  t.match(exit, { code: 7, signal: null, failed: null })
  t.equal(stdout, 'given yes /tmp 0:0 cell 100 0022\n3\n', 'PATH, FIXED, PWD of the shell')
  t.equal(stderr, 'problem\n')
  t.match((await sh('kill -9 $$')).exit, { code: null, signal: 9, failed: null })
  t.match((await sh('id -u; id -G', { uid: 1000, gid: 1001 })).stdout, '1000\n1001\n')
  const missing = await run(['no-such-command'])
  t.equal(missing.exit.code, 127)
  t.match(missing.stderr, /^ambit: cannot execute no-such-command: No such file/)
  const plain = await run(['/etc/plain'], { more: [{ type: 'file', target: '/etc/plain', content: 'text', mode: 0o644 }] })
  t.equal(plain.exit.code, 126)
  t.match(plain.stderr, /^ambit: cannot execute \/etc\/plain: Permission denied/)
  t.match((await sh('true', { cwd: '/nowhere' })).exit, { code: null, signal: null, failed: { step: 'enter the working directory /nowhere', errno: os.errno.ENOENT } })
  t.equal((await sh('true', { rlimits: [{ name: 'nofile', soft: Infinity, hard: Infinity }] })).exit.code, 0, 'a limit that is not ours to give is what we have')
})

t.test('signals reach the command, before and after its exec, and nothing else is inherited', async t => {
  const cell = await prepare(['sh', '-c', 'trap "echo TERM; exit 3" TERM; echo ready > /tmp/ready; while :; do sleep 0.02; done'])
  t.throws(() => spawner.go('nobody'), { code: 'NATIVE', errno: os.errno.ESRCH })
  t.throws(() => spawner.signal(cell.id, 0), TypeError)
  spawner.signal('nobody', 15)
  spawner.signal(cell.id, 15)
  spawner.go(cell.id)
  const init = String(cell.prepared.pid)
  t.ok(await settled(() => { const [command] = children(init); return command !== undefined && existsSync(`/proc/${command}/root/tmp/ready`) }), 'a signal before the start is nobody\'s')
  spawner.signal(cell.id, 15)
  t.match(await cell.ended, { exit: { code: 3 }, stdout: 'TERM\n' })
  t.equal((await run(['probe', 'signals'])).stdout, 'end\n', 'no signal is blocked or ignored')
  t.equal((await run(['probe', 'fds'])).stdout, '0 1 2 \n')
})

t.test('use of the processor and memory is of the whole tree, orphans included', async t => {
  const burnt = (await run(['probe', 'burn'])).exit
  const idle = (await run(['true'])).exit
  t.ok(burnt.userUs + burnt.systemUs >= 90_000, `a child burnt 100 ms: ${burnt.userUs + burnt.systemUs} µs`)
  t.ok(idle.userUs + idle.systemUs < burnt.userUs + burnt.systemUs)
  t.ok(burnt.maxRssKiB >= 48 * 1024)
  t.ok(idle.maxRssKiB < 48 * 1024)
})

t.test('the command has no capability, no way to change its root, and lives in namespaces of its own', async t => {
  const { stdout } = await sh('grep -E "^(Cap...|NoNewPrivs|Groups):" /proc/self/status; cat /proc/self/uid_map /proc/self/gid_map; cat /proc/self/cgroup; for n in user mnt pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done')
  for (const set of ['Inh', 'Prm', 'Eff', 'Bnd', 'Amb']) t.match(stdout, new RegExp(`^Cap${set}:\\t0{16}$`, 'm'))
  t.match(stdout, /^NoNewPrivs:\t1$/m)
  t.match(stdout, /^Groups:\t *$/m)
  t.equal(stdout.match(/^ +0 +1[0-9]{9} +65536$/gm)?.length, 2, 'both maps, and host id 0 is in neither')
  t.notMatch(stdout, /^\d+:.*:\/.*ambit/m, 'the cgroup namespace begins at the cell')
  for (const kind of ['user', 'mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup']) {
    const own = spawnSync('readlink', [`/proc/self/ns/${kind}`], { encoding: 'utf8' }).stdout.trim()
    t.ok(!stdout.includes(own), `${kind} is not the host's`)
  }
  const bare = spawnSync('unshare', ['-m', 'sh', '-c', `mount --make-rprivate /; mount -t tmpfs t /tmp; cp ${probe} /tmp; unshare -u /tmp/probe mount`], { encoding: 'utf8' }).stdout
  t.match(bare, /^mount ok\nunshare ok\n/, 'bare, root may')
  t.match(bare, /^mknod ok$/m)
  const held = (await run(['probe', 'mount'])).stdout
  t.same(held.trim().split('\n').filter(line => !/ E(PERM|INVAL|ACCES)$/.test(line)), [], held)
})

t.test('the root is read-only and holds only the plan; tmp can be written and is limited', async t => {
  const { stdout, stderr } = await sh('ls /; touch /new; touch /etc/hosts && echo changed; rm /etc/hosts && echo removed; echo 1 > /proc/sys/net/ipv4/ip_forward; touch /usr/new; echo x > /tmp/x && cat /tmp/x; head -c 16M /dev/zero > /tmp/big; cat /proc/self/mountinfo >&2', {
    more: [{ type: 'file', target: '/etc/hosts', content: 'x\n', mode: 0o644 }, { type: 'directory', target: '/run/ambit', mode: 0o700 }],
  })
  t.equal(stdout, 'bin\ndev\netc\nlib\nlib64\nprobe\nproc\nrun\ntmp\nusr\nx\n')
  t.match(stderr, /touch: cannot touch '\/new': Read-only/)
  t.match(stderr, /cannot touch '\/etc\/hosts': Read-only/)
  t.match(stderr, /cannot remove '\/etc\/hosts': Read-only/)
  t.match(stderr, /ip_forward: Read-only/)
  t.match(stderr, /cannot touch '\/usr\/new': Read-only/)
  t.match(stderr, /No space left/)
  const mounts = stderr.split('\n').filter(line => / - /.test(line))
  t.ok(mounts.every(line => /^\S+ \S+ \S+ \S+ \S+ \S*nosuid/.test(line)), 'every mount is nosuid')
  t.same(mounts.filter(line => !/^\S+ \S+ \S+ \S+ \S+ \S*nodev/.test(line)).map(line => line.split(' ')[4]), ['null', 'zero', 'full', 'random', 'urandom', 'tty', 'pts'].map(name => `/dev/${name}`))
  t.notOk(mounts.some(line => /(shared|master):/.test(line)), 'nothing propagates')
})

t.test('process 1 cannot be read, traced, limited or killed by the job, which can do all of it to its own', async t => {
  const own = (await run(['probe', 'attack', '0'])).stdout
  t.same(own.trim().split('\n').filter(line => !line.endsWith(' ok')), ['died 9'], 'a process of the job is open to the job')
  const init = (await run(['probe', 'attack', '1'])).stdout.trim().split('\n')
  t.equal(init.length, 12)
  t.same(init.filter(line => !/ (EPERM|EACCES|ENOENT|ESRCH)$/.test(line)), [], init.join('\n'))
  const { prepared, ended, id } = await prepare(['true'])
  t.match(readFileSync(`/proc/${prepared.pid}/status`, 'utf8'), /^Seccomp:\t0$/m)
  t.equal(readFileSync(`/proc/${prepared.pid}/status`, 'utf8').match(/^Uid:\t(\d+)/m)![1]!, String(1_879_048_192 + (cells - 1) % 200 * 65536 + 65535), 'an id of its own')
  t.ok(await settled(() => readdirSync(`/proc/${prepared.pid}/fd`).length <= 5), 'stdio, its socket, its signals')
  spawner.go(id)
  await ended
})

t.test('there is no route out, addresses for look-ups, and sockets that no job can take', async t => {
  const server = net.createServer(socket => socket.end()).listen(0, '0.0.0.0')
  await new Promise(resolve => server.once('listening', resolve))
  const hostPort = String((server.address() as net.AddressInfo).port)
  const outside = Object.values((await import('node:os')).networkInterfaces()).flat().find(one => one!.family === 'IPv4' && !one!.internal)?.address ?? '127.0.0.1'
  t.equal(await new Promise(resolve => net.connect(Number(hostPort), outside).once('connect', function (this: net.Socket) { this.destroy(); resolve('connected') }).once('error', resolve)), 'connected', 'bare')

  const script = `probe connect ${outside} ${hostPort}; probe connect 2001:db8::1 80; cat /proc/net/dev | tail -n +3 | cut -d: -f1; cat /proc/net/if_inet6 /proc/net/fib_trie; p=$(cat); probe bind 127.0.0.1 $p; probe bind 127.0.0.1 40404; probe udp 127.0.0.1 53; probe udp 203.0.113.9 53; probe udp ::1 53; probe connect 127.0.0.1 53; probe connect ::1 53; probe connect 127.0.0.1 $p`
  const cell = await prepare(['sh', '-c', script])
  const { prepared } = cell
  t.ok(Object.values(prepared).every(fd => fd > 0), JSON.stringify(prepared))
  const inode = statSync(`/proc/self/fd/${prepared.relay4}`).ino
  const relayPort = parseInt(new RegExp(`0100007F:(\\S{4}) .* ${inode} `).exec(readFileSync(`/proc/${prepared.pid}/net/tcp`, 'utf8'))![1]!, 16)
  const answer = (fd: number, type: 'udp4' | 'udp6'): dgram.Socket => {
    const socket = dgram.createSocket(type)
    socket.on('message', (message, peer) => socket.send(`pong-${message}`, peer.port, peer.address))
    socket.bind({ fd })
    return socket
  }
  const sockets = [answer(prepared.dnsUdp4, 'udp4'), answer(prepared.dnsUdp6, 'udp6')]
  const servers = [prepared.dnsTcp4, prepared.dnsTcp6].map(fd => net.createServer(socket => socket.end()).listen({ fd }))
  // The daemon's copies of the relay's sockets are closed: the spawner's keep the place.
  closeSync(prepared.relay4)
  closeSync(prepared.relay6)
  writeFileSync(join(dir, `${cell.id}.in`), String(relayPort))
  spawner.go(cell.id)
  const { stdout } = await cell.ended
  for (const one of [...sockets, ...servers]) one.close()
  server.close()
  const lines = stdout.split('\n').filter(line => /^(connect|bind|udp|pong)/.test(line))
  t.same(lines, [
    'connect ECONNREFUSED', 'connect ECONNREFUSED', 'bind EADDRINUSE', 'bind ok', 'pong-ping udp ok', 'pong-ping udp ok', 'pong-ping udp ok', 'connect ok', 'connect ok', 'connect ok',
  ], stdout)
  t.match(stdout, /^ +lo$/m)
  t.notMatch(stdout, /^ *(eth|en|veth)/m)
  t.match(stdout, /^fd00000a0*1 /m)
  t.match(stdout, /192\.0\.2\.10/)
})

t.test('a tree is shown with one owner as the cell\'s 0, and what the cell makes is that owner\'s on the host', async t => {
  for (const owner of [{ uid: 0, gid: 0 }, { uid: 1234, gid: 2345 }]) {
    const work = mkdtempSync(join(dir, 'work-'))
    chownSync(work, owner.uid, owner.gid)
    writeFileSync(join(work, 'mine'), 'before\n')
    chownSync(join(work, 'mine'), owner.uid, owner.gid)
    writeFileSync(join(work, 'other'), 'secret\n', { mode: 0o600 })
    chownSync(join(work, 'other'), 4321, 4321)
    const fd = openSync(work, constants.O_RDONLY | constants.O_DIRECTORY)
    const bind = (idmap: boolean): Mount => ({ type: 'bind', source: fd, target: '/workspace', readonly: false, recursive: false, ...(idmap ? { idmapOwner: owner } : {}) })
    const script = 'stat -c %u:%g mine other .; echo after > mine; echo made > made; cat other; chown 5:5 mine; ln mine linked; mkdir sub'
    const { stdout, stderr } = await sh(script, { cwd: '/workspace', more: [bind(true)] })
    t.equal(stdout, '0:0\n65534:65534\n0:0\n')
    t.match(stderr, /other: Permission denied/)
    t.match(stderr, /chown: changing ownership of 'mine'/)
    t.equal(readFileSync(join(work, 'mine'), 'utf8'), 'after\n')
    for (const name of ['mine', 'made', 'sub']) t.match(statSync(join(work, name)), owner, name)
    const unmapped = await sh('echo x > made-unmapped', { cwd: '/', more: [bind(false)] })
    t.not(unmapped.exit.code, 0)
    chmodSync(work, 0o777)
    t.match((await sh('echo x > mine', { cwd: '/workspace', more: [bind(false)] })).stderr, /Permission denied/, 'without the mapping it is somebody else\'s')
    closeSync(fd)
  }
})

t.test('sources are opened with the caller\'s rights and along no link', async t => {
  const secret = mkdtempSync(join(dir, 'secret-'))
  mkdirSync(join(secret, 'inner'))
  writeFileSync(join(secret, 'inner/file'), 'inside\n')
  symlinkSync(secret, join(dir, 'link'))
  const bind = (source: string, extra: object = {}): Change => ({ more: [{ type: 'bind', source, target: '/shown', readonly: true, recursive: false, ...extra }] })
  const inner = join(secret, 'inner')
  t.equal((await sh('cat /shown/file', bind(inner))).stdout, 'inside\n', 'root may pass a 0700 folder')
  await t.rejects(sh('true', bind(inner, { asUser: { uid: 1000, gid: 1000 } })), { code: 'NATIVE', errno: os.errno.EACCES, syscall: `open ${inner}` })
  await t.rejects(sh('true', bind(inner, { optional: true, asUser: { uid: 1000, gid: 1000 } })), { code: 'NATIVE', errno: os.errno.EACCES }, 'what may not be seen is not what is missing')
  await t.rejects(sh('true', bind(join(dir, 'link'))), { code: 'NATIVE', errno: os.errno.ELOOP })
  await t.rejects(sh('true', bind(join(dir, 'link/inner'))), { code: 'NATIVE', errno: os.errno.ELOOP })
  await t.rejects(sh('true', bind(join(dir, 'missing'))), { code: 'NATIVE', errno: os.errno.ENOENT })
  t.equal((await sh('ls -d /shown || echo absent', bind(join(dir, 'missing'), { optional: true }))).stdout, 'absent\n')
  t.equal((await sh('cat /shown/file', bind(inner))).stdout, 'inside\n', 'the spawner is root again')
})

t.test('Landlock refuses what no rule allows, and the same acts work without it', async t => {
  const acts = 'cat /usr/share/common-licenses/BSD > /dev/null && echo read; ls /usr/share > /dev/null && echo list; echo x > /tmp/w && echo write; mkdir /tmp/d && mv /tmp/d /tmp/e && echo rename; ls / > /dev/null && echo root; /usr/bin/env true && echo exec; : > /tmp/w && echo truncate'
  t.equal((await sh(acts)).stdout, 'read\nlist\nwrite\nrename\nroot\nexec\ntruncate\n')
  const rules = (extra: { path: string; access: ('read' | 'write' | 'execute')[] }[]): Change => ({ landlock: { rules: [{ path: '/usr/lib', access: ['read', 'execute'] }, { path: '/lib64', access: ['read', 'execute'] }, { path: '/usr/bin', access: ['read'] }, ...['dash', 'cat', 'ls', 'mkdir', 'mv'].map(name => ({ path: `/usr/bin/${name}`, access: ['execute' as const] })), { path: '/dev/null', access: ['read', 'write'] }, { path: '/missing', access: ['read'] }, ...extra] } })
  const none = await run(['dash', '-c', acts], rules([]))
  t.equal(none.stdout, '', none.stderr)
  t.equal((await run(['dash', '-c', acts], rules([{ path: '/tmp', access: ['read', 'write'] }]))).stdout, 'write\nrename\ntruncate\n')
  t.equal((await run(['dash', '-c', acts], rules([{ path: '/', access: ['read'] }]))).stdout, 'read\nlist\nroot\n')
  t.equal((await run(['/usr/bin/env'], rules([]))).exit.code, 126, 'a command that may not be executed')
  t.match((await run(['dash', '-c', 'echo $(ls /)'], { landlock: { rules: [] } })).exit, { code: 126 })

  const work = mkdtempSync(join(dir, 'landlock-'))
  symlinkSync('/', join(work, 'everything'))
  const bind: Mount = { type: 'bind', source: work, target: '/workspace', readonly: false, recursive: false, idmapOwner: { uid: 0, gid: 0 } }
  t.equal((await run(['dash', '-c', acts], { ...rules([{ path: '/workspace/everything', access: ['read', 'write', 'execute'] }]), more: [bind] })).stdout, '', 'a link that the job left widens no rule')
})

t.test('a cell can make no user namespace, even where its filter lets it ask, unless the plan says so', async t => {
  const attempt = ['unshare', '--user', 'true']
  t.equal(spawnSync(attempt[0]!, attempt.slice(1)).status, 0, 'bare')
  t.match(await run(attempt, { userNamespaces: true }), { exit: { code: 0 } })
  t.match(await run(attempt), { exit: { code: 1 }, stderr: /No space left on device/ })
})

t.test('the seccomp filter is the last thing set: what it refuses was still done before', async t => {
  const instruction = (code: number, jt: number, jf: number, k: number): Buffer => {
    const bytes = Buffer.alloc(8)
    bytes.writeUInt16LE(code, 0)
    bytes.writeUInt8(jt, 2)
    bytes.writeUInt8(jf, 3)
    bytes.writeUInt32LE(k, 4)
    return bytes
  }
  // uname(2) is 63 on x86-64 and 160 on arm64; prctl, setresuid, landlock_restrict_self and capset are refused as well.
  const refused = process.arch === 'arm64' ? [160, 167, 147, 446, 91] : [63, 157, 117, 446, 126]
  const filter = Buffer.concat([
    instruction(0x20, 0, 0, 0), ...refused.map((number, i) => instruction(0x15, refused.length - i, 0, number)), instruction(0x06, 0, 0, 0x7fff0000), instruction(0x06, 0, 0, 0x00050000 | os.errno.EPERM),
  ])
  const rules = { rules: [{ path: '/', access: ['read' as const, 'execute' as const] }] }
  t.equal((await run(['probe', 'uname'])).stdout, 'uname ok\n')
  t.equal((await run(['probe', 'uname'], { seccomp: filter, landlock: rules })).stdout, 'uname EPERM\n')
  t.match((await run(['sh', '-c', 'grep ^Seccomp: /proc/self/status'], { seccomp: filter })).stdout, 'Seccomp:\t2\n')
  t.match((await run(['true'], { seccomp: instruction(0xffff, 0, 0, 0) })).exit, { code: null, signal: null, failed: { step: 'set the seccomp filter', errno: os.errno.EINVAL } })
})

t.test('a cell is in its groups from its first process on', async t => {
  const cell = await prepare(['sh', '-c', 'sleep 100 & sleep 100'])
  spawner.go(cell.id)
  t.ok(await settled(() => children(cell.prepared.pid).some(command => children(command).length > 0)))
  for (const pid of [String(cell.prepared.pid), children(cell.prepared.pid)[0]!]) {
    const groups = readFileSync(`/proc/${pid}/cgroup`, 'utf8')
    const ours = groups.split('\n').filter(line => line.endsWith(`/ambit-${process.pid}/${cell.id}`))
    t.ok(ours.some(line => line.startsWith('0::')), groups)
    if (cgroups.layout.startsWith('hybrid')) {
      t.ok(ours.some(line => /:([^:]*,)?memory(,[^:]*)?:/.test(line)), 'memory')
      t.ok(ours.some(line => /:([^:]*,)?pids(,[^:]*)?:/.test(line)), 'pids')
    }
  }
  // What its processes hold of the kernel's per-user quotas is charged to whoever made its namespace: not to the host's root.
  const owner = (pid: number | string): string => spawnSync('python3', ['-c', 'import array, fcntl, sys\nuid = array.array("I", [0])\nfcntl.ioctl(open(sys.argv[1]), 0xb704, uid)\nprint(uid[0])', `/proc/${pid}/ns/user`], { encoding: 'utf8' }).stdout.trim()
  const plain = spawn('unshare', ['--user', '--map-root-user', 'sleep', '100'])
  t.ok(await settled(() => readFileSync(`/proc/${plain.pid}/comm`, 'utf8') === 'sleep\n'))
  t.equal(owner(plain.pid!), '0', 'as root makes them elsewhere')
  plain.kill()
  const base = /^ *0 +(\d+)/.exec(readFileSync(`/proc/${cell.prepared.pid}/uid_map`, 'utf8'))![1]
  t.equal(owner(cell.prepared.pid), base)
  cgroups.killCell(cell.id)
  t.match((await cell.ended).exit, { code: null, signal: 9, failed: null })
})

t.test('an end that crosses with signals is told as it was', async t => {
  const ends: CellExit[] = []
  for (let i = 0; i < 40; i++) {
    const cell = await prepare(['sh', '-c', 'trap "" WINCH; exit 3'])
    spawner.go(cell.id)
    let ended = false
    void cell.ended.then(() => { ended = true })
    // What process 1 of the cell has not read when it ends must not hide what it said.
    while (!ended) {
      for (let n = 0; n < 400; n++) spawner.signal(cell.id, os.signals.SIGWINCH)
      await sleep(0)
    }
    ends.push((await cell.ended).exit)
  }
  t.same(ends.filter(({ code, failed }) => code !== 3 || failed !== null), [])
})

t.test('twenty cells at once, each its own; hundreds of mounts in one', async t => {
  const all = await Promise.all(Array.from({ length: 20 }, (_, i) => sh(`echo ${i}; exit ${i}`)))
  t.same(all.map(({ exit, stdout }) => [exit.code, stdout]), all.map((_, i) => [i, `${i}\n`]))
  const builder = rootBuilder([])
  builder.exposeHost()
  const binds = builder.mounts()
  const many = Array.from({ length: 300 }, (_, i): Mount => ({ type: 'bind', source: '/usr/share', target: `/many/${i}`, readonly: true, recursive: false }))
  const { exit, stdout } = await sh('ls /many | wc -l; ls -d /many/299/common-licenses; test -e /etc/passwd && echo etc', { mounts: [...binds, ...TMP, ...many] })
  t.match(exit, { code: 0, failed: null })
  t.equal(stdout, '300\n/many/299/common-licenses\netc\n')
})

t.test('a plan that cannot be is refused with its step, and nothing is left', async t => {
  const fds = (): number => readdirSync(`/proc/${spawnerPid}/fd`).length
  await run(['true'])
  const before = fds()
  const refused = async (change: Change, expected: object, name: string): Promise<void> => { await t.rejects(sh('true', change), { code: 'NATIVE', ...expected }, name) }
  const { EINVAL, ELOOP, ENOTDIR, ENOENT, EEXIST } = os.errno
  await refused({ ids: { base: 0, count: 65536 } }, { errno: EINVAL, syscall: /range of ids/ }, 'host root in the map')
  await refused({ ids: { base: 4294967290, count: 65536 } }, { errno: EINVAL }, 'a range beyond all ids')
  await refused({ uid: 65535 }, { errno: EINVAL }, 'cell-init\'s id')
  await refused({ more: [{ type: 'directory', target: '/a/../b', mode: 0o755 }] }, { errno: EINVAL }, 'a target with ..')
  await refused({ more: [{ type: 'directory', target: '/', mode: 0o755 }] }, { errno: EINVAL }, 'the root as target')
  await refused({ more: [{ type: 'file', target: '/x', content: '', mode: 0o4755 }] }, { errno: EINVAL }, 'a set-user-id file')
  await refused({ more: [{ type: 'tmpfs', target: '/lib/x', sizeBytes: 65536, mode: 0o755 }] }, { errno: ENOTDIR, syscall: 'walk to /lib/x' }, 'a target through a link')
  await refused({ more: [{ type: 'tmpfs', target: '/bin', sizeBytes: 65536, mode: 0o755 }] }, { errno: ELOOP }, 'a target that is a link')
  await refused({ more: [{ type: 'bind', source: dir, target: '/w', readonly: false, recursive: false }, { type: 'file', target: '/w/x', content: '', mode: 0o644 }] }, { errno: EINVAL, syscall: /which jobs can write/ }, 'a target in a tree that jobs write')
  await refused({ cgroups: { v2: '/tmp', v1: [] } }, { errno: EINVAL, syscall: /descriptor is of none/ }, 'a folder that is no cgroup')
  await refused({ cgroups: { v2: '/sys/fs/cgroup/none', v1: [] } }, { errno: ENOENT }, 'a missing cgroup')
  await refused({ more: [{ type: 'bind', source: '/proc/self', target: '/p', readonly: true, recursive: false }] }, { errno: ELOOP }, 'a magic link')
  await refused({ seccomp: Buffer.alloc(7) }, { errno: EINVAL }, 'half an instruction')
  await refused({ env: ['NOTHING'] }, { errno: EINVAL }, 'a variable without a value')
  await t.rejects(spawner.prepare({} as LaunchPlan), { message: 'LaunchPlan.id must be a string' })
  await t.rejects(sh('true', { mounts: [{ type: 'nfs', target: '/x' } as unknown as Mount] }), { message: /LaunchPlan\.mounts\[0\]\.type must be bind, overlay, tmpfs/ })
  await t.rejects(sh('true', { stdio: [0, 1, 987654] }), { code: 'NATIVE', errno: os.errno.EBADF })

  const cell = await prepare(['true'])
  const stdio = [0, 1, 2] as [number, number, number]
  const group = cgroups.createCell(`${cell.id}b`, null)
  await t.rejects(spawner.reserve({ id: cell.id, cgroups: group, ids: idsOf(199) }), { code: 'NATIVE', errno: EEXIST }, 'an id twice')
  await t.rejects(spawner.prepare(plan(['true'], {}, cell.id, 199, stdio)), { code: 'NATIVE', errno: EEXIST }, 'a plan twice')
  await t.rejects(spawner.prepare(plan(['true'], {}, 'unheard-of', 199, stdio)), { code: 'NATIVE', errno: os.errno.ESRCH })
  await t.rejects(spawner.reserve({ id: 'x', cgroups: { v2: dir, v1: [] }, ids: idsOf(199) }), { code: 'NATIVE', errno: EINVAL }, 'a folder that is no cgroup')
  await t.rejects(spawner.reserve({ id: 'x', cgroups: group, ids: { base: 0, count: 10 } }), { code: 'NATIVE', errno: EINVAL }, 'the host\'s root in the map')
  const reserved = await spawner.reserve({ id: `${cell.id}b`, cgroups: group, ids: idsOf(199) })
  t.throws(() => spawner.go(`${cell.id}b`), { code: 'NATIVE', errno: os.errno.ESRCH }, 'no plan yet')
  await t.rejects(spawner.prepare(plan(['true'], {}, `${cell.id}b`, 198, stdio)), { code: 'NATIVE', errno: EINVAL }, 'a plan for other ids')
  closeAll(reserved)
  await cgroups.removeCell(`${cell.id}b`)
  spawner.go(cell.id)
  await cell.ended
  t.equal(fds(), before, 'descriptors of the spawner')
  t.same(children(spawnerPid), [], 'processes')
})

t.test('whatever a plan holds, it is refused or runs, and the spawner serves the next', async t => {
  const path = fc.oneof(fc.constantFrom('/', '', 'x', '/a', '/a/b', '/proc', '/dev/x', '/usr/x', '/a/./b', '/a//b', `/${'n'.repeat(300)}`), fc.string().map(text => `/${text}`))
  const mode = fc.integer({ min: 0, max: 0o7777 })
  const mount: fc.Arbitrary<Mount> = fc.oneof(
    fc.record({ type: fc.constant('tmpfs' as const), target: path, sizeBytes: fc.nat(1 << 20), mode }),
    fc.record({ type: fc.constant('file' as const), target: path, content: fc.string(), mode }),
    fc.record({ type: fc.constant('symlink' as const), target: path, to: path }),
    fc.record({ type: fc.constant('directory' as const), target: path, mode }),
    fc.record({ type: fc.constant('bind' as const), source: path, target: path, readonly: fc.constant(true), recursive: fc.boolean(), optional: fc.boolean() }),
  )
  let ran = 0
  await fc.assert(fc.asyncProperty(fc.array(mount, { maxLength: 3 }), fc.constantFrom('/', '/a', ''), fc.array(fc.string(), { maxLength: 3 }), async (more, cwd, words) => {
    try {
      const { exit } = await run(['true', ...words], { more, cwd })
      if (exit.failed === null && exit.code === 0) ran++
      return exit.failed !== null || exit.code !== null || exit.signal !== null
    } catch (error) {
      return (error as { code?: string }).code === 'NATIVE'
    }
  }), { numRuns: 60 })
  t.ok(ran > 0, `${ran} ran`)
  t.equal((await run(['true'])).exit.code, 0)
  const binary = join(dir, 'decode-fuzz')
  const built = spawnSync('g++', ['-std=c++20', '-g', '-O1', '-fsanitize=address,undefined', '-fno-sanitize-recover=all', `-I${join(root, 'native')}`, '-o', binary, join(import.meta.dirname, 'decode-fuzz.cpp')], { encoding: 'utf8' })
  t.equal(built.status, 0, built.stderr)
  const seed = String(Date.now() % 1_000_000)
  const fuzzed = spawnSync(binary, [seed], { encoding: 'utf8' })
  t.equal(fuzzed.status, 0, `seed ${seed}: ${fuzzed.stdout}${fuzzed.stderr}`)
})

t.test('nothing is left after an end with orphans, a kill while waiting, a kill while running', async t => {
  const fds = (): number => readdirSync(`/proc/${spawnerPid}/fd`).length
  const own = (): number => readdirSync('/proc/self/fd').length
  await run(['true'])
  const before = { fds: fds(), own: own(), mounts: readFileSync('/proc/self/mountinfo', 'utf8').split('\n').filter(line => line.includes(dir)).length }
  for (let i = 0; i < 5; i++) t.equal((await run(['probe', 'orphans'])).exit.code, 0)
  const waits = await prepare(['true'])
  cgroups.killCell(waits.id)
  t.match((await waits.ended).exit, { code: null, signal: 9, failed: null }, 'killed before it was let go')
  t.same(children(spawnerPid), [])
  t.same({ fds: fds(), own: own(), mounts: readFileSync('/proc/self/mountinfo', 'utf8').split('\n').filter(line => line.includes(dir)).length }, before)
  t.same(readdirSync(cgroups.parentV2, { withFileTypes: true }).filter(entry => entry.isDirectory()), [])
  t.ok([...exits.values()].every(list => list.length === 1), 'each end was told once')
})

t.test('a spawner that is killed takes its cells along, and each end is told', async t => {
  const second = start()
  const cell = await prepare(['sh', '-c', 'setsid sleep 1000 & sleep 1000'], {}, second.spawner)
  const idle = await prepare(['true'], {}, second.spawner)
  second.spawner.go(cell.id)
  const init = cell.prepared.pid
  await settled(() => children(init).length === 1)
  process.kill(Number(second.pid), 'SIGKILL')
  const ends = await Promise.all([cell.ended, idle.ended])
  t.match(ends.map(({ exit }) => exit.failed), [{ step: /ambit-spawner/ }, { step: /ambit-spawner/ }])
  t.notOk(alive(init))
  await t.rejects(prepare(['true'], {}, second.spawner), { code: 'NATIVE' })
  t.throws(() => second.spawner.go(cell.id), { code: 'NATIVE' })
  second.spawner.close()
  second.spawner.close()

  const third = start()
  const last = await prepare(['sleep', '1000'], {}, third.spawner)
  third.spawner.go(last.id)
  third.spawner.close()
  t.match((await last.ended).exit, { code: null, signal: 9, failed: null }, 'close ends what is left')
  t.ok(await settled(() => !alive(third.pid)))
  t.throws(() => new (native().Spawner)('/nonexistent', join(release, 'ambit-init'), onExit), { code: 'NATIVE', errno: os.errno.ENOENT })
  const lame = new (native().Spawner)(join(release, 'ambit-spawner'), dir, onExit)
  await t.rejects(prepare(['true'], {}, lame), { code: 'NATIVE' }, 'an init that cannot be read is told at the first cell')
  lame.close()
})

t.test('a daemon that is killed takes spawner and cells along', async t => {
  const group = cgroups.createCell('orphaned', null)
  const script = join(dir, 'daemon.cjs')
  writeFileSync(script, `
    const { Spawner } = require(${JSON.stringify(join(release, 'ambit.node'))})
    const spawner = new Spawner(${JSON.stringify(join(release, 'ambit-spawner'))}, ${JSON.stringify(join(release, 'ambit-init'))}, () => {})
    const plan = ${JSON.stringify(plan(['sleep', '1000'], {}, 'orphaned', 0, [0, 1, 2]))}
    spawner.reserve({ id: 'orphaned', cgroups: ${JSON.stringify({ v2: group.v2, v1: group.v1 })}, ids: plan.ids })
      .then(cell => spawner.prepare(plan).then(() => { spawner.go('orphaned'); console.log(cell.pid) }))`)
  const child = spawn(process.execPath, [script], { stdio: ['ignore', 'pipe', 'inherit'] })
  const init = Number(await new Promise(resolve => child.stdout.once('data', resolve)))
  const [lone] = children(child.pid!).filter(pid => comm(pid) === 'ambit-spawner')
  await settled(() => children(init).length === 1)
  t.ok(alive(init) && alive(lone!))
  child.kill('SIGKILL')
  t.ok(await settled(() => !alive(init) && !alive(lone!)))
  await cgroups.removeCell('orphaned')
})
