import { spawn } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { startHost, type Run } from '../fixtures/host.ts'

// Servers of the host on sockets that anybody may connect to, and jobs that try.
const tree = mkdtempSync('/var/tmp/ambit-sockets-')
chmodSync(tree, 0o755)
mkdirSync(join(tree, 'shown'))
const stream = join(tree, 'shown/stream.sock')
const datagram = join(tree, 'shown/datagram.sock')
const other = join(tree, 'shown/other.sock')
const server = spawn('python3', ['-c', `import os, socket, sys, threading
stream, datagram, other = sys.argv[1:]
os.umask(0)
def serve(path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.bind(path); s.listen()
    while True:
        c, _ = s.accept(); c.sendall(b'served ' + c.recv(100)); c.close()
for path in [stream, other]: threading.Thread(target=serve, args=[path]).start()
d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind(datagram)
print('ready', flush=True)
while True: print('heard ' + d.recv(100).decode(), flush=True)
`, stream, datagram, other], { stdio: ['ignore', 'pipe', 'inherit'] })
let heard = ''
server.stdout.on('data', chunk => { heard += chunk })
await new Promise(resolve => server.stdout.once('data', resolve))
const host = await startHost({})
t.teardown(async () => {
  await host.close()
  server.kill('SIGKILL')
  rmSync(tree, { recursive: true })
})
writeFileSync(join(host.work, 'client.py'), `import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, act):
    try: print(name, act() or 'done', flush=True)
    except OSError as error: print(name, error.strerror, flush=True)
def connect(path):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.connect(path); s.sendall(b'me'); return s.recv(100).decode()
def sendto(path): socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'by sendto', path)
def sendmsg(path): socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendmsg([b'by sendmsg'], [], 0, path)
def raw(path, said):  # the kernel reads as many bytes of the name as it is told of
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    name = b'\\1\\0' + path.encode() + said.encode()
    if libc.connect(s.fileno(), name, 2 + len(path)): raise OSError(ctypes.get_errno(), 'refused')
    s.sendall(b'me'); return s.recv(100).decode()
def last(path, count):  # messages by one call, all but the last to a name that is no path
    own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); own.bind('\\0own')
    names = [ctypes.create_string_buffer(b'\\1\\0' + name) for name in [b'\\0own'] * (count - 1) + [path.encode()]]
    text = ctypes.create_string_buffer(b'by sendmmsg')
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(text), 11)
    messages = b''.join(struct.pack('QIIQQQQQII', ctypes.addressof(name), length, 0, ctypes.addressof(vector), 1, 0, 0, 0, 0, 0) for name, length in zip(names, [6] * (count - 1) + [2 + len(path)]))
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sent = libc.sendmmsg(sender.fileno(), messages, count, 0)
    if sent != count: raise OSError(ctypes.get_errno(), 'refused')
exec(sys.argv[1])
`)
const spec = (network: string): string => `authority:
  network: [${network}]
  filesystem: { read: [/usr, /bin, /lib, /lib64, ${tree}], write: [/workspace, /tmp] }
  exec: ['*']
  syscall: { profile: build }`
const python = (source: string): string[] => ['python3', 'client.py', source]
const network = (run: Run): string[] => run.rows.filter(row => row.kind === 'network').map(row => `${row.grant} ${row.outcome}`)
const ATTACK = `attempt('connect', lambda: connect('${stream}')); attempt('sendto', lambda: sendto('${datagram}')); attempt('sendmsg', lambda: sendmsg('${datagram}'))
os.path.lexists('/tmp/link') or os.symlink('${tree}/shown', '/tmp/link'); attempt('link', lambda: connect('/tmp/link/stream.sock')); os.chdir('${tree}/shown'); attempt('relative', lambda: connect('stream.sock')); os.unlink('/tmp/link')`

t.test('sockets of the host in what a cell may read can be connected to bare, not in the cell', async t => {
  const bare = await host.bare(python(ATTACK))
  t.equal(bare.stdout, 'connect served me\nsendto done\nsendmsg done\nlink served me\nrelative served me\n', bare.stderr)
  for (let i = 0; i < 500 && !heard.includes('by sendmsg'); i++) await sleep(10)
  t.match(heard, /by sendto\nheard by sendmsg/)
  heard = ''
  const run = await host.run(spec(''), python(ATTACK))
  t.equal(run.stdout, ['connect', 'sendto', 'sendmsg', 'link', 'relative'].map(name => `${name} Permission denied\n`).join(''), run.stderr)
  t.equal(heard, '', 'nothing arrived')
  const rows = network(run)
  t.ok(rows.includes(`unix:${stream} denied`), rows.join(', '))
  t.ok(rows.includes(`unix:${datagram} denied`), rows.join(', '))
  const held = run.records.find(record => record.type === 'coverage')
  t.match(held?.type === 'coverage' ? held.enforcers.find(one => one.name === 'unix sockets')?.state : '', /^in what may only be read, granted ones only/)
})

t.test('a granted socket, and only it, is there to be spoken to', async t => {
  const run = await host.run(spec(`{ unix: ${stream} }`), python(`attempt('granted', lambda: connect('${stream}')); attempt('other', lambda: connect('${other}'))`))
  t.equal(run.stdout, 'granted served me\nother Permission denied\n', run.stderr)
  t.same(network(run), [`unix:${stream} used`, `unix:${other} denied`])
  const unused = await host.run(spec(`{ unix: ${stream} }`), python('pass'))
  t.same(network(unused), [`unix:${stream} unused`])
})

/** Ways to a socket under another name than its own. */
const DISGUISED = `os.path.lexists('/tmp/link') or os.symlink('${stream}', '/tmp/link')
attempt('link', lambda: connect('/tmp/link')); attempt('descriptor', lambda: connect('/proc/self/fd/%d' % os.open('${stream}', os.O_PATH)))
attempt('longer', lambda: raw('${stream}', '/../../../../../workspace/own')); attempt('second', lambda: last('${datagram}', 2)); attempt('ninth', lambda: last('${datagram}', 9)); os.unlink('/tmp/link')`
const disguised = (name: string): string => `only = lambda name, act: attempt(name, act) if name == '${name}' else None\n${DISGUISED.replaceAll('attempt(', 'only(')}`
const DISGUISES = ['link', 'descriptor', 'longer', 'second', 'ninth']
const SENT = ['second', 'ninth']

t.test('a granted socket that is spoken to under another name is never called unused', async t => {
  for (const name of DISGUISES) {
    const path = SENT.includes(name) ? datagram : stream
    const run = await host.run(spec(`{ unix: ${path} }`), python(disguised(name)))
    t.match(run.stdout, SENT.includes(name) ? `${name} done` : `${name} served me`, run.stderr)
    t.notOk(network(run).includes(`unix:${path} unused`), `${name}: ${network(run).join(', ')}`)
  }
})

t.test('a socket of the host that nobody granted is told of in observe, whatever name it was given', async t => {
  for (const name of DISGUISES) {
    const run = await host.run(spec(''), python(disguised(name)), { mode: 'observe' })
    t.match(run.stdout, SENT.includes(name) ? `${name} done` : `${name} served me`, run.stderr)
    t.ok(network(run).some(row => row.startsWith('unix:') && row.endsWith(' undeclared')), `${name}: ${network(run).join(', ')}`)
  }
})

t.test('the job\'s own sockets work as they did', async t => {
  const run = await host.run(spec(''), python(`import threading
for folder in ['/tmp', '/workspace']:
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM); s.bind(folder + '/own.sock'); s.listen()
    def answer(): c, _ = s.accept(); c.sendall(b'own ' + c.recv(100)); c.close()
    threading.Thread(target=answer).start(); attempt(folder, lambda: connect(folder + '/own.sock')); os.unlink(folder + '/own.sock')`))
  t.equal(run.stdout, '/tmp own me\n/workspace own me\n', run.stderr)
  t.same(network(run), [])
})

t.test('a socket that is not there, or is none, is refused before anything runs', async t => {
  for (const [path, why] of [[`${tree}/none.sock`, /no such file/], ['/etc/passwd', /is no socket/], [join(host.dir, 'state/ambit.sock'), /daemon keeps its own/]] as const) {
    const run = await host.run(spec(`{ unix: ${path} }`), ['true'])
    t.not(run.status, 0)
    t.match(run.stderr, why)
  }
})
