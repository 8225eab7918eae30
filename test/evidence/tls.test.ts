import { execFileSync, spawn, spawnSync, type ChildProcessWithoutNullStreams } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, rmdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { createSecureServer } from 'node:http2'
import { createServer, type Server } from 'node:https'
import { connect, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t from 'tap'
import { ApiReader } from '../../src/evidence/api.ts'
import type { RawTls } from '../../src/evidence/decode.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'

const root = join(import.meta.dirname, '../..')
const dir = t.testdir({})
const harness = join(dir, 'tls-harness')
execFileSync('g++', ['-std=c++20', '-O1', '-Wall', '-Wno-missing-field-initializers', `-I${root}/native`, '-o', harness, join(root, 'test/native/tls-harness.cpp'), join(root, 'native/addon/tls.cpp'), '-lbpf'])

// A cell of our own: a v2 cgroup two levels below the root of the hierarchy.
const v2 = readFileSync('/proc/self/mounts', 'utf8').split('\n').map(line => line.split(' ')).find(fields => fields[2] === 'cgroup2')![1]!
const group = join(v2, `ambit-test-${process.pid}`)
const cell = join(group, 'cell')
for (const folder of [group, cell, join(cell, 'nested'), join(group, 'other')]) mkdirSync(folder)
t.teardown(() => { for (const folder of [join(cell, 'nested'), cell, join(group, 'other'), group]) rmdirSync(folder) })
const CELL_ID = statSync(cell, { bigint: true }).ino

// A certificate authority and a server's certificate.
const openssl = (...args: string[]): unknown => execFileSync('openssl', args, { cwd: dir, stdio: 'pipe' })
openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'ca.key', '-out', 'ca.pem', '-days', '2', '-subj', '/CN=ambit test CA', '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=critical,keyCertSign')
openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'server.key', '-out', 'server.csr', '-subj', '/CN=localhost')
writeFileSync(join(dir, 'ext'), 'subjectAltName=DNS:localhost,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n')
openssl('x509', '-req', '-in', 'server.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key', '-CAcreateserial', '-out', 'server.pem', '-days', '2', '-extfile', 'ext')
const ca = join(dir, 'ca.pem')
const identity = { key: readFileSync(join(dir, 'server.key')), cert: readFileSync(join(dir, 'server.pem')) }

/** What the server was really asked. */
const asked: string[] = []
let connections = 0
const server: Server = createServer(identity, (request, response) => {
  request.resume()
  request.once('end', () => {
    asked.push(`${request.method} ${request.url}`)
    const status = Number(/\/status\/(\d+)/.exec(request.url!)?.[1] ?? 200)
    response.writeHead(status, { 'content-type': 'text/plain' })
    response.end('hello')
  })
})
server.on('secureConnection', () => connections++)
// As a proxy, too: TLS inside TLS.
server.on('connect', (request, client) => {
  const target = connect(Number(request.url!.split(':')[1]), '127.0.0.1', () => {
    client.write('HTTP/1.1 200 Connected\r\n\r\n')
    target.pipe(client)
    client.pipe(target)
  })
  for (const socket of [client, target]) socket.on('error', () => { client.destroy(); target.destroy() })
})
server.listen(0, '127.0.0.1')
await once(server, 'listening')
t.teardown(() => { server.closeAllConnections(); server.close() })
const { port } = server.address() as AddressInfo
const host = `localhost:${port}`
const url = `https://${host}`

type Line = { hook?: string; state?: string; detail?: string; family?: string; ready?: true; flushed?: true; detached?: true; produced?: number; dropped?: number
  record?: { ring: number; size: number; kind: number; cell: string; pid: number; start: string; comm: string; session: string; length: number; direction: number; flavour: number; data: string } }

/** The probes, watched through the harness. */
class Watch {
  readonly hooks: Line[] = []
  records: NonNullable<Line['record']>[] = []
  readonly #child: ChildProcessWithoutNullStreams
  readonly #lines: AsyncIterator<string>

  private constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  }

  static async start(libraries: string[], env: Record<string, string> = {}): Promise<Watch> {
    const child = spawn(harness, [join(root, 'build/Release/bpf/tls.bpf.o'), '2', String(CELL_ID), '0', ...libraries], { env: { ...process.env, ...env } })
    child.stderr.pipe(process.stderr)
    const watch = new Watch(child)
    await watch.#until('ready')
    return watch
  }

  async #until(word: 'ready' | 'flushed' | 'detached'): Promise<Line> {
    for (;;) {
      const next = await this.#lines.next()
      if (next.done === true) throw new Error('the harness ended')
      const line = JSON.parse(next.value) as Line
      if (line.hook !== undefined) this.hooks.push(line)
      if (line.record !== undefined) this.records.push(line.record)
      if (line[word] === true) return line
    }
  }

  async tell(command: string, answer: 'ready' | 'flushed' | 'detached'): Promise<Line> {
    this.#child.stdin.write(`${command}\n`)
    return this.#until(answer)
  }

  /** All records since the last time, as the decoder gives them. */
  async take(): Promise<RawTls[]> {
    await this.tell('flush', 'flushed')
    const taken = this.records
    this.records = []
    return taken.map(({ pid, start, comm, session, length, direction, flavour, data }) => ({
      process: { pid, start, comm }, session, length, direction: direction === 1 ? 'write' : 'read', flavour: flavour === 1 ? 'openssl' : 'gnutls', data: Buffer.from(data, 'hex'),
    }))
  }

  async stop(): Promise<void> {
    this.#child.stdin.end()
    if (this.#child.exitCode === null) await once(this.#child, 'exit')
  }
}

/** Runs a command as a member of a cgroup; null: of none of ours. */
async function run(folder: string | null, command: string[], env: Record<string, string> = {}): Promise<number | null> {
  const [name, ...args] = folder === null ? command : ['sh', '-c', 'echo $$ > "$0/cgroup.procs" && exec "$@"', folder, ...command]
  const child = spawn(name!, args, { cwd: dir, env: { PATH: process.env.PATH, HOME: dir, NODE_EXTRA_CA_CERTS: ca, SSL_CERT_FILE: ca, GIT_SSL_CAINFO: ca, GIT_TERMINAL_PROMPT: '0', ...env }, stdio: 'ignore' })
  const [code] = await once(child, 'exit') as [number | null]
  return code
}

function read(events: RawTls[], hosts = [host]): EvidenceBody[] {
  const reader = new ApiReader(hosts)
  return [...events.flatMap(event => reader.read(event)), ...reader.end()]
}
function show(body: EvidenceBody): string {
  if (body.type === 'api.request') return `${body.library} ${body.method} ${body.host}${body.path}`
  if (body.type === 'api.response') return `${body.library} ${body.status}`
  return body.type === 'api.unreadable' ? `${body.library} unreadable: ${body.reason}` : body.type
}

const python = '/usr/bin/python3'
const multiarch = execFileSync('g++', ['-print-multiarch'], { encoding: 'utf8' }).trim()
const library = (name: string): string => [`/usr/lib/${multiarch}/${name}`, `/usr/lib64/${name}`, `/usr/lib/${name}`].find(path => existsSync(path))!
// Debian's own Node uses the shared library; others bring one along.
const NODES_OWN = (process.config.variables as { node_shared_openssl?: boolean }).node_shared_openssl !== true
const LIBSSL = `openssl=${library('libssl.so.3')}`
const LIBRARIES = [...(NODES_OWN ? [`openssl=${process.execPath}`] : []), LIBSSL, `gnutls=${library('libgnutls.so.30')}`]
const nodeGet = (path: string): string => `require('https').get('${url}${path}', r => r.resume())`

const watch = await Watch.start(LIBRARIES)
t.teardown(() => watch.stop())

t.test('every hook is on, under its own name', async t => {
  const names = watch.hooks.map(hook => hook.hook)
  for (const name of ['SSL_write', 'SSL_read', 'SSL_write_ex', 'SSL_read_ex', 'SSL_free']) t.ok(names.includes(`uprobe/libssl.so.3:${name}`), name)
  t.ok(names.includes('uprobe/libgnutls.so.30:gnutls_record_send'))
  for (const hook of watch.hooks) t.match(hook, { family: 'api', state: 'attached' })
})

t.test('one request of a real client is one request', async t => {
  const clients: [string, string[], string][] = [
    ['curl', ['curl', '-s', '--cacert', ca, `${url}/curl/status/201`], 'openssl GET /curl/status/201 201'],
    ['curl with a large body', ['curl', '-s', '--cacert', ca, '--data-binary', 'x'.repeat(20_000), `${url}/post/status/422`], 'openssl POST /post/status/422 422'],
    ['curl with a chunked body', ['sh', '-c', `head -c 300000 /dev/zero | curl -s --cacert ${ca} -T - ${url}/chunked`], 'openssl PUT /chunked 200'],
    ['node https', [process.execPath, '-e', nodeGet('/node')], 'openssl GET /node 200'],
    ['node fetch', [process.execPath, '-e', `fetch('${url}/fetch/status/404', { method: 'DELETE' }).then(r => r.text())`], 'openssl DELETE /fetch/status/404 404'],
    ['python urllib', [python, '-c', `import urllib.request as u; u.urlopen('${url}/python').read()`], 'openssl GET /python 200'],
    ['git', ['git', 'ls-remote', `${url}/status/403/x.git`], 'gnutls GET /status/403/x.git/info/refs?service=git-upload-pack 403'],
  ]
  if (existsSync('/usr/bin/wget')) clients.push(['wget', ['wget', '-q', '-O-', `--ca-certificate=${ca}`, `${url}/wget`], 'gnutls GET /wget 200'])
  for (const [name, command, expected] of clients) {
    const [flavour, method, path, status] = expected.split(' ')
    const before = asked.length
    await run(cell, command)
    const events = await watch.take()
    t.strictSame(asked.slice(before), [`${method} ${path}`], `${name}: the server was asked once`)
    t.strictSame(read(events).map(show), [`${flavour} ${method} ${host}${path}`, `${flavour} ${status}`], name)
    t.strictSame(read(events, ['api.github.com']), [], `${name}: not a declared API`)
    t.equal(events.filter(event => event.direction === 'write' && event.data.toString('latin1').includes(' HTTP/1.1\r\n')).length, 1, `${name}: one write holds the request line`)
  }
})

t.test('only what happens in the cell is seen, nested groups with it', async t => {
  const command = ['curl', '-s', '--cacert', ca, `${url}/where`]
  for (const elsewhere of [null, join(group, 'other'), group]) {
    const before = asked.length
    await run(elsewhere, command)
    t.equal(asked.length, before + 1)
    t.strictSame(await watch.take(), [], `outside: ${elsewhere}`)
  }
  await run(join(cell, 'nested'), command)
  t.strictSame(read(await watch.take()).map(show), [`openssl GET ${host}/where`, 'openssl 200'])
})

t.test('two requests on one connection', async t => {
  const keepAlive = `const https = require('https'); const agent = new https.Agent({ keepAlive: true, maxSockets: 1 });
    const get = path => new Promise(done => https.get('${url}' + path, { agent }, r => r.resume().on('end', done)));
    get('/1').then(() => get('/2/status/500')).then(() => agent.destroy())`
  for (const [name, command] of [['node', [process.execPath, '-e', keepAlive]], ['curl', ['curl', '-s', '--cacert', ca, `${url}/1`, `${url}/2/status/500`]]] as const) {
    const before = connections
    await run(cell, [...command])
    t.equal(connections, before + 1, `${name}: one connection`)
    const bodies = read(await watch.take())
    t.strictSame(bodies.map(show), [`openssl GET ${host}/1`, 'openssl 200', `openssl GET ${host}/2/status/500`, 'openssl 500'], name)
    t.equal(new Set(bodies.map(body => (body as { connection: string }).connection)).size, 1)
  }
})

t.test('a write that failed is no request', async t => {
  const request = `GET /never HTTP/1.1\\r\\nHost: ${host}\\r\\n\\r\\n`
  const script = `
import ssl, urllib.request
c = ssl.create_default_context()
o = c.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname='localhost')
try:
    o.write(b'${request}')
    raise SystemExit(9)
except ssl.SSLWantReadError:
    pass
urllib.request.urlopen('${url}/real').read()`
  t.equal(await run(cell, [python, '-c', script]), 0)
  t.strictSame(read(await watch.take()).map(show), [`openssl GET ${host}/real`, 'openssl 200'])
})

t.test('a request that is written, and a response that is read, in pieces is still one', async t => {
  const script = `
import socket, ssl
c = ssl.create_default_context()
s = c.wrap_socket(socket.create_connection(('127.0.0.1', ${port})), server_hostname='localhost')
for part in (b'PATCH /pie', b'ces HTTP/1.1\\r\\nX: y\\r\\n', b'Host: ${host}\\r\\nContent-Length: 3\\r\\n', b'\\r\\n', b'a', b'bc'):
    s.sendall(part)
got = b''
while not got.endswith(b'hello') and not got.endswith(b'0\\r\\n\\r\\n'): got += s.recv(5)
s.sendall(b'GET /next/status/410 HTTP/1.1\\r\\nHost: ${host}\\r\\nConnection: close\\r\\n\\r\\n')
while s.recv(1): pass`
  t.equal(await run(cell, [python, '-c', script]), 0)
  t.strictSame(read(await watch.take()).map(show), [`openssl PATCH ${host}/pieces`, 'openssl 200', `openssl GET ${host}/next/status/410`, 'openssl 410'])
})

t.test('TLS inside TLS: both are seen, though one call runs within the other', async t => {
  const before = asked.length
  const code = await run(cell, ['curl', '-s', '--cacert', ca, '--proxy-cacert', ca, '--proxy', url, '--proxytunnel', `${url}/inner`])
  t.equal(code, 0)
  t.equal(asked.length, before + 1)
  t.strictSame(read(await watch.take()).map(show), ['openssl unreadable: a tunnel inside a TLS connection', `openssl GET ${host}/inner`, 'openssl 200'])
})

t.test('HTTP/2 is called unreadable, not absent', async t => {
  const two = createSecureServer(identity, (_, response) => response.end('two'))
  two.listen(0, '127.0.0.1')
  await once(two, 'listening')
  const target = `https://localhost:${(two.address() as AddressInfo).port}/`
  t.ok(spawnSync('curl', ['-V'], { encoding: 'utf8' }).stdout.includes('HTTP2'), 'this curl speaks it')
  t.equal(await run(cell, ['curl', '-s', '--http2', '--cacert', ca, target]), 0)
  const events = await watch.take()
  t.strictSame(read(events).map(show), ['openssl unreadable: HTTP/2, whose compressed heads are not decoded'])
  t.strictSame(events.map(event => event.length > 0), [true, false], 'one record, and the end: the rest is not copied')
  two.close()
})

t.test('records carry the cell, the process and their size', async t => {
  await run(cell, ['curl', '-s', '--cacert', ca, `${url}/record`])
  await watch.tell('flush', 'flushed')
  const [first, ...more] = watch.records
  t.match(first, { kind: 9, cell: String(CELL_ID), comm: 'curl', size: 1112, ring: 1112, direction: 1, flavour: 1 })
  t.equal(more.at(-1)!.length, 0, 'the last says that the connection is freed')
  t.equal(more.at(-1)!.size, 88)
  for (const record of watch.records) t.ok(record.size % 8 === 0 && record.size === record.ring && record.pid === first!.pid && record.session === first!.session)
  watch.records = []
})

t.test('attaching twice, by whatever path, changes nothing; detached is off; attached again is on', async t => {
  const alias = join(dir, 'alias.so')
  symlinkSync(library('libssl.so.3'), alias)
  const before = watch.hooks.length
  await watch.tell(`attach openssl=${alias}`, 'ready')
  t.match(watch.hooks.slice(before).map(hook => hook.hook), watch.hooks.filter(hook => hook.hook!.startsWith('uprobe/libssl')).slice(0, watch.hooks.length - before).map(hook => hook.hook), 'the states of the first time')
  const command = ['curl', '-s', '--cacert', ca, `${url}/again`]
  const once = [`openssl GET ${host}/again`, 'openssl 200']
  await run(cell, command)
  t.strictSame(read(await watch.take()).map(show), once)
  await watch.tell('detach', 'detached')
  await run(cell, command)
  t.strictSame(await watch.take(), [])
  await watch.tell(`attach ${LIBSSL}`, 'ready')
  await run(cell, command)
  t.strictSame(read(await watch.take()).map(show), once)
})

t.test('what cannot be attached says why', async t => {
  const fifo = join(dir, 'fifo')
  execFileSync('mkfifo', [fifo])
  writeFileSync(join(dir, 'text.so'), 'not an ELF file')
  writeFileSync(join(dir, 'cut.so'), readFileSync(library('libssl.so.3')).subarray(0, 4096))
  const table: [string, RegExp][] = [
    ['openssl=/bin/true', /no function SSL_(write|read|free)/], ['openssl=/nonexistent', /No such file/], [`openssl=${fifo}`, /not a regular file/], ['openssl=/tmp', /not a regular file/],
    [`gnutls=${join(dir, 'text.so')}`, /not a 64-bit ELF file/], [`openssl=${join(dir, 'cut.so')}`, /outside the file/], ['nss=/bin/true', /unknown flavour/],
    [`openssl=/proc/${process.pid}/exe`, /Too many levels of symbolic links/],
  ]
  for (const [what, why] of table) {
    const before = watch.hooks.length
    await watch.tell(`attach ${what}`, 'ready')
    const told = watch.hooks.slice(before)
    t.ok(told.length > 0, what)
    for (const hook of told) t.match(hook, { family: 'api', state: 'missing', detail: why })
  }
})

t.test('what the ring has no room for is counted, to the event', async t => {
  const small = await Watch.start([LIBSSL], { RING_SIZE: '8192', LAZY: '1' })
  t.teardown(() => small.stop())
  await run(cell, ['curl', '-s', '--cacert', ca, ...Array.from({ length: 20 }, (_, i) => `${url}/${i}`)])
  const { produced, dropped } = await small.tell('flush', 'flushed')
  t.ok(dropped! > 0)
  t.equal(small.records.length, produced! - dropped!)
  t.ok(produced! > 40, 'at least a request and a response each')
})
