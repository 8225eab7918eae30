import fc from 'fast-check'
import ipaddr from 'ipaddr.js'
import t from 'tap'
import { blockHolds, parseAddress, parseBlock } from '../../src/authority/addresses.ts'
import { barOf } from '../../src/network/addresses.ts'
import { nameMatches, policyOf } from '../../src/network/policy.ts'

const none = new Set<string>()
const bar = (text: string): string | null => barOf(parseAddress(text)!, none)?.why ?? null
const v4 = fc.array(fc.nat(255), { minLength: 4, maxLength: 4 }).map(bytes => bytes.join('.'))
const v6 = fc.uint8Array({ minLength: 16, maxLength: 16 }).map(bytes => ipaddr.fromByteArray([...bytes]).toString())

t.test('addresses are read strictly, and mapped ones are the IPv4 that the kernel dials', async t => {
  for (const bad of ['10', '0x7f.1', '127.1', '', 'example.com', '1.2.3.4/33', '1.2.3.4/', '::1/129', '1.2.3.4/8/8', '1.2.3.4/-1']) t.equal(parseBlock(bad), null, bad)
  t.equal(parseAddress('::ffff:10.0.0.1')?.toString(), '10.0.0.1')
  t.equal(parseAddress('[2606:4700::1]')?.toString(), '2606:4700::1')
  t.equal(parseBlock('::ffff:10.0.0.0/104')?.bits, 8)
})

t.test('every special range is barred, at its edges too, and what lies beside it is not', async t => {
  for (const text of [
    '0.0.0.0', '0.255.255.255', '10.0.0.0', '10.255.255.255', '100.64.0.0', '100.127.255.255', '127.0.0.1', '127.255.255.255', '169.254.0.0', '169.254.169.254', '169.254.255.255',
    '172.16.0.0', '172.31.255.255', '192.168.0.0', '192.168.255.255', '168.63.129.16', '100.100.100.200', '192.0.0.192', '224.0.0.1', '239.255.255.255', '255.255.255.255', '240.0.0.1', '198.18.0.1', '198.19.255.255',
    '::', '::1', 'fe80::1', 'febf::1', 'fc00::1', 'fd00:ec2::254', 'fdff::1', 'ff02::1', 'fec0::1', '2001:db8::1', '2001::1', '2002:808:808::1', '4000::1', '100::1',
    '64:ff9b::10.0.0.1', '64:ff9b::169.254.169.254', '64:ff9b:1::8.8.8.8', '2002:a9fe:a9fe::', '::10.0.0.1', '::ffff:0:10.0.0.1', '::ffff:127.0.0.1', '::ffff:169.254.169.254',
  ]) t.type(bar(text), 'string', text)
  for (const text of ['1.0.0.0', '9.255.255.255', '11.0.0.0', '100.63.255.255', '100.128.0.0', '126.255.255.255', '128.0.0.1', '169.253.255.255', '169.255.0.0', '172.15.255.255', '172.32.0.0', '192.167.255.255', '192.169.0.0', '223.255.255.255', '168.63.129.17', '8.8.8.8', '2606:4700::1111', '2a00::1', '64:ff9b::8.8.8.8', '::ffff:8.8.8.8']) t.equal(bar(text), null, text)
})

t.test('whatever ipaddr.js does not call unicast is barred, and so is each form that carries it', async () => {
  fc.assert(fc.property(v4, text => {
    const address = ipaddr.parse(text)
    if (address.range() !== 'unicast' && bar(text) === null) return false
    const [a, b, c, d] = (address as ipaddr.IPv4).octets as [number, number, number, number]
    const hex = `${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`
    return bar(text) === bar(`::ffff:${text}`) && (bar(text) === null) === (bar(`64:ff9b::${text}`) === null) && bar(`2002:${hex}::1`) !== null && bar(`::${text}`) !== null
  }), { numRuns: 2000 })
  fc.assert(fc.property(v6, text => {
    const range = ipaddr.parse(text).range()
    return range === 'unicast' || range === 'rfc6052' || range === 'ipv4Mapped' || bar(text) !== null
  }), { numRuns: 2000 })
})

t.test('the host\'s own addresses are barred in each of their forms, whatever range they are in', async t => {
  const own = new Set(['93.184.216.34', '2606:4700::1111'])
  for (const text of ['93.184.216.34', '::ffff:93.184.216.34', '64:ff9b::93.184.216.34', '2606:4700::1111', '2606:4700:0:0::1111']) t.type(barOf(parseAddress(text)!, own)?.why, 'string', text)
  t.equal(barOf(parseAddress('93.184.216.35')!, own), null)
})

t.test('a block opens a barred range only if it is no wider than the range', async t => {
  const barred = (host: string, address: string, port = 443): string | null => policyOf([{ host, port: 443 }], 'enforce', () => new Set(['10.0.0.5'])).barred(parseAddress(address)!, port)
  t.equal(barred('10.0.0.0/8', '10.1.2.3'), null)
  t.equal(barred('10.1.2.3', '10.1.2.3'), null)
  t.equal(barred('169.254.169.254', '169.254.169.254'), null)
  t.equal(barred('fd00::/8', 'fd00::1'), null)
  t.match(barred('10.0.0.0/8', '10.1.2.3', 22), /private/, 'at another port')
  t.match(barred('0.0.0.0/0', '10.1.2.3'), /private/)
  t.match(barred('8.0.0.0/5', '10.1.2.3'), /private/)
  t.match(barred('169.254.0.0/16', '169.254.169.254'), /metadata/)
  t.match(barred('10.0.0.0/8', '10.0.0.5'), /own address/)
  t.match(barred('*', '10.1.2.3'), /private/)
  t.match(barred('::/0', '64:ff9b::10.0.0.1'), /NAT64/)
  fc.assert(fc.property(v4, fc.nat(32), (text, bits) => {
    const why = barred(`${text}/${bits}`, text)
    const held = barOf(parseAddress(text)!, new Set(['10.0.0.5']))
    return (why === null) === (held === null || bits >= held.bits)
  }), { numRuns: 2000 })
})

t.test('names match whole labels, any depth below a wildcard, and never by a look-alike', async t => {
  t.ok(nameMatches('*.example.com', 'a.example.com'))
  t.ok(nameMatches('*.example.com', 'b.a.example.com'))
  for (const not of ['example.com', '.example.com', 'badexample.com', 'a.example.com.evil.net', 'example.com.']) t.notOk(nameMatches('*.example.com', not), not)
  t.notOk(nameMatches('api.example.com', 'xapi.example.com'))
  const label = fc.stringMatching(/^[a-z0-9]{1,8}$/)
  const name = fc.array(label, { minLength: 1, maxLength: 5 }).map(labels => labels.join('.'))
  fc.assert(fc.property(name, name, (suffix, other) => {
    const below = other.endsWith(`.${suffix}`)
    return nameMatches(`*.${suffix}`, other) === below && nameMatches(`*.${suffix}`, `${other}.${suffix}`) && nameMatches(suffix, other) === (suffix === other)
  }))
  const { name: declared, open, address } = policyOf([{ host: 'API.Example.com.', port: 443 }, { host: '93.184.216.0/24', port: '*' }], 'enforce')
  t.ok(declared('api.example.com', 443))
  t.ok(declared('api.example.com', null))
  t.notOk(declared('api.example.com', 80))
  t.equal(open(443), null)
  t.ok(address(parseAddress('93.184.216.99')!, 5))
  t.notOk(address(parseAddress('93.184.217.1')!, 5))
  t.ok(blockHolds(parseBlock('2606:4700::/32')!, parseAddress('2606:4700:1::')!))
})
