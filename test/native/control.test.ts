import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { closeSync, existsSync, fstatSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { native, type NativeControl, type PeerCredentials } from '../../src/native.ts'

const MAX_MESSAGE = 256 * 1024
const dir = mkdtempSync(join(tmpdir(), 'ambit-control-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

type Message = { connection: number; peer: PeerCredentials; message: Buffer; fds: number[] }
type Server = { control: NativeControl; path: string; messages: Message[]; closed: number[]; until(what: () => boolean): Promise<void> }
let sockets = 0

function serve(options: { mode?: number; gid?: number; path?: string; onMessage?: (message: Message, control: NativeControl) => void } = {}): Server {
  const path = options.path ?? join(dir, `s${sockets++}`)
  const messages: Message[] = []
  const closed: number[] = []
  const control: NativeControl = new (native().Control)(path, options.mode ?? 0o600, options.gid ?? 0, (connection, peer, message, fds) => {
    messages.push({ connection, peer, message, fds })
    options.onMessage?.(messages.at(-1)!, control)
  }, connection => closed.push(connection))
  const until = async (what: () => boolean): Promise<void> => {
    for (let i = 0; i < 1000 && !what(); i++) await sleep(10)
    if (!what()) throw new Error('what was waited for did not come')
  }
  return { control, path, messages, closed, until }
}

// Debian's own: another user may not reach what a version manager put first on PATH.
const PYTHON3 = '/usr/bin/python3'

/** A client in Python, which has both SOCK_SEQPACKET and descriptor passing; it reads commands on its input. */
const PYTHON = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
s.connect(sys.argv[1])
print('connected', flush=True)
for line in sys.stdin:
    word, *rest = line.split()
    try:
        if word == 'send': print('sent', s.send(b'x' * int(rest[0])), flush=True)
        if word == 'fds': print('sent', socket.send_fds(s, [b'fds'], [0] * int(rest[0])), flush=True)
        if word == 'file': print('sent', socket.send_fds(s, [b'file'], [os.open(rest[0], os.O_WRONLY)]), flush=True)
        if word == 'read': print('read', len(s.recv(1 << 20)), flush=True)
        if word == 'exit': break
    except OSError as error: print('error', error.strerror, flush=True)
`
type Client = { child: ChildProcess; ask(line: string): Promise<string>; end(): Promise<void> }
async function connect(path: string, prefix: string[] = []): Promise<Client> {
  const child = spawn(prefix[0] ?? PYTHON3, [...prefix.slice(1), ...(prefix.length > 0 ? [PYTHON3] : []), '-c', PYTHON, path], { stdio: ['pipe', 'pipe', 'pipe'] })
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]()
  let complaint = ''
  child.stderr!.on('data', chunk => { complaint += chunk })
  const line = async (): Promise<string> => {
    const next = await lines.next()
    return next.done === true ? complaint : next.value
  }
  const first = await line()
  if (first !== 'connected') throw new Error(first)
  return {
    child,
    ask: text => {
      child.stdin!.write(`${text}\n`)
      return line()
    },
    end: async () => {
      const gone = new Promise(resolve => child.once('exit', resolve))
      child.stdin!.end()
      await gone
    },
  }
}
const descriptors = (): string[] => readdirSync('/proc/self/fd').map(fd => { try { return `${fd} ${fstatSync(Number(fd)).ino}` } catch { return '' } }).filter(Boolean)

t.test('the socket has its mode and group from the first moment, whatever the umask is', async t => {
  const before = process.umask(0)
  t.teardown(() => process.umask(before))
  const { control, path } = serve({ mode: 0o660, gid: 4242 })
  const { mode, gid, uid } = statSync(path)
  t.equal(mode & 0o777, 0o660)
  t.equal(gid, 4242)
  t.equal(uid, 0)
  control.close()
  t.notOk(existsSync(path), 'close takes it away')

  const probe = join(dir, 'trace.mjs')
  writeFileSync(probe, `import { createRequire } from 'node:module'
const { Control } = createRequire(import.meta.url)(${JSON.stringify(join(import.meta.dirname, '../../build/Release/ambit.node'))})
process.umask(0)
new Control(${JSON.stringify(join(dir, 'traced'))}, 0o600, 0, () => {}, () => {}).close()`)
  const { stderr } = spawnSync('strace', ['-f', '-e', 'trace=fchmod,bind,fchownat,chmod,listen', process.execPath, probe], { encoding: 'utf8' })
  const calls = [...stderr.matchAll(/^(?:\[pid +\d+\] )?(\w+)\(/gm)].map(match => match[1])
  t.same(calls.slice(calls.indexOf('fchmod')), ['fchmod', 'bind', 'fchownat', 'chmod', 'listen'], 'made without any rights; nobody can connect before the end')
  t.match(stderr, /fchmod\(\d+, 000\) += 0/)
})

t.test('peers are who the kernel says they are, and who has no right does not get in', async t => {
  const { control, path, messages, until } = serve({ mode: 0o660, gid: 4242 })
  t.teardown(() => control.close())
  spawnSync('chmod', ['755', dir])
  const own = await connect(path)
  const other = await connect(path, ['setpriv', '--reuid', '54321', '--regid', '4242', '--clear-groups'])
  await own.ask('send 3')
  await other.ask('send 3')
  await until(() => messages.length === 2)
  t.same(messages[0]!.peer, { pid: own.child.pid, uid: 0, gid: 0 })
  t.same(messages[1]!.peer, { pid: other.child.pid, uid: 54321, gid: 4242 })
  await t.rejects(connect(path, ['setpriv', '--reuid', '54321', '--regid', '54321', '--clear-groups']), /Permission denied/)
  await own.end()
  await other.end()
})

t.test('descriptors arrive as they were sent, and are closed on exec', async t => {
  const { control, path, messages, until } = serve()
  t.teardown(() => control.close())
  const target = join(dir, 'target')
  writeFileSync(target, '')
  const client = await connect(path)
  t.equal(await client.ask(`file ${target}`), 'sent 4')
  await until(() => messages.length === 1)
  const [fd] = messages[0]!.fds
  t.equal(fstatSync(fd!).ino, statSync(target).ino)
  t.match(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'), /flags:\s+0?[0-7]*2[0-7]{6}\n/, 'O_CLOEXEC')
  writeSync(fd!, 'through it')
  t.equal(readFileSync(target, 'utf8'), 'through it')
  closeSync(fd!)
  t.equal(await client.ask('fds 8'), 'sent 3')
  await until(() => messages.length === 2)
  t.equal(messages[1]!.fds.length, 8)
  for (const one of messages[1]!.fds) closeSync(one)
  await client.end()
})

t.test('what exceeds a limit is refused, its descriptors are closed, and nobody else is harmed', async t => {
  const { control, path, messages, closed, until } = serve()
  t.teardown(() => control.close())
  const bystander = await connect(path)
  await bystander.ask('send 1')
  await until(() => messages.length === 1)
  const before = descriptors()
  const largest = await connect(path)
  t.equal(await largest.ask(`send ${MAX_MESSAGE}`), `sent ${MAX_MESSAGE}`)
  await until(() => messages.length === 2)
  t.equal(messages[1]!.message.length, MAX_MESSAGE, 'the largest message passes')
  await largest.end()
  for (const [index, excess] of [`send ${MAX_MESSAGE + 1}`, 'fds 9', 'fds 100', 'send 0'].entries()) {
    const client = await connect(path)
    t.match(await client.ask(excess), /^sent/, `${excess}: the kernel takes it`)
    await until(() => closed.length === index + 2)
    t.equal(await client.ask('read'), 'read 0', 'the connection was ended')
    await client.end()
  }
  t.equal(messages.length, 2, 'none of them was handed over')
  t.same(descriptors(), before)
  t.equal(await bystander.ask('send 2'), 'sent 2')
  await until(() => messages.length === 3)
  t.throws(() => control.send(messages[0]!.connection, Buffer.alloc(MAX_MESSAGE + 1)), { code: 'NATIVE', syscall: 'send' })
  t.throws(() => control.send(messages[0]!.connection, Buffer.alloc(0)), TypeError)
  await bystander.end()
})

t.test('a client that never reads is let go and costs the others nothing', async t => {
  const { control, path, messages, closed, until } = serve({ onMessage: ({ connection, message }, control) => { control.send(connection, message) } })
  t.teardown(() => control.close())
  const silent = await connect(path)
  const [one, two] = [await connect(path), await connect(path)]
  await silent.ask('send 1')
  await until(() => messages.length === 1)
  const { connection } = messages[0]!
  for (let i = 0; i < 200; i++) control.send(connection, Buffer.alloc(10_000))
  await until(() => closed.includes(connection))
  for (const client of [one, two]) {
    await client.ask('send 200000')
    t.equal(await client.ask('read'), 'read 200000', 'a large answer passes too')
  }
  control.send(connection, Buffer.from('x'))
  control.disconnect(connection)
  t.equal(closed.length, 1, 'its end was told once, and what is said to it since is no error')
  for (const client of [silent, one, two]) await client.end()
})

t.test('queued answers wait for a reader and keep their order', async t => {
  const { control, path, messages, until } = serve()
  t.teardown(() => control.close())
  const client = await connect(path)
  await client.ask('send 1')
  await until(() => messages.length === 1)
  for (let size = 1; size <= 40; size++) control.send(messages[0]!.connection, Buffer.alloc(size))
  const read: string[] = []
  for (let size = 1; size <= 40; size++) read.push(await client.ask('read'))
  t.same(read, Array.from({ length: 40 }, (_, index) => `read ${index + 1}`))
  await client.end()
})

t.test('a flood that JavaScript is too slow for stops at the sender, not in memory', async t => {
  const { control, path, messages, until } = serve()
  t.teardown(() => control.close())
  const flood = spawn(PYTHON3, ['-c', `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1]); s.setblocking(False)
sent = 0
try:
    while sent < 5000: s.send(b'x' * 1000); sent += 1
except BlockingIOError: pass
print(sent, flush=True); sys.stdin.read()`, path], { stdio: ['pipe', 'pipe', 'inherit'] })
  // The event loop stands still here, and with it whoever takes messages.
  spawnSync('sleep', ['0.7'])
  const sent = Number(await new Promise(resolve => flood.stdout.once('data', data => resolve(String(data)))))
  t.ok(sent < 500, `the sender was stopped after ${sent}`)
  await until(() => messages.length === sent)
  flood.stdin.end()
})

t.test('one user cannot take every place', async t => {
  const { control, path, messages, until } = serve({ mode: 0o666 })
  t.teardown(() => control.close())
  spawnSync('chmod', ['755', dir])
  const crowd = spawn('setpriv', ['--reuid', '54321', '--regid', '54321', '--clear-groups', PYTHON3, '-c', `
import socket, sys
held = []
for i in range(600):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(sys.argv[1]); held.append(s)
alive = 0
for s in held:
    try: s.send(b'x'); alive += 1
    except OSError: pass
print(alive, flush=True); sys.stdin.read()`, path], { stdio: ['pipe', 'pipe', 'inherit'] })
  await new Promise(resolve => crowd.stdout.once('data', resolve))
  await until(() => messages.length > 0)
  const root = await connect(path)
  await root.ask('send 7')
  await until(() => messages.some(({ message }) => message.length === 7))
  t.equal(new Set(messages.filter(({ peer }) => peer.uid === 54321).map(({ connection }) => connection)).size, 128)
  await root.end()
  crowd.stdin.end()
})

t.test('only a stale socket is replaced', async t => {
  const stale = join(dir, 'stale')
  spawnSync(PYTHON3, ['-c', 'import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).bind(sys.argv[1])', stale])
  t.ok(statSync(stale).isSocket())
  const server = serve({ path: stale })
  t.throws(() => serve({ path: stale }), { code: 'NATIVE', errno: 98 }, 'a server answers there')
  const client = await connect(stale)
  await client.end()
  server.control.close()

  const file = join(dir, 'precious')
  writeFileSync(file, 'data')
  t.throws(() => serve({ path: file }), { code: 'NATIVE', errno: 17 })
  t.equal(readFileSync(file, 'utf8'), 'data')
  t.throws(() => serve({ path: join(dir, 'none/such') }), { code: 'NATIVE', errno: 2 })

  const deep = join(dir, 'd'.repeat(100), 'socket')
  spawnSync('mkdir', [join(dir, 'd'.repeat(100))])
  const long = serve({ path: deep })
  t.ok(statSync(deep).isSocket(), 'a path longer than sockaddr_un holds')
  long.control.close()
})

t.test('every method throws after close, and close may be called again', async t => {
  const before = descriptors()
  const { control, path, messages, until } = serve()
  const client = await connect(path)
  await client.ask('fds 3')
  await until(() => messages.length === 1)
  for (const fd of messages[0]!.fds) closeSync(fd)
  // These arrive while nobody takes them, and belong to nobody when the server ends.
  for (let i = 0; i < 5; i++) client.child.stdin!.write('fds 8\n')
  spawnSync('sleep', ['0.3'])
  control.close()
  control.close()
  t.throws(() => control.send(1, Buffer.from('x')), /closed/)
  t.throws(() => control.disconnect(1), /closed/)
  await client.end()
  await sleep(50)
  t.equal(messages.length, 1, 'nothing is delivered after close')
  t.same(descriptors().filter(one => !before.includes(one)), [], 'and no descriptor is left')
  t.throws(() => new (native().Control)(join(dir, 'x'), 'mode' as never, 0, () => {}, () => {}), TypeError)
})

t.test('a process that ends without closing ends', async t => {
  const script = join(dir, 'leave.mjs')
  writeFileSync(script, `import { createRequire } from 'node:module'
const { Control } = createRequire(import.meta.url)(${JSON.stringify(join(import.meta.dirname, '../../build/Release/ambit.node'))})
new Control(${JSON.stringify(join(dir, 'left'))}, 0o600, 0, () => {}, () => {})
setTimeout(() => process.exit(5), 50)`)
  t.equal(spawnSync(process.execPath, [script], { timeout: 20_000 }).status, 5)
})
