import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'

// The product as its users meet it: bin/ambit and one daemon, real cells, real evidence.
const root = join(import.meta.dirname, '../..')
const ambit = join(root, 'bin/ambit')
const dir = mkdtempSync(join(tmpdir(), 'ambit-test-'))
const socket = join(dir, 'state/ambit.sock')
const work = join(dir, 'work')
mkdirSync(join(dir, 'state'), { mode: 0o700 })
mkdirSync(work)

const daemon = spawn(process.execPath, [join(root, 'dist/cli/main.js'), 'daemon', '--state', join(dir, 'state'), '--socket', socket, '--feed-port', '0', '--log-level', 'warn'], { stdio: ['ignore', 'inherit', 'inherit'] })
t.before(async () => {
  for (let i = 0; i < 1000 && !existsSync(join(dir, 'state/daemon.json')); i++) await sleep(20)
})
t.teardown(async () => {
  const gone = new Promise(resolve => daemon.once('exit', resolve))
  daemon.kill('SIGTERM')
  await gone
  rmSync(dir, { recursive: true, force: true })
})

let contracts = 0
function contract(spec: string, mode = 'enforce', ttl = '30s'): string {
  const file = join(dir, `contract-${contracts++}.yaml`)
  writeFileSync(file, `apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: test }\nspec:\n  mode: ${mode}\n  ttl: ${ttl}\n  workspace: shared\n${spec.replace(/^/gm, '  ')}\n`)
  return file
}
const SHELL = contract(`authority:
  filesystem: { read: [/usr/lib, /usr/bin], write: [/workspace, /tmp] }
  exec: ['*']
  syscall: { profile: build }`)
const OPEN = contract(`authority:
  network: [{ host: '*', port: '*' }]
  filesystem: { read: [/], write: [/workspace, /tmp] }
  exec: ['*']
  syscall: { profile: build }`, 'observe')

/** As `run`, while this process goes on serving. */
async function runAsync(contractFile: string, command: string[]): Promise<{ status: number | null }> {
  const child = spawn(join(root, 'build/Release/ambit-client'), ['run', '--socket', socket, '--contract', contractFile, '--', ...command], { cwd: work, stdio: ['ignore', 'ignore', 'inherit'] })
  return { status: await new Promise(resolve => child.once('close', resolve)) }
}

let bundles = 0
function run(contractFile: string, command: string[], options: { input?: string; evidence?: string; env?: Record<string, string> } = {}): { status: number | null; stdout: string; stderr: string } {
  const args = ['run', '--socket', socket, '--contract', contractFile, ...(options.evidence ? ['--evidence', options.evidence] : []), '--', ...command]
  return spawnSync(join(root, 'build/Release/ambit-client'), args, { cwd: work, input: options.input ?? '', encoding: 'utf8', env: { ...process.env, ...options.env } })
}
const bundle = (): string => join(dir, `bundle-${bundles++}`)
type Row = { kind: string; grant: string; outcome: string; proof: string }
function rows(evidence: string): Row[] {
  const { status, stdout, stderr } = spawnSync(ambit, ['verdict', evidence, '--json'], { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return (JSON.parse(stdout) as { rows: Row[] }).rows
}
// Groups are counted, not named: the cells that are made ahead are others each time.
const traces = (): object => ({
  cgroups: ['/sys/fs/cgroup', ...readdirSync('/sys/fs/cgroup').map(name => join('/sys/fs/cgroup', name))].map(parent => join(parent, `ambit-${daemon.pid}`)).filter(existsSync)
    .flatMap(parent => readdirSync(parent, { withFileTypes: true }).filter(entry => entry.isDirectory())).length,
  mounts: readFileSync('/proc/self/mountinfo', 'utf8').split('\n').length,
  descriptors: readdirSync(`/proc/${daemon.pid}/fd`).length,
  inits: spawnSync('pgrep', ['-c', '-f', 'marker-of-ambit-test'], { encoding: 'utf8' }).stdout.trim(),
})

t.test('input, output, errors and the exit status pass through unchanged', async t => {
  const { status, stdout, stderr } = run(SHELL, ['sh', '-c', 'cat; echo problem >&2; exit 7'], { input: 'given' })
  t.equal(status, 7)
  t.equal(stdout, 'given')
  t.equal(stderr, 'problem\n')
  t.equal(run(SHELL, ['sh', '-c', 'kill -9 $$']).status, 137, 'died by a signal: 128 and its number')
  t.equal(run(SHELL, ['no-such-command']).status, 127)
})

t.test('signals to the client reach the command', async t => {
  const child = spawn(join(root, 'build/Release/ambit-client'), ['run', '--socket', socket, '--contract', SHELL, '--', 'sh', '-c', 'trap "echo got TERM; exit 3" TERM; echo ready; while :; do sleep 0.05; done'], { cwd: work, stdio: ['ignore', 'pipe', 'inherit'] })
  let out = ''
  child.stdout.on('data', chunk => { out += chunk; if (String(chunk).includes('ready')) child.kill('SIGTERM') })
  const code = await new Promise(resolve => child.once('close', resolve))
  t.equal(code, 3)
  t.match(out, /got TERM/)
})

t.test('a cell is what it says: own ids, no capabilities, no route out, nothing of the host that it did not declare', async t => {
  const { stdout } = run(SHELL, ['sh', '-c', 'id -u; grep -E "^(CapEff|CapBnd|NoNewPrivs|Seccomp):" /proc/self/status; cat /proc/self/uid_map; cat /proc/1/comm; ls /; cat /proc/net/dev'])
  t.match(stdout, /^0\n/)
  t.match(stdout, /CapBnd:\t0000000000000000/)
  t.match(stdout, /CapEff:\t0000000000000000/)
  t.match(stdout, /NoNewPrivs:\t1/)
  t.match(stdout, /Seccomp:\t2/)
  t.notMatch(stdout, /^ +0 +0 /m, 'host root is not mapped')
  t.notMatch(stdout, /^(home|root|var|sys|boot)$/m)
  t.notMatch(stdout, /^ *(eth|en|veth)/m)
})

t.test('what the cell writes into the workspace belongs to who asked for it', async t => {
  t.equal(run(SHELL, ['sh', '-c', 'echo made > made.txt']).status, 0)
  t.equal(readFileSync(join(work, 'made.txt'), 'utf8'), 'made\n')
  t.equal(statSync(join(work, 'made.txt')).uid, 0)
})

t.test('no set-user-id file can be left in the workspace of whoever called, root perhaps', async t => {
  const script = join(work, 'setid.py')
  writeFileSync(script, `import os, sys
made = []
def attempt(name, act):
    try:
        act()
        made.append(name)
    except OSError as error:
        print(name, error.strerror)
open('chmod', 'w').close()
attempt('chmod', lambda: os.chmod('chmod', 0o4755))
attempt('fchmod', lambda: os.fchmod(os.open('fchmod', os.O_CREAT | os.O_WRONLY), 0o4755))
attempt('open', lambda: os.open('open', os.O_CREAT | os.O_WRONLY, 0o4755))
attempt('tmpfile', lambda: os.open('.', os.O_TMPFILE | os.O_WRONLY, 0o4755))
attempt('mknod', lambda: os.mknod('mknod', 0o104755))
attempt('setgid', lambda: os.chmod('chmod', 0o2755))
print('made', *made)
`)
  const names = ['chmod', 'fchmod', 'open', 'mknod']
  const clean = (): void => { for (const name of names) rmSync(join(work, name), { force: true }) }
  const bare = spawnSync('python3', [script], { cwd: work, encoding: 'utf8' })
  t.match(bare.stdout, /^made chmod fchmod open tmpfile mknod setgid$/m, 'bare')
  t.ok(names.some(name => (statSync(join(work, name)).mode & 0o4000) !== 0))
  clean()
  const evidence = bundle()
  const { stdout, stderr } = run(OPEN, ['python3', 'setid.py'], { evidence })
  t.match(stdout, /^made$/m, stderr)
  for (const name of readdirSync(work)) t.equal(statSync(join(work, name)).mode & 0o6000, 0, name)
  t.ok(rows(evidence).some(row => row.kind === 'syscall' && row.outcome === 'denied' && row.grant.startsWith('chmod')))
  clean()
})

t.test('a file outside the contract can be read bare, not in the cell, and the evidence says denied', async t => {
  const neighbour = mkdtempSync('/var/tmp/ambit-neighbour-')
  t.teardown(() => rmSync(neighbour, { recursive: true }))
  chmodSync(neighbour, 0o755)
  writeFileSync(join(neighbour, 'secret.txt'), 'not yours\n', { mode: 0o644 })
  const attack = ['cat', join(neighbour, 'secret.txt')]
  t.equal(spawnSync(attack[0]!, attack.slice(1), { encoding: 'utf8' }).stdout, 'not yours\n', 'bare')
  const observed = bundle()
  t.equal(run(OPEN, attack, { evidence: observed }).stdout, 'not yours\n', 'observe mode denies nothing')
  t.match(rows(observed).filter(row => row.kind === 'filesystem'), [{ outcome: 'used' }])
  const evidence = bundle()
  const held = run(SHELL, attack, { evidence })
  t.not(held.status, 0)
  t.equal(held.stdout, '')
  t.ok(rows(evidence).some(row => row.kind === 'filesystem' && row.outcome === 'denied' && row.grant.includes(neighbour)), 'denied in evidence')
})

t.test('a program outside the contract runs bare, not in the cell', async t => {
  const NARROW = contract(`authority:
  filesystem: { read: [/usr/lib], write: [/workspace, /tmp] }
  exec: [/usr/bin/bash, /usr/bin/cat]
  syscall: { profile: build }`)
  t.equal(spawnSync('env', ['true']).status, 0, 'bare')
  const evidence = bundle()
  t.not(run(NARROW, ['bash', '-c', 'exec /usr/bin/env true'], { evidence }).status, 0)
  t.ok(rows(evidence).some(row => row.kind === 'exec' && row.outcome === 'denied' && row.grant.includes('/usr/bin/env')))
  t.equal(run(NARROW, ['bash', '-c', 'cat /proc/self/comm']).stdout, 'cat\n', 'what is declared runs')
})

t.test('a syscall outside the profile works bare, not in the cell', async t => {
  const attempt = ['unshare', '--user', '--map-root-user', 'true']
  t.equal(spawnSync(attempt[0]!, attempt.slice(1)).status, 0, 'bare')
  const evidence = bundle()
  t.not(run(SHELL, attempt, { evidence }).status, 0)
  t.ok(rows(evidence).some(row => row.kind === 'syscall' && row.outcome === 'denied' && row.grant.includes('unshare')))
})

t.test('nothing is left after a normal end, a ttl, a killed client', async t => {
  // What the daemon opens once and keeps is opened now.
  for (let i = 0; i < 3; i++) run(SHELL, ['sh', '-c', 'sleep 1000 & exit 0'])
  // Longer than the probes stay attached after the last cell.
  await sleep(2500)
  const before = traces()
  const settled = async (name: string): Promise<void> => {
    // The daemon closes what a client sent on another thread.
    for (let i = 0; i < 200 && JSON.stringify(traces()) !== JSON.stringify(before); i++) await sleep(50)
    t.same(traces(), before, name)
  }
  for (let i = 0; i < 5; i++) run(SHELL, ['sh', '-c', 'sleep 1000 & exit 0'])
  await settled('normal ends, with an orphan each')
  const short = contract(`authority:
  filesystem: { read: [/usr/lib, /usr/bin], write: [/tmp] }
  exec: ['*']
  syscall: { profile: build }`, 'enforce', '1s')
  t.equal(run(short, ['sh', '-c', 'trap "" TERM; while :; do sleep 0.1; done # marker-of-ambit-test']).status, 124, 'its time was over, and TERM did not help')
  await settled('ttl')
  const child = spawn(join(root, 'build/Release/ambit-client'), ['run', '--socket', socket, '--contract', SHELL, '--', 'sh', '-c', 'echo up; sleep 1000 # marker-of-ambit-test'], { cwd: work, stdio: ['ignore', 'pipe', 'ignore'] })
  await new Promise(resolve => child.stdout.once('data', resolve))
  child.kill('SIGKILL')
  await settled('killed client')
})

t.test('a link that a job plants on a granted path does not lead a later cell to the host', async t => {
  const victim = mkdtempSync('/var/tmp/ambit-victim-')
  const tree = mkdtempSync('/var/tmp/ambit-tree-')
  t.teardown(() => { for (const path of [victim, tree]) rmSync(path, { recursive: true }) })
  for (const path of [victim, tree]) chmodSync(path, 0o755)
  writeFileSync(join(victim, 'file'), 'untouched\n')
  mkdirSync(join(tree, 'cache'))
  const cache = contract(`authority:
  filesystem: { read: [/usr/lib, /usr/bin], write: [${tree}] }
  exec: ['*']
  syscall: { profile: build }`)
  const inner = (right: string): string => contract(`authority:
  filesystem: { read: [/usr/lib, /usr/bin${right === 'read' ? `, ${tree}/cache` : ''}], write: [${right === 'write' ? `${tree}/cache` : ''}] }
  exec: ['*']
  syscall: { profile: build }`)
  const write = ['sh', '-c', `echo changed > ${tree}/cache/file`]
  t.equal(run(inner('write'), write).status, 0, 'before the link the grant works')
  t.equal(run(cache, ['sh', '-c', `mv ${tree}/cache ${tree}/old && ln -s ${victim} ${tree}/cache`]).status, 0, 'the job plants it')
  t.equal(spawnSync('cat', [`${tree}/cache/file`], { encoding: 'utf8' }).stdout, 'untouched\n', 'bare, it leads there')
  const held = run(inner('write'), write)
  t.not(held.status, 0)
  t.match(held.stderr, /link/)
  t.match(run(inner('read'), ['cat', `${tree}/cache/file`]).stderr, /is a link/)
  t.equal(readFileSync(join(victim, 'file'), 'utf8'), 'untouched\n')
})

t.test('nothing is executed where a job can write, from memory, or through the loader, unless the contract says so', async t => {
  writeFileSync(join(work, 'memfd.py'), 'import os, sys\nfd = os.memfd_create("x", 0)\nos.write(fd, open("/usr/bin/true", "rb").read())\nos.execve(fd, ["true"], {})\n')
  const lists = (exec: string): string => contract(`authority:
  filesystem: { read: [/usr/lib, /usr/bin], write: [/workspace, /tmp] }
  exec: [${exec}]
  syscall: { profile: build }`)
  const python = spawnSync('readlink', ['-f', '/usr/bin/python3'], { encoding: 'utf8' }).stdout.trim()
  const narrow = lists(`/usr/bin/bash, /usr/bin/cp, ${python}`)
  const wide = lists('"*"')
  for (const attack of ['cp /usr/bin/true here && ./here', 'cp /usr/bin/true /tmp/here && /tmp/here', 'cp /usr/bin/true here && /lib64/ld-linux-x86-64.so.2 ./here', 'cp /usr/bin/true /dev/shm/here && /lib64/ld-linux-x86-64.so.2 /dev/shm/here', 'exec python3 memfd.py']) {
    t.equal(run(wide, ['bash', '-c', attack]).status, 0, `${attack}: works where any program is granted`)
    t.not(run(narrow, ['bash', '-c', attack]).status, 0, attack)
  }
  t.not(run(wide, ['bash', '-c', 'cp /usr/bin/true /dev/here && /lib64/ld-linux-x86-64.so.2 /dev/here']).status, 0, 'among the devices nothing is ever executed')
  t.equal(run(lists('/usr/bin/bash, /usr/bin/cp, /workspace/here'), ['bash', '-c', 'cp /usr/bin/true here && ./here']).status, 0, 'what the job builds can be granted')
})

t.test('a directory is no standard input, and the daemon\'s own folder no workspace', async t => {
  const client = join(root, 'build/Release/ambit-client')
  const go = (options: object): { status: number | null; stderr: string } => spawnSync(client, ['run', '--socket', socket, '--contract', SHELL, '--', 'true'], { cwd: work, encoding: 'utf8', ...options })
  t.equal(go({}).status, 0)
  const etc = openSync('/etc', 'r')
  t.match(go({ stdio: [etc, 'pipe', 'pipe'] }), { status: 2, stderr: /standard input is a directory/ })
  closeSync(etc)
  t.match(go({ cwd: dir }), { status: 2, stderr: /holds the daemon's own/ })
})

t.test('only the granted part of the workspace can be changed', async t => {
  mkdirSync(join(work, 'out'), { recursive: true })
  writeFileSync(join(work, 'source.txt'), 'source\n')
  const part = contract(`authority:
  filesystem: { read: [/usr/lib, /usr/bin, /workspace], write: [/workspace/out] }
  exec: ['*']
  syscall: { profile: build }`)
  t.equal(run(part, ['sh', '-c', 'cat source.txt > out/copy']).status, 0)
  t.equal(readFileSync(join(work, 'out/copy'), 'utf8'), 'source\n')
  for (const act of ['echo x > source.txt', 'chmod 777 source.txt', 'touch -d 2001-01-01 source.txt', 'mv source.txt out/']) {
    t.not(run(part, ['sh', '-c', act]).status, 0, act)
    t.equal(run(SHELL, ['sh', '-c', `${act}; cp out/copy source.txt`]).status, 0, `${act}: works where the whole is granted`)
  }
})

t.test('connections that nobody reads do not outlive their cell in the daemon', async t => {
  // What the daemon cuts is reset.
  const server = createServer(socket => socket.on('error', () => {}).pause()).listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  writeFileSync(join(work, 'many.py'), `import socket
held = [socket.create_connection(('deaf.test', ${port})) for _ in range(50)]
for one in held: one.sendall(b'GET / HTTP/1.1\\r\\nHost: deaf.test\\r\\n\\r\\n')
`)
  const deaf = contract(`hosts: { deaf.test: 127.0.0.1 }
authority:
  network: [{ host: deaf.test, port: ${port} }]
  filesystem: { read: [/usr/lib, /usr/bin, /etc], write: [/workspace, /tmp] }
  exec: ['*']
  syscall: { profile: build }`)
  const count = (): number => readdirSync(`/proc/${daemon.pid}/fd`).length
  const before = count()
  t.equal((await runAsync(deaf, ['python3', 'many.py'])).status, 0)
  for (let i = 0; i < 100 && count() > before + 5; i++) await sleep(50)
  t.ok(count() <= before + 5, `${count()} descriptors, ${before} before`)
})

t.test('limits hold: a memory bomb ends, and the verdict knows why', async t => {
  const small = contract(`limits: { memory: 64MiB, pids: 20 }
authority:
  filesystem: { read: [/usr/lib, /usr/bin, /usr/share/perl, /etc], write: [/tmp] }
  exec: ['*']
  syscall: { profile: build }`)
  const evidence = bundle()
  const { status } = run(small, ['perl', '-e', '$x = "a" x (300 * 1024 * 1024); print length $x'], { evidence })
  t.not(status, 0)
  t.match(readFileSync(join(evidence, 'events.jsonl'), 'utf8'), /"limit":"memory"/)
  t.match(run(small, ['sh', '-c', 'for i in $(seq 40); do sleep 1 & done; wait']).stderr, /fork/i, 'forks beyond the limit fail')
})

t.test('the caller\'s environment stays outside but for what the contract lists', async t => {
  const passing = contract(`environment: { pass: [WANTED], set: { FIXED: "yes" } }
authority:
  filesystem: { read: [/usr/lib, /usr/bin], write: [] }
  exec: ['*']
  syscall: { profile: build }`)
  const { stdout } = run(passing, ['env'], { env: { WANTED: '1', AWS_SECRET_ACCESS_KEY: 'leak' } })
  t.match(stdout, /^WANTED=1$/m)
  t.match(stdout, /^FIXED=yes$/m)
  t.notMatch(stdout, /leak/)
})

t.test('a bundle verifies, and no longer does once anything is changed', async t => {
  const evidence = bundle()
  run(OPEN, ['true'], { evidence })
  t.equal(spawnSync(ambit, ['verify', evidence]).status, 0)
  t.equal(spawnSync(ambit, ['verify', evidence, '--key', join(evidence, 'public-key.pem')]).status, 0)
  const log = join(evidence, 'events.jsonl')
  const lines = readFileSync(log, 'utf8').split('\n')
  writeFileSync(log, [...lines.slice(0, 2), ...lines.slice(3)].join('\n'))
  t.equal(spawnSync(ambit, ['verify', evidence]).status, 1, 'a record dropped')
  t.equal(spawnSync(ambit, ['verdict', evidence]).status, 1, 'and it is not judged either')
})

t.test('a bad contract is refused with its place, and nothing is made', async t => {
  const bad = join(dir, 'bad.yaml')
  writeFileSync(bad, 'apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: enforce\n  ttl: 1m\n  wrokspace: shared\n')
  const evidence = bundle()
  const { status, stderr } = run(bad, ['true'], { evidence })
  t.equal(status, 2)
  t.match(stderr, /bad\.yaml:7/)
  t.match(stderr, /workspace/, 'the close spelling is named')
  t.same(existsSync(evidence) ? readdirSync(evidence) : [], [])
})

t.test('syscalls are counted with what became of them', async t => {
  const evidence = bundle()
  run(OPEN, ['sh', '-c', 'cat /etc/hostname /nonexistent; exit 0'], { evidence })
  const records = readFileSync(join(evidence, 'events.jsonl'), 'utf8').trim().split('\n').map(line => JSON.parse(line))
  const calls = records.find(record => record.type === 'syscalls').calls as { name: string; succeeded: number; failed: number; unfinished: number }[]
  const call = (name: string) => calls.find(one => one.name === name)!
  t.ok(call('openat').succeeded >= 2)
  t.ok(call('openat').failed >= 1)
  t.ok(call('exit_group').unfinished >= 2)
  t.notOk(calls.some(one => one.name === 'pivot_root' || one.name === 'mount'), 'what cell-init does is not the job\'s')
  const unknown = bundle()
  run(SHELL, ['python3', '-c', 'import ctypes; ctypes.CDLL(None).syscall(5000)'], { evidence: unknown })
  const told = rows(unknown).filter(row => row.kind === 'syscall')
  t.ok(told.some(row => row.outcome === 'denied' && row.grant === '#5000'))
  t.notOk(told.some(row => row.outcome === 'unobservable'), 'what the filter stopped leaves nothing open')
  t.ok(records.some(record => record.type === 'exec' && /\/cat$/.test(record.path)))
  t.ok(records.filter(record => record.type === 'loss').every(record => record.produced === record.delivered + record.dropped))
  t.equal(records.at(-1).type, 'cell.ended')
})
