import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { Agent, createServer as createHttp, request, type Server as HttpServer } from 'node:http'
import { connect, createServer, type AddressInfo, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { WebSocket, WebSocketServer } from 'ws'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { parseAddress } from '../../src/authority/addresses.ts'
import type { FirstBytes } from '../../src/network/first-bytes.ts'
import { openJournal } from '../../src/network/journal.ts'
import { cellNames } from '../../src/network/names.ts'
import type { HostGrant } from '../../src/authority/destination.ts'
import { policyOf } from '../../src/network/policy.ts'
import { openRelay, ruleOnAddress, ruleOnAsked, ruleOnFirstBytes, type Ruling } from '../../src/network/relay.ts'

const ADDRESS = parseAddress('93.184.216.34')!
/** The ruling on a connection to one address, once its first bytes were read; null: refused before that. */
function ruled(grants: HostGrant[], given: string[], first: FirstBytes, options: { mode?: 'observe' | 'enforce'; port?: number } = {}): Ruling {
  const policy = policyOf(grants, options.mode ?? 'enforce', () => new Set())
  const names = cellNames({})
  for (const name of given) names.give(name, [ADDRESS])
  const port = options.port ?? 443
  const route = ruleOnAddress({ policy, names }, ADDRESS, port)
  return route.decision === 'refused' ? route : ruleOnFirstBytes(policy, route, port, first)
}
const at443 = (...hosts: string[]): HostGrant[] => hosts.map(host => ({ host, port: 443 }))
const sni = (name: string | null, ech = false): FirstBytes => ({ kind: 'tls', sni: name, ech })

t.test('a hidden name is refused where names are declared, and told where any is', async t => {
  t.match(ruled(at443('a.example'), ['a.example'], sni('a.example', true)), { decision: 'refused', reason: /encrypted ClientHello/ })
  t.match(ruled(at443('*'), ['a.example'], sni('a.example', true)), { decision: 'allowed', name: 'a.example', reason: /encrypted ClientHello/ })
  t.match(ruled([], ['a.example'], sni('a.example', true), { mode: 'observe' }), { decision: 'allowed', reason: /encrypted ClientHello/ })
  const hiding = [{ host: '*.example', port: 443, encryptedClientHello: true as const }]
  t.match(ruled(hiding, ['a.example'], sni('a.example', true)), { decision: 'allowed', name: 'a.example', hidden: true, reason: /as declared/ })
  t.equal(ruled(hiding, ['a.example'], sni('a.example')).hidden, undefined)
  t.match(ruled(hiding, ['a.example'], sni('b.test', true)), { decision: 'refused' }, 'the name that it shows must be the declared one')
  t.match(ruled(hiding, ['a.example'], sni('b.example', true)), { decision: 'refused' }, 'and the one that the address was given for')
  t.match(ruled(hiding, ['a.example'], sni(null, true)), { decision: 'refused' })
  t.match(ruled(hiding, ['a.example'], sni('a.example', true), { port: 8443 }), { decision: 'refused' })
  t.match(ruled(at443('a.example'), ['a.example'], { kind: 'unclear', why: 'odd' }), { decision: 'refused', reason: 'odd' })
  t.match(ruled(at443('*'), ['a.example'], { kind: 'unclear', why: 'odd' }), { decision: 'allowed', reason: /odd/ })
})

t.test('without a name from the client, the resolver\'s one suffices if there is only one', async t => {
  for (const first of [sni(null), { kind: 'http', host: null }] satisfies FirstBytes[]) {
    t.match(ruled(at443('a.example'), ['a.example'], first), { decision: 'allowed', name: 'a.example', nameSource: 'resolver' }, first.kind)
    t.match(ruled(at443('a.example', 'b.example'), ['a.example', 'b.example'], first), { decision: 'refused', reason: /without a name, at an address that stands for b.example, a.example/ }, first.kind)
  }
  t.match(ruled(at443('a.example', 'b.example'), ['a.example', 'b.example'], { kind: 'other' }), { decision: 'allowed', name: 'b.example', reason: /stands for b.example, a.example/ }, 'a protocol without names: the one resolved last')
})

t.test('of several names at one address each is held to its own port', async t => {
  const grants = [{ host: 'a.example', port: 443 }, { host: 'b.example', port: 22 }]
  t.match(ruled(grants, ['a.example', 'b.example'], sni('a.example')), { decision: 'allowed', name: 'a.example', nameSource: 'sni' })
  t.match(ruled(grants, ['a.example', 'b.example'], sni('b.example')), { decision: 'refused', reason: 'b.example is not declared at port 443' })
  t.match(ruled(grants, ['a.example', 'b.example'], { kind: 'other' }, { port: 22 }), { decision: 'allowed', name: 'b.example' })
  t.match(ruled(grants, ['b.example'], sni('a.example'), { port: 22 }), { decision: 'refused', name: 'a.example', reason: /resolved for b.example/ })
})

t.test('an address without a name needs a block, or a contract that declares everything', async t => {
  t.match(ruled(at443('a.example'), [], sni('a.example')), { decision: 'refused', name: null })
  t.match(ruled(at443('93.184.216.0/24'), [], sni('a.example')), { decision: 'allowed', name: null, reason: 'declared by address' })
  t.match(ruled(at443('*'), [], sni('a.example')), { decision: 'allowed', name: null, reason: /any destination is declared.*TLS names a.example/ }, 'and the name that the client claims is not believed')
  t.match(ruled(at443('a.example'), ['a.example'], sni('evil\u0007.example')), { name: 'evil?.example' })
})

t.test('what is declared leads nowhere else, by its name or its address, unless the contract says that it is a proxy', async t => {
  const asks = (tunnel: boolean): FirstBytes => ({ kind: 'http', host: 'b.example', asks: { host: 'b.example', port: 443, tunnel } })
  for (const host of ['a.example', '93.184.216.34']) {
    for (const first of [asks(true), asks(false), { kind: 'socks' }] satisfies FirstBytes[]) {
      t.match(ruled(at443(host), ['a.example'], first), { decision: 'refused' }, `${host} ${first.kind}`)
      t.match(ruled([], ['a.example'], first, { mode: 'observe' }), { decision: 'allowed' })
    }
    t.match(ruled([{ host, port: 443, proxy: true }], ['a.example'], asks(true)), { decision: 'allowed', proxied: true }, host)
    t.match(ruled([{ host, port: 443, proxy: true }], ['a.example'], asks(false)), { decision: 'allowed', proxied: true }, host)
    t.match(ruled([{ host, port: 443, proxy: true }], ['a.example'], { kind: 'socks' }), { decision: 'refused' }, 'a SOCKS proxy is not looked into')
    t.match(ruled([{ host, port: 3128, proxy: true }], ['a.example'], asks(true)), { decision: 'refused' }, 'at its own port alone')
  }
  t.match(ruled(at443('93.184.216.34'), [], { kind: 'unclear', why: 'odd' }), { decision: 'refused', reason: 'odd' }, 'a lenient proxy takes what a strict reader does not')
  t.match(ruled(at443('93.184.216.34'), [], { kind: 'unclear', why: 'odd', tls: true }), { decision: 'allowed' })
})

t.test('a declared proxy is asked for what the contract declares, and for nothing else', async t => {
  const asked = (grants: HostGrant[], host: string, port: number, mode: 'observe' | 'enforce' = 'enforce'): Ruling => ruleOnAsked(policyOf(grants, mode, () => new Set()), { host, port, tunnel: true })
  const grants = [{ host: '93.184.216.50', port: 3128, proxy: true as const }, { host: '*.b.example', port: 443 }, { host: '10.0.0.0/8', port: 22 }]
  t.match(asked(grants, 'a.b.example', 443), { decision: 'allowed', name: 'a.b.example', nameSource: 'host' })
  for (const [host, port] of [['b.example', 443], ['a.b.example', 22], ['a.c.example', 443], ['localhost', 443], ['93.184.216.50', 443], ['127.0.0.1', 22], ['169.254.169.254', 80], ['0x7f000001', 443], ['10.0.0.1', 443], ['[::1]', 443]] as const) t.match(asked(grants, host, port), { decision: 'refused' }, `${host} ${port}`)
  t.match(asked(grants, '10.0.0.1', 22), { decision: 'allowed', name: null })
  t.match(asked([], 'a.c.example', 443, 'observe'), { decision: 'allowed', name: 'a.c.example', reason: /only observed/ })
  t.match(asked([], '169.254.169.254', 80, 'observe'), { decision: 'refused' }, 'what no cell may reach unnamed, no proxy reaches for it')
})

const listening = async (server: Server): Promise<number> => {
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', () => resolve()))
  return (server.address() as AddressInfo).port
}

t.test('connections beyond the bound and first messages that never end are cut, and told', async t => {
  const origin = createServer(socket => socket.on('error', () => {}).resume())
  const port = await listening(origin)
  const told: EvidenceBody[] = []
  const names = cellNames({ 'a.example': '127.0.0.1' })
  const relay = openRelay({
    policy: policyOf([{ host: 'a.example', port }], 'enforce'), names, journal: openJournal(body => told.push(body)), maxConnections: 3, firstBytesMs: 50,
    dialled: () => ({ address: '198.18.0.1', port }),
  })
  const server = createServer({ allowHalfOpen: true })
  relay.serve(server)
  const entry = await listening(server)
  const open = (bytes: string): { cut: Promise<string | undefined> } => {
    const socket = connect(entry, '127.0.0.1', () => socket.write(bytes))
    return { cut: new Promise(resolve => socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code)).once('close', () => resolve(undefined))) }
  }
  const until = async (count: number): Promise<void> => { for (let tries = 0; told.length < count && tries < 500; tries += 1) await new Promise(resolve => setTimeout(resolve, 5)) }
  t.equal(await open('\x16\x03').cut, 'ECONNRESET')
  await until(1)
  t.match(told.at(-1), { decision: 'refused', name: 'a.example', reason: 'its first message stayed incomplete', bytesOut: 0 })
  const held = Array.from({ length: 3 }, () => open('SSH-2.0-x\r\n'))
  for (let tries = 0; (await new Promise<number>(resolve => origin.getConnections((_, count) => resolve(count)))) < 3 && tries < 500; tries += 1) await new Promise(resolve => setTimeout(resolve, 5))
  t.equal(await open('SSH-2.0-x\r\n').cut, 'ECONNRESET')
  t.match(told.at(-1), { decision: 'refused', reason: 'more than 3 connections at once' })
  await relay.close()
  t.strictSame(await Promise.all(held.map(one => one.cut)), ['ECONNRESET', 'ECONNRESET', 'ECONNRESET'])
  t.equal(told.filter(one => one.type === 'flow' && one.reason === 'declared; still open when the cell ended').length, 3)
  server.close()
  origin.close()
})

/** A relay to one server on loopback, which the contract maps `localhost` to; reached at `entry`. */
async function relayTo(t: Test, origin: Server, grant: 'localhost' | '*', mode: 'observe' | 'enforce' = 'enforce'): Promise<{ entry: number; flows(count: number): Promise<Extract<EvidenceBody, { type: 'flow' }>[]> }> {
  const port = await listening(origin)
  const told: EvidenceBody[] = []
  const relay = openRelay({
    policy: policyOf(mode === 'observe' ? [] : [{ host: grant, port: grant === '*' ? '*' : port }], mode), names: cellNames({ localhost: '127.0.0.1' }), journal: openJournal(body => told.push(body)),
    dialled: () => ({ address: '198.18.0.1', port }),
  })
  const server = createServer({ allowHalfOpen: true })
  relay.serve(server)
  const entry = await listening(server)
  t.teardown(async () => {
    await relay.close()
    server.close()
    origin.close()
    if ('closeAllConnections' in origin) (origin as HttpServer).closeAllConnections()
  })
  const flows = (): Extract<EvidenceBody, { type: 'flow' }>[] => told.filter(one => one.type === 'flow')
  return {
    entry,
    async flows(count) {
      for (let tries = 0; flows().length < count && tries < 500; tries += 1) await new Promise(resolve => setTimeout(resolve, 5))
      return flows()
    },
  }
}

/** Sends each part once `until` was heard after the one before; gives all that came back, and how it ended. */
function talk(port: number, parts: string[], until = 'end of answer'): Promise<{ heard: string; code: string | null }> {
  return new Promise(resolve => {
    let heard = ''
    let code: string | null = null
    let sent = 0
    const socket = connect(port, '127.0.0.1')
    const send = (): void => void (sent < parts.length ? socket.write(Buffer.from(parts[sent++]!, 'latin1')) : socket.end())
    socket.once('connect', send).on('data', (data: Buffer) => {
      heard += data.toString('latin1')
      if (heard.split(until).length > sent) send()
    })
    socket.on('error', (error: NodeJS.ErrnoException) => { code = error.code! }).once('close', () => resolve({ heard, code }))
  })
}

const GET = (host: string, more = ''): string => `GET / HTTP/1.1\r\nHost: ${host}\r\n${more}\r\n`
const CLOSE = GET('evil.example', 'Connection: close\r\n')

t.test('on one connection no later request reaches another host, where names are declared', async t => {
  const attacks: Record<string, { parts: string[]; reason?: RegExp }> = {
    'a later request': { parts: [GET('localhost'), CLOSE] },
    'a pipelined request': { parts: [GET('localhost') + CLOSE] },
    'behind an empty line': { parts: [GET('localhost'), `\r\n${CLOSE}`], reason: /malformed/ },
    'behind a body': { parts: [`POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc${CLOSE}`] },
    'behind chunks': { parts: [`POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n${CLOSE}`] },
    'behind a request to leave HTTP that the server ignores': { parts: [GET('localhost', 'Connection: Upgrade\r\nUpgrade: nothing\r\n') + CLOSE] },
    'later than such a request': { parts: [GET('localhost', 'Connection: Upgrade\r\nUpgrade: nothing\r\n'), CLOSE] },
    'behind a request to leave HTTP that is not the first': { parts: [GET('localhost'), GET('localhost', 'Connection: Upgrade\r\nUpgrade: nothing\r\n'), CLOSE] },
    'by its target': { parts: [GET('localhost'), 'GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n'] },
  }
  for (const [what, { parts, reason = /a later HTTP request names evil.example, on a connection to localhost/ }] of Object.entries(attacks)) {
    for (const [grant, mode] of [['localhost', 'enforce'], ['*', 'enforce'], ['localhost', 'observe']] as const) {
      const reached: string[] = []
      const origin = createHttp((req, res) => {
        reached.push(req.headers.host!)
        req.resume().once('end', () => res.end('end of answer'))
      })
      const { entry, flows } = await relayTo(t, origin, grant, mode)
      const { heard } = await talk(entry, parts)
      if (grant === 'localhost' && mode === 'enforce') {
        t.notMatch(reached.join(), /evil/, what)
        t.match(await flows(2), [{ flow: 0, decision: 'allowed', name: 'localhost', nameSource: 'host', reason }, { flow: 0, decision: 'refused', name: /evil|localhost/, reason, bytesOut: 0 }], what)
      } else {
        t.equal(reached.at(-1), 'evil.example', `${what}: works without the check (${grant}, ${mode})`)
        t.match(heard, /end of answer/)
        t.match(await flows(1), [{ decision: 'allowed', name: 'localhost', reason }], what)
        t.equal((await flows(1)).length, 1)
      }
    }
  }
})

t.test('what only a lenient server takes for a request is refused where names are declared, and goes on where any is', async t => {
  const forms: Record<string, string> = {
    'a space first': ` ${CLOSE}`, 'an empty line first': `\r\n${CLOSE}`, 'PROXY': `PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\n${CLOSE}`, 'PROXY, version 2': `\r\n\r\n\0\r\nQUIT\n\x20\0\0\0${CLOSE}`,
    'SSL 2.0': '\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10evil.example', 'a tunnel': 'CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n', 'a tunnel by the server\'s own name': `CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n${CLOSE}`,
    'HTTP/0.9': 'GET http://evil.example/\r\n', 'a length and chunks': `POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n${CLOSE}`, 'a version that is none': 'GET / FOO\r\nHost: evil.example\r\n\r\n', 'LF only': 'GET / HTTP/1.1\nHost: evil.example\n\n',
  }
  for (const [what, bytes] of Object.entries(forms)) {
    for (const grant of ['localhost', '*'] as const) {
      let heard = ''
      const origin = createServer(socket => void socket.on('error', () => {}).on('data', data => {
        heard += data.toString('latin1')
        if (heard.includes('evil')) socket.end('end of answer')
      }))
      const { entry, flows } = await relayTo(t, origin, grant)
      const { code } = await talk(entry, [bytes])
      const [flow] = await flows(1)
      if (grant === '*') t.equal(heard, bytes, `${what}: arrives without the check, as it is`)
      else t.match({ code, heard, flow }, { code: 'ECONNRESET', heard: '', flow: { decision: 'refused', bytesOut: 0 } }, what)
    }
  }
})

const run = (command: string, args: string[], input?: string | Buffer): Promise<string> => new Promise((resolve, reject) => {
  const child = execFile(command, args, { encoding: 'latin1', maxBuffer: 64 * 1024 * 1024, timeout: 60_000, env: { ...process.env, NODE_OPTIONS: '', GIT_CONFIG_GLOBAL: '/dev/null', GIT_CONFIG_SYSTEM: '/dev/null' } }, (error, out) => (error === null ? resolve(out) : reject(error)))
  child.stdin!.on('error', () => {}).end(input)
})

t.test('real clients go on as they did, where names are declared', async t => {
  const directory = mkdtempSync(join(tmpdir(), 'ambit-relay-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  const repository = join(directory, 'r.git')
  await run('git', ['init', '-q', '--bare', '-b', 'main', repository])
  const tree = (await run('git', ['-C', repository, 'hash-object', '-t', 'tree', '-w', '--stdin'], '')).trim()
  const commit = (await run('git', ['-C', repository, '-c', 'user.name=a', '-c', 'user.email=a@a.example', 'commit-tree', tree, '-m', 'x'])).trim()
  await run('git', ['-C', repository, 'update-ref', 'refs/heads/main', commit])
  await run('git', ['-C', repository, 'update-server-info'])

  const connections = new Set<object>()
  const seen: string[] = []
  const origin = createHttp((req, res) => {
    connections.add(req.socket)
    seen.push(`${req.method} ${req.headers['transfer-encoding'] ?? req.headers['content-length'] ?? 0}${req.headers.expect === undefined ? '' : ' expects'}`)
    const file = join(directory, req.url!.replace(/[?].*/, ''))
    if (req.url!.startsWith('/r.git/')) return void (existsSync(file) ? res.end(readFileSync(file)) : res.writeHead(404).end())
    const hash = createHash('sha256')
    req.on('data', (data: Buffer) => hash.update(data)).once('end', () => res.end(`${req.method} ${req.url} ${hash.digest('hex')}\n`))
  })
  const talkative = createHttp()
  new WebSocketServer({ server: talkative }).on('connection', socket => socket.on('message', data => socket.send(data)))
  const sockets = await relayTo(t, talkative, 'localhost')
  const { entry, flows } = await relayTo(t, origin, 'localhost')
  const url = `http://localhost:${entry}`
  const of = (body: string | Buffer): string => createHash('sha256').update(body).digest('hex')
  const big = Buffer.alloc(20 * 1024 * 1024, `${GET('evil.example')}\n`)

  t.equal(await run('curl', ['-sS4', `${url}/1`, `${url}/2`, '--next', '-sS4', '-d', 'x=1', `${url}/3`, '--next', '-sS4', '-I', '-o', '/dev/null', `${url}/4`, '--next', '-sS4', `${url}/5`]), `GET /1 ${of('')}\nGET /2 ${of('')}\nPOST /3 ${of('x=1')}\nGET /5 ${of('')}\n`)
  t.equal(connections.size, 1, 'curl kept its connection')
  t.equal(await run('curl', ['-sS4', '-H', 'Expect: 100-continue', '--data-binary', '@-', `${url}/e`, `${url}/e`], big), `POST /e ${of(big)}\n`.repeat(2))
  t.ok(seen.includes(`POST ${big.length} expects`))
  t.equal(await run('curl', ['-sS4', '-T', '-', `${url}/c`], big), `PUT /c ${of(big)}\n`)
  t.ok(seen.some(one => one.startsWith('PUT chunked')))
  t.equal(await run('curl', ['-sS4', '--http2', `${url}/h`, `${url}/h`], ''), `GET /h ${of('')}\n`.repeat(2), 'that would rather speak HTTP/2')
  connections.clear()
  t.equal(await run('wget', ['-q', '-4', '-O-', `${url}/1`, `${url}/2`]), `GET /1 ${of('')}\nGET /2 ${of('')}\n`)
  t.equal(connections.size, 1, 'wget kept its connection')
  await run('git', ['clone', '-q', '--bare', `${url}/r.git`, join(directory, 'clone.git')])
  t.equal((await run('git', ['-C', join(directory, 'clone.git'), 'rev-parse', 'main'])).trim(), commit)

  connections.clear()
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  const ask = (method: string, body?: Buffer[]): Promise<string> => new Promise((resolve, reject) => {
    const req = request(`${url}/n`, { agent, method, family: 4 }, res => {
      let text = ''
      res.on('data', (data: Buffer) => { text += data.toString() }).once('end', () => resolve(text))
    }).on('error', reject)
    for (const part of body ?? []) req.write(part)
    req.end()
  })
  t.strictSame(await Promise.all([ask('GET'), ask('POST', [big, big]), ask('DELETE'), ask('GET')]), [`GET /n ${of('')}\n`, `POST /n ${of(Buffer.concat([big, big]))}\n`, `DELETE /n ${of('')}\n`, `GET /n ${of('')}\n`])
  t.equal(connections.size, 1, 'Node kept its connection')
  agent.destroy()

  const socket = new WebSocket(`ws://127.0.0.1:${sockets.entry}/w`, { headers: { Host: 'localhost' } })
  await once(socket, 'open')
  const frame = Buffer.alloc(100_000, 'GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n')
  socket.send(frame)
  t.ok(((await once(socket, 'message'))[0] as Buffer).equals(frame), 'a WebSocket is no HTTP any more')
  socket.close()
  await once(socket, 'close')

  const pipelined = await talk(entry, [Array.from({ length: 50 }, (_, index) => GET('localhost', index === 49 ? 'Connection: close\r\n' : '')).join('')])
  t.equal(pipelined.heard.split('HTTP/1.1 200 OK').length, 51, 'fifty requests at once')
  const half = await new Promise<string>(resolve => {
    let heard = ''
    const socket = connect({ port: entry, host: '127.0.0.1', allowHalfOpen: true }, () => socket.end(GET('localhost')))
    socket.on('data', (data: Buffer) => { heard += data.toString() }).once('end', () => resolve(heard)).once('end', () => socket.destroy())
  })
  t.match(half, /200 OK/, 'an answer comes after the client has ended its half')
  const apt = '/usr/lib/apt/methods/http'
  if (existsSync(apt)) {
    const acquire = ['1', '2', '3', '4'].map(name => `600 URI Acquire\nURI: ${url}/${name}\nFilename: ${join(directory, `apt${name}`)}\n\n`).join('')
    const method = spawn(apt, { stdio: ['pipe', 'pipe', 'ignore'] })
    const over = once(method, 'close')
    let told = ''
    const done = (): number => told.match(/^(?:201 URI Done|400 URI Failure)/gm)?.length ?? 0
    method.stdout.on('data', (data: Buffer) => {
      told += data.toString()
      if (done() === 4) method.stdin.end()
    })
    method.stdin.write(acquire)
    await over
    t.equal(told.match(/^201 URI Done/gm)?.length, 4, 'apt, which pipelines')
    t.equal(readFileSync(join(directory, 'apt3'), 'utf8'), `GET /3 ${of('')}\n`)
  }
  for (const flow of [...await flows(1), ...await sockets.flows(1)]) t.match(flow, { decision: 'allowed', name: 'localhost', nameSource: 'host', reason: 'declared' })
})

const SPEECHES = { other: 'SSH-2.0-client\r\n', http: 'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000000\r\n\r\n', 'http that would leave': 'POST / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: nothing\r\nContent-Length: 90000000000\r\n\r\n', bytes: '\0\x01\x02' }

t.test('nothing is lost, doubled or put out of order where a connection is handed over', async t => {
  const conversation = fc.record({
    speech: fc.constantFrom(...Object.keys(SPEECHES) as (keyof typeof SPEECHES)[]),
    cuts: fc.array(fc.integer({ min: 1, max: 120 }), { maxLength: 4 }), rest: fc.array(fc.integer({ min: 1, max: 300_000 }), { maxLength: 8 }),
    waits: fc.array(fc.integer({ min: 0, max: 2 }), { minLength: 5, maxLength: 5 }),
    banner: fc.constantFrom(0, 0, 20, 3_000_000), answer: fc.integer({ min: 0, max: 600_000 }), earlyEnd: fc.boolean(), deafAtFirst: fc.boolean(),
  })
  await fc.assert(fc.asyncProperty(fc.array(conversation, { minLength: 1, maxLength: 4 }), async all => {
    const banner = (size: number): Buffer => Buffer.alloc(size, 'banner')
    let number = 0
    const heards: Promise<string>[] = []
    const origin = createServer({ allowHalfOpen: true }, socket => {
      const one = all[number++]!
      const hash = createHash('sha256')
      socket.write(banner(one.banner))
      heards.push(new Promise(resolve => socket.on('error', () => resolve('broken off')).on('data', (data: Buffer) => void hash.update(data)).once('end', () => {
        resolve(hash.digest('hex'))
        if (!one.earlyEnd) socket.end(Buffer.alloc(one.answer, 'answer'))
      })))
      if (one.earlyEnd) socket.end(Buffer.alloc(one.answer, 'answer'))
    })
    const { entry, flows } = await relayTo(t, origin, 'localhost')
    for (const one of all) {
      const speech = Buffer.concat([Buffer.from(SPEECHES[one.speech]), ...one.rest.map((size, index) => Buffer.alloc(size, `part ${index} `))])
      const hash = createHash('sha256')
      const socket = connect({ port: entry, host: '127.0.0.1', allowHalfOpen: true }).setNoDelay()
      if (!one.deafAtFirst) socket.resume()
      const ended = new Promise<string>((resolve, reject) => socket.on('data', (data: Buffer) => void hash.update(data)).once('end', () => resolve(hash.digest('hex'))).once('error', reject))
      if (one.deafAtFirst) socket.pause()
      let at = 0
      for (const [index, cut] of one.cuts.entries()) {
        socket.write(speech.subarray(at, at += cut))
        await new Promise(resolve => setTimeout(resolve, one.waits[index]))
      }
      socket.end(speech.subarray(at))
      if (one.deafAtFirst) setTimeout(() => socket.resume(), 5)
      if (await ended !== createHash('sha256').update(banner(one.banner)).update(Buffer.alloc(one.answer, 'answer')).digest('hex')) throw new Error('what the server said')
      if (await heards.at(-1) !== createHash('sha256').update(speech).digest('hex')) throw new Error('what the client said')
      const [flow] = (await flows(heards.length)).slice(-1)
      if (flow!.reason !== 'declared' || flow!.bytesOut !== speech.length || flow!.bytesIn !== one.banner + one.answer) throw new Error(JSON.stringify(flow))
      socket.destroy()
    }
  }), { seed: 20_260_102, numRuns: 40 })
})

t.test('an upload that the server does not take is held back at the client, and memory is not', async t => {
  let taken = 0
  const origin = createServer(socket => { socket.on('error', () => {}).pause(); taken += 1 })
  const { entry } = await relayTo(t, origin, 'localhost')
  const socket = connect(entry, '127.0.0.1')
  socket.on('error', () => {})
  socket.write(`POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000000\r\n\r\n`)
  const chunk = Buffer.alloc(1024 * 1024)
  let sent = 0
  const before = process.memoryUsage().arrayBuffers
  while (socket.write(chunk) || await Promise.race([once(socket, 'drain').then(() => true), new Promise<boolean>(resolve => setTimeout(() => resolve(false), 500))])) sent += 1
  t.ok(taken === 1 && sent < 100, `${sent} MiB went into the kernel's buffers`)
  t.ok(process.memoryUsage().arrayBuffers - before < 8 * 1024 * 1024)
  socket.destroy()
})

t.test('HTTP/2 in clear is refused for a name, unless the contract gives the name its address', async t => {
  t.match(ruled(at443('a.example'), ['a.example'], { kind: 'http2' }), { decision: 'refused', reason: /HTTP\/2 in clear/ })
  t.match(ruled(at443('*'), ['a.example'], { kind: 'http2' }), { decision: 'allowed', reason: /HTTP\/2 in clear/ })
  t.match(ruled(at443('93.184.216.34'), ['a.example'], { kind: 'http2' }), { decision: 'refused', reason: /HTTP\/2 in clear/ }, 'what is there may be a proxy')
  const policy = policyOf(at443('m.example'), 'enforce')
  const route = ruleOnAddress({ policy, names: cellNames({ 'm.example': '127.0.0.1' }) }, parseAddress('198.18.0.1')!, 443)
  t.match(ruleOnFirstBytes(policy, route, 443, { kind: 'http2' }), { decision: 'allowed', name: 'm.example', reason: 'declared' })
})
