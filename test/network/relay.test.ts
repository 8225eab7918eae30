import { connect, createServer, type AddressInfo, type Server } from 'node:net'
import t from 'tap'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { parseAddress } from '../../src/network/addresses.ts'
import type { FirstBytes } from '../../src/network/first-bytes.ts'
import { openJournal } from '../../src/network/journal.ts'
import { cellNames } from '../../src/network/names.ts'
import { policyOf, type NetworkGrant } from '../../src/network/policy.ts'
import { openRelay, ruleOnAddress, ruleOnFirstBytes, type Ruling } from '../../src/network/relay.ts'

const ADDRESS = parseAddress('93.184.216.34')!
/** The ruling on a connection to one address, once its first bytes were read; null: refused before that. */
function ruled(grants: NetworkGrant[], given: string[], first: FirstBytes, options: { mode?: 'observe' | 'enforce'; port?: number } = {}): Ruling {
  const policy = policyOf(grants, options.mode ?? 'enforce', () => new Set())
  const names = cellNames({})
  for (const name of given) names.give(name, [ADDRESS])
  const port = options.port ?? 443
  const route = ruleOnAddress({ policy, names }, ADDRESS, port)
  return route.decision === 'refused' ? route : ruleOnFirstBytes(policy, route, port, first)
}
const at443 = (...hosts: string[]): NetworkGrant[] => hosts.map(host => ({ host, port: 443 }))
const sni = (name: string | null, ech = false): FirstBytes => ({ kind: 'tls', sni: name, ech })

t.test('a hidden name is refused where names are declared, and told where any is', async t => {
  t.match(ruled(at443('a.example'), ['a.example'], sni('a.example', true)), { decision: 'refused', reason: /encrypted ClientHello/ })
  t.match(ruled(at443('*'), ['a.example'], sni('a.example', true)), { decision: 'allowed', name: 'a.example', reason: /encrypted ClientHello/ })
  t.match(ruled([], ['a.example'], sni('a.example', true), { mode: 'observe' }), { decision: 'allowed', reason: /encrypted ClientHello/ })
  t.match(ruled(at443('a.example'), ['a.example'], { kind: 'unclear', why: 'odd' }), { decision: 'refused', reason: 'odd' })
  t.match(ruled(at443('*'), ['a.example'], { kind: 'unclear', why: 'odd' }), { decision: 'allowed', reason: /odd/ })
})

t.test('without a name from the client, the resolver\'s one suffices if there is only one', async t => {
  for (const first of [sni(null), { kind: 'http', host: null }, { kind: 'http2' }] satisfies FirstBytes[]) {
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
