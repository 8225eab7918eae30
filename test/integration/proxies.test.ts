import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { makeCertificates } from '../fixtures/certificates.ts'
import { startHost, type Run } from '../fixtures/host.ts'

// Proxies of the test on an address that looks public, servers behind them, and cells that are to reach only some of those.
const NAMES = { 'good.example': '93.184.216.41', 'evil.example': '93.184.216.40' }
const files = mkdtempSync(join(tmpdir(), 'ambit-proxies-'))
const { cert, key } = makeCertificates(files, Object.keys(NAMES))
writeFileSync(join(files, 'servers.mjs'), `
import { createServer, request } from 'node:http'
import { createServer as createSecure } from 'node:https'
import { connect, createServer as createPlain } from 'node:net'
import { readFileSync, writeFileSync } from 'node:fs'
const names = ${JSON.stringify(NAMES)}
const join = (socket, port, host, first) => {
  const there = connect(Number(port), names[host] ?? host, () => { socket.write(first); there.pipe(socket).pipe(there) })
  socket.on('error', () => there.destroy())
  there.on('error', () => socket.destroy())
}
const proxy = createServer((req, res) => {
  if (req.url.startsWith('/')) return res.end('the proxy itself')
  const url = new URL(req.url)
  request({ host: names[url.hostname], port: url.port || 80, path: url.pathname, headers: { host: url.host } }, answer => answer.pipe(res)).on('error', () => res.destroy()).end()
}).on('connect', (req, socket, head) => { socket.unshift(head); join(socket, ...req.url.split(':').reverse(), 'HTTP/1.1 200 there\\r\\n\\r\\n') }).listen(3128, '93.184.216.50')
createPlain(socket => {
  socket.on('error', () => {}).once('data', () => {
    socket.write(Buffer.from([5, 0]))
    socket.once('data', asks => join(socket, asks.readUInt16BE(asks.length - 2), asks.subarray(5, asks.length - 2).toString(), Buffer.from([5, 0, 0, 1, 0, 0, 0, 0, 0, 0])))
  })
}).listen(1080, '93.184.216.50')
const answer = (req, res) => res.end('here is ' + req.headers.host)
for (const host of Object.values(names)) {
  createServer(answer).listen(80, host)
  createSecure({ key: readFileSync('${key}'), cert: readFileSync('${cert}') }, answer).listen(443, host)
}
setTimeout(() => writeFileSync(process.env.dir + '/servers', ''), 200)
`)
const host = await startHost({ hosts: NAMES, ready: ['servers'], setup: `"${process.execPath}" ${files}/servers.mjs &` })
t.teardown(async () => {
  await host.close()
  rmSync(files, { recursive: true })
})

// Says what came back of several requests on one connection, each sent once the one before was answered.
writeFileSync(join(host.work, 'raw.py'), `import socket, sys
s = socket.create_connection(('93.184.216.50', 3128)); s.settimeout(3)
got = b''
try:
    for part in sys.argv[1:]:
        s.sendall(part.encode().decode('unicode_escape').encode('latin1'))
        got += s.recv(65536)
except OSError as error: got += type(error).__name__.encode()
print(got.decode('latin1'))
`)
const PROXY = 'http://93.184.216.50:3128'
const spec = (...network: string[]): string => `authority:
  network: [${network.join(', ')}]
  filesystem: { read: [/usr, /bin, /lib, /lib64, /etc/ssl], write: [/workspace, /tmp] }
  exec: ['*']
  syscall: { profile: build }`
const curl = (...args: string[]): string[] => ['curl', '-sSk', '--max-time', '10', ...args]
const rows = (run: Run): string[] => run.rows.filter(row => row.kind === 'network').map(row => `${row.grant} ${row.outcome}`)
const BY_ADDRESS = ["{ host: 93.184.216.50, port: 3128 }", '{ host: 93.184.216.50, port: 1080 }', '{ host: good.example, port: 443 }']
const AS_PROXY = ["{ host: 93.184.216.50, port: 3128, proxy: true }", '{ host: good.example, port: 443 }', '{ host: good.example, port: 80 }']
const EVIL = 'CONNECT evil.example:80 HTTP/1.1\\r\\nHost: evil.example:80\\r\\n\\r\\n'
const GET = 'GET / HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n'

t.test('a proxy that is declared by address and not as one leads nowhere, whatever it is asked in clear', async t => {
  const ways: Record<string, string[]> = {
    'a tunnel': curl('-p', '-x', PROXY, 'http://evil.example/'),
    'a tunnel for TLS': curl('-x', PROXY, 'https://evil.example/'),
    'an absolute request': curl('-x', PROXY, 'http://evil.example/'),
    'SOCKS': curl('--socks5-hostname', '93.184.216.50:1080', 'http://evil.example/'),
    'a tunnel, later': ['python3', 'raw.py', 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n', EVIL, GET],
    'an absolute request, later': ['python3', 'raw.py', 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n', 'GET http://evil.example/ HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n'],
    'a tunnel behind an empty line': ['python3', 'raw.py', `\\r\\n${EVIL}`, GET],
  }
  for (const [what, command] of Object.entries(ways)) {
    t.match((await host.bare(command)).stdout, /here is evil.example/, `${what}: bare it leads anywhere`)
    const run = await host.run(spec(...BY_ADDRESS), command)
    t.notMatch(run.stdout, /here is/, what)
    t.ok(run.records.some(one => one.type === 'flow' && one.decision === 'refused'), `${what}: is told`)
  }
  t.match((await host.run(spec(...BY_ADDRESS), curl(`${PROXY}/`))).stdout, 'the proxy itself', 'it answers for itself')
  t.match((await host.run(spec(), curl('-x', PROXY, 'https://evil.example/'), { mode: 'observe' })), { stdout: /here is evil.example/, rows: [{ grant: '93.184.216.50:3128 as a proxy', outcome: 'undeclared' }, { grant: 'evil.example:443', outcome: 'undeclared' }] }, 'observed, it is told by both')
})

t.test('a declared proxy leads where the contract lets the cell go itself', async t => {
  const good = await host.run(spec(...AS_PROXY), ['sh', '-c', `curl -sSk -x ${PROXY} https://good.example/; curl -sS -x ${PROXY} http://good.example/; curl -sS ${PROXY}/`])
  t.match(good.stdout, 'here is good.examplehere is good.examplethe proxy itself', good.stderr)
  t.same(rows(good), ['93.184.216.50:3128 as a proxy used', 'good.example:443 used', 'good.example:80 used'])
  t.ok(good.records.some(one => one.type === 'flow' && one.name === 'good.example' && one.port === 443 && one.bytesIn > 100 && one.nameSource === 'sni'), 'a tunnel has its own bytes')
  const ways: Record<string, string[]> = {
    'a tunnel to another name': curl('-p', '-x', PROXY, 'http://evil.example/'),
    'an absolute request for another name': curl('-x', PROXY, 'http://evil.example/'),
    'another port': curl('-p', '-x', PROXY, 'http://good.example:8080/'),
    'an address': curl('-p', '-x', PROXY, 'http://93.184.216.40/'),
    'another name inside TLS': curl('-x', PROXY, '--connect-to', 'evil.example:443:good.example:443', 'https://evil.example/'),
    'a second absolute request': ['python3', 'raw.py', 'GET http://good.example/ HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n', 'GET http://evil.example/ HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n'],
    'a tunnel after a request': ['python3', 'raw.py', 'GET http://good.example/ HTTP/1.1\\r\\nHost: good.example\\r\\n\\r\\n', EVIL, GET],
    'a tunnel in a tunnel': ['python3', 'raw.py', 'CONNECT good.example:80 HTTP/1.1\\r\\nHost: good.example:80\\r\\n\\r\\n', EVIL],
    'another host in a tunnel': ['python3', 'raw.py', 'CONNECT good.example:80 HTTP/1.1\\r\\nHost: good.example:80\\r\\n\\r\\n', GET],
  }
  const attacks = await Promise.all(Object.entries(ways).map(async ([what, command]) => ({ what, run: await host.run(spec(...AS_PROXY), command) })))
  for (const { what, run } of attacks) {
    t.notMatch(run.stdout, /here is evil/, what)
    t.ok(run.rows.some(row => row.outcome === 'denied'), `${what}: is told as refused: ${rows(run).join()}`)
  }
})
