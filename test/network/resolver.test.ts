import packet from 'dns-packet'
import fc from 'fast-check'
import t from 'tap'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { parseAddress } from '../../src/authority/addresses.ts'
import { openJournal } from '../../src/network/journal.ts'
import { cellNames } from '../../src/network/names.ts'
import { policyOf } from '../../src/network/policy.ts'
import { cellResolver } from '../../src/network/resolver.ts'
import type { Looked, Upstream } from '../../src/network/upstream.ts'

type Dns = Extract<EvidenceBody, { type: 'dns' }>
const found = (...addresses: string[]): Looked => ({ outcome: 'found', addresses: addresses.map(one => parseAddress(one)!), ttl: 5 })

function cell(grants: string[], options: { mode?: 'observe' | 'enforce'; hosts?: Record<string, string>; answers?: Record<string, Looked>; ipv6?: boolean; maxBelow?: number } = {}) {
  const told: EvidenceBody[] = []
  const asked: string[] = []
  const upstream: Upstream = {
    lookup: async (name, type) => {
      asked.push(`${type} ${name}`)
      return options.answers?.[`${type} ${name}`] ?? { outcome: 'no-name' }
    },
    ipv6: async () => options.ipv6 ?? true,
    close: () => {},
  }
  const mode = options.mode ?? 'enforce'
  const names = cellNames(options.hosts ?? {})
  const journal = openJournal(body => told.push(body), { kinds: 50, each: 10, all: 100 })
  const resolver = cellResolver({ policy: policyOf(grants.map(host => ({ host, port: 443 })), mode, () => new Set()), names, upstream, journal, mode, ...(options.maxBelow === undefined ? {} : { maxBelow: options.maxBelow }) })
  const ask = async (name: string, type = 'A', edns = true, transport: 'udp' | 'tcp' = 'udp') => {
    const query = packet.encode({ type: 'query', id: 7, flags: packet.RECURSION_DESIRED, questions: [{ type: type as 'A', name }], ...(edns ? { additionals: [{ type: 'OPT', name: '.', udpPayloadSize: 4096, flags: 0, options: [] } as never] } : {}) })
    const reply = (await resolver.answer(query, transport))!
    const { rcode, flag_tc, answers, questions, additionals } = packet.decode(reply) as packet.DecodedPacket & { rcode: string }
    return { rcode, truncated: flag_tc, size: reply.length, name: questions![0]!.name, addresses: answers!.map(one => (one as { data: string }).data), ttl: answers!.map(one => (one as { ttl: number }).ttl)[0], edns: additionals! }
  }
  return { ask, told, asked, names, resolver, journal, dns: () => told.filter((one): one is Dns => one.type === 'dns') }
}

t.test('a declared name is answered with the host\'s answer, remembered, and told once', async t => {
  const { ask, dns, names } = cell(['api.example.com'], { answers: { 'A api.example.com': found('93.184.216.34', '93.184.216.35'), 'AAAA api.example.com': found('2606:4700::1') } })
  const reply = await ask('aPi.Example.com')
  t.match(reply, { rcode: 'NOERROR', addresses: ['93.184.216.34', '93.184.216.35'], ttl: 10, name: 'aPi.Example.com' }, 'in the case it was asked in')
  t.match(await ask('api.example.com', 'AAAA'), { rcode: 'NOERROR', addresses: ['2606:4700::1'] })
  await ask('api.example.com')
  t.strictSame(names.of(parseAddress('93.184.216.35')!), ['api.example.com'])
  t.strictSame(dns().map(one => [one.name, one.rrtype, one.decision, one.answers.length]), [['api.example.com', 'A', 'allowed', 2], ['api.example.com', 'AAAA', 'allowed', 1]])
})

t.test('an undeclared name ends at once, with the reason, and never leaves the host', async t => {
  const { ask, asked, dns } = cell(['api.example.com', '*.cdn.example'])
  for (const name of ['evil.example', 'c2VjcmV0.evil.example', 'api.example.com.evil.example', 'cdn.example']) {
    const reply = await ask(name)
    t.match(reply, { rcode: 'NXDOMAIN', addresses: [] }, name)
    t.match(JSON.stringify(reply.edns), /"code":15/, 'EDE: blocked')
  }
  t.strictSame(asked, [])
  t.match(dns().map(one => one.decision), ['refused', 'refused', 'refused', 'refused'])
  await ask('a.b.cdn.example')
  t.strictSame(asked, ['A a.b.cdn.example'])
  await cell([], { mode: 'observe' }).ask('evil.example').then(reply => t.equal(reply.rcode, 'NXDOMAIN'))
  const observed = cell([], { mode: 'observe', answers: { 'A evil.example': found('93.184.216.66') } })
  t.match(await observed.ask('evil.example'), { rcode: 'NOERROR', addresses: ['93.184.216.66'] }, 'the same question gets through where nothing is enforced')
  t.match(observed.dns()[0], { decision: 'allowed', reason: /not declared/ })
})

t.test('only addresses are answered: no keys that hide a name, no text', async t => {
  const { ask, asked, resolver } = cell(['*'])
  for (const type of ['HTTPS', 'SVCB', 'TXT', 'MX', 'NULL', 'SRV', 'CNAME', 'ANY']) t.match(await ask('api.example.com', type), { rcode: 'NOERROR', addresses: [] }, type)
  t.strictSame(asked, [])
  const chaos = packet.encode({ type: 'query', id: 1, questions: [{ type: 'TXT', name: 'version.bind', class: 'CH' }] })
  t.equal((packet.decode((await resolver.answer(chaos, 'udp'))!) as { rcode?: string }).rcode, 'REFUSED')
})

t.test('names are compared as DNS compares them, and a wildcard is not its own name', async t => {
  const { ask, asked } = cell(['xn--bcher-kva.example', '*.Cdn.example', 'a.example'])
  for (const [name, plain] of [['A.EXAMPLE', 'a.example'], ['a.example.', 'a.example'], ['XN--Bcher-KVA.example', 'xn--bcher-kva.example'], ['x.y.CDN.example.', 'x.y.cdn.example']] as const) {
    await ask(name)
    t.equal(asked.at(-1), `A ${plain}`, name)
  }
  const before = asked.length
  for (const name of ['cdn.example', 'xcdn.example', 'b\u00fccher.example', 'b.a.example', 'a.example.evil.example', 'xn--bcher-kva.example.evil.example', '*.cdn.example']) t.match(await ask(name), { rcode: 'NXDOMAIN' }, name)
  t.equal(asked.length, before, 'and none of them left the host')
})

t.test('an alias of a declared name is answered under that name alone: the one behind it is not declared by it', async t => {
  const { ask, names, asked } = cell(['a.example', 'b.example'], { answers: { 'A a.example': found('93.184.216.40'), 'A b.example': found('93.184.216.40'), 'A behind.cdn.test': found('93.184.216.40') } })
  t.match(await ask('a.example'), { addresses: ['93.184.216.40'] })
  t.match(await ask('a.example', 'CNAME'), { rcode: 'NOERROR', addresses: [] })
  t.match(await ask('behind.cdn.test'), { rcode: 'NXDOMAIN' })
  t.strictSame(names.of(parseAddress('93.184.216.40')!), ['a.example'])
  await ask('b.example')
  t.strictSame(names.of(parseAddress('93.184.216.40')!), ['b.example', 'a.example'], 'two names at one address are both remembered')
  t.strictSame(asked, ['A a.example', 'A b.example'])
})

t.test('names carry nothing out below an undeclared one; below a wildcard they do, up to a bound, and are told', async t => {
  const secret = (part: number): string => `${String(part).padStart(3, '0')}${'k'.repeat(57)}.${'x'.repeat(60)}`
  const undeclared = cell(['*.cdn.example'], { maxBelow: 20 })
  for (let part = 0; part < 30; part += 1) for (const type of ['A', 'TXT', 'NULL', 'ANY']) t.match(await undeclared.ask(`${secret(part)}.evil.example`, type), { rcode: 'NXDOMAIN', addresses: [] })
  t.strictSame(undeclared.asked, [])
  const open = cell(['*', '*.cdn.example'], { maxBelow: 20 })
  for (let part = 0; part < 30; part += 1) await open.ask(`${secret(part)}.cdn.example`)
  t.equal(open.asked.length, 30, 'where any name is declared, all of it goes out')
  const { ask, asked, dns } = cell(['*.cdn.example', 'own.cdn.example'], { maxBelow: 20 })
  for (let part = 0; part < 30; part += 1) await ask(`${secret(part)}.cdn.example`)
  t.equal(asked.length, 20)
  t.match(dns().at(-1), { decision: 'refused', reason: 'declared by *.cdn.example, below which 20 different names were asked for already' })
  await ask(`${secret(0)}.cdn.example`)
  await ask('own.cdn.example')
  t.strictSame(asked.slice(20), [`A ${secret(0)}.cdn.example`, 'A own.cdn.example'], 'what was asked before, and what is declared itself, goes on')
})

t.test('answers that the relay would refuse are cut, and names of the contract\'s hosts get an address of their own', async t => {
  const { ask, dns, names } = cell(['rebind.example', 'mixed.example', 'local.example', '10.1.0.0/16', 'inner.example'], {
    hosts: { 'Local.example': '127.0.0.1', 'undeclared.example': '127.0.0.1' },
    answers: { 'A rebind.example': found('169.254.169.254'), 'A mixed.example': found('127.0.0.1', '93.184.216.34', '10.0.0.1'), 'AAAA mixed.example': found('64:ff9b::7f00:1'), 'A inner.example': found('10.1.2.3') },
  })
  t.match(await ask('rebind.example'), { rcode: 'NOERROR', addresses: [] })
  t.match(await ask('mixed.example'), { addresses: ['93.184.216.34'] })
  t.match(await ask('mixed.example', 'AAAA'), { addresses: [] })
  t.match(await ask('inner.example'), { addresses: ['10.1.2.3'] }, 'a private address that the contract names')
  t.match(dns().map(one => `${one.name} ${one.decision} ${one.reason}`), [/rebind.example refused .*metadata/, /mixed.example allowed .*left out: .*loopback/, /mixed.example refused .*NAT64/, /inner/])
  const local = await ask('local.example')
  t.match(local.addresses[0], /^198\.18\./)
  t.match(names.mappedAt(parseAddress(local.addresses[0]!)!), { name: 'local.example', target: '127.0.0.1' })
  t.match(await ask('local.example', 'AAAA'), { rcode: 'NOERROR', addresses: [] })
  t.match(await ask('undeclared.example'), { rcode: 'NXDOMAIN' }, 'being mapped is not being declared')
})

t.test('a host without IPv6 answers no AAAA, and an upstream that fails is told as failed', async t => {
  const { ask, dns } = cell(['a.example', 'b.example'], { ipv6: false, answers: { 'AAAA a.example': found('2606:4700::1'), 'A b.example': { outcome: 'failed', why: 'the host\'s resolver says ETIMEOUT' } } })
  t.match(await ask('a.example', 'AAAA'), { rcode: 'NOERROR', addresses: [] })
  t.match(await ask('b.example'), { rcode: 'SERVFAIL' })
  t.match(dns().map(one => one.reason), [/no IPv6 route/, /ETIMEOUT/])
})

t.test('what does not fit a datagram is marked, and whole over TCP', async t => {
  const many = Array.from({ length: 40 }, (_, index) => `93.184.216.${index + 1}`)
  const many6 = Array.from({ length: 40 }, (_, index) => `2606:4700::${index + 1}`)
  const name = `${'many'.repeat(14)}.example`
  const { ask } = cell([name], { answers: { [`A ${name}`]: found(...many), [`AAAA ${name}`]: found(...many6) } })
  t.match(await ask(name, 'AAAA', false), { truncated: true, addresses: [] })
  const whole = await ask(name, 'AAAA', false, 'tcp')
  t.equal(whole.addresses.length, 16)
  t.match(await ask(name, 'A', false), { truncated: false })
  t.ok((await ask(name, 'AAAA')).size <= 1232)
})

t.test('look-ups under way are shared and bounded', async t => {
  const waiting: (() => void)[] = []
  let asked = 0
  const upstream: Upstream = { lookup: () => { asked += 1; return new Promise(resolve => waiting.push(() => resolve({ outcome: 'no-name' }))) }, ipv6: async () => true, close: () => {} }
  const resolver = cellResolver({ policy: policyOf([], 'observe'), names: cellNames({}), upstream, journal: openJournal(() => {}), mode: 'observe' })
  const ask = (name: string) => resolver.answer(packet.encode({ type: 'query', questions: [{ type: 'A', name }] }), 'udp')
  const same = [ask('same.example'), ask('same.example'), ask('SAME.example')]
  const flood = Array.from({ length: 100 }, (_, index) => ask(`n${index}.example`))
  const refused = await Promise.all(flood.slice(63))
  t.equal(asked, 64)
  t.ok(refused.every(reply => (packet.decode(reply!) as { rcode?: string }).rcode === 'SERVFAIL'))
  for (const wake of waiting) wake()
  t.equal((await Promise.all([...same, ...flood.slice(0, 63)])).length, 66)
})

t.test('a flood of names is told up to a bound, and the rest as lost', async t => {
  const { ask, journal, told, dns } = cell(['a.example'])
  for (let index = 0; index < 80; index += 1) await ask(`x${index}.evil.example`)
  await ask('x1.evil.example')
  journal.close()
  await ask('late.example')
  t.equal(dns().length, 50)
  t.match(told.at(-1), { type: 'loss', family: 'dns', event: 'dns', produced: 80, delivered: 50, dropped: 30 })
})

t.test('no bytes crash it: every reply carries the asker\'s id and is a response, or there is none', async t => {
  const { resolver } = cell([], { mode: 'observe', answers: {} })
  const good = packet.encode({ type: 'query', id: 0x1234, flags: packet.RECURSION_DESIRED, questions: [{ type: 'A', name: 'api.example.com' }], additionals: [{ type: 'OPT', name: '.', udpPayloadSize: 1232, flags: 0, options: [] } as never] })
  const sound = async (query: Buffer, transport: 'udp' | 'tcp'): Promise<boolean> => {
    const reply = await resolver.answer(query, transport)
    if (reply === null) return query.length < 12 || (query[2]! & 0x80) !== 0
    packet.decode(reply)
    return reply.readUInt16BE(0) === query.readUInt16BE(0) && (reply[2]! & 0x80) !== 0 && (transport === 'tcp' || reply.length <= 1232)
  }
  const transport = fc.constantFrom('udp' as const, 'tcp' as const)
  await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 600 }), transport, (bytes, by) => sound(Buffer.from(bytes), by)), { numRuns: 1500 })
  await fc.assert(fc.asyncProperty(fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { maxLength: 4 }), fc.nat(good.length), transport, (changes, length, by) => {
    const query = Buffer.from(good.subarray(0, length))
    for (const [at, value] of changes) if (at < length) query[at] = value
    return sound(query, by)
  }), { numRuns: 1500 })
  const loop = Buffer.from(good)
  loop[12] = 0xc0
  loop[13] = 0x0c
  t.equal((packet.decode((await resolver.answer(loop, 'udp'))!) as { rcode?: string }).rcode, 'FORMERR', 'a name that points at itself')
  t.equal((packet.decode((await resolver.answer(Buffer.alloc(65_535), 'tcp'))!) as { rcode?: string }).rcode, 'FORMERR')
})
