import t from 'tap'
import { network } from '../../src/authority/network.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { connect, coverage, dns, flow, socket } from './evidence.ts'

type Raw = ({ host: string; port: number | '*'; protocol?: 'udp'; encryptedClientHello?: true; proxy?: true } | { unix: string })[]
const used = (events: EvidenceBody[]) => {
  const all = network.nothingUsed()
  for (const event of events) network.observe(event, all)
  return all
}
const rows = (declared: Raw, events: EvidenceBody[], seen = coverage()) => network.compare(network.schema.parse(declared), used(events), seen).map(row => `${row.grant}: ${row.outcome}`)
const narrow = (declared: Raw, events: EvidenceBody[]) => network.narrow(network.schema.parse(declared), used(events), coverage())
const proofOf = (host: string, events: EvidenceBody[]): string => network.compare(network.schema.parse([{ host, port: 443 }]), used(events), coverage())[0]!.proof
const hit = (host: string, name: string | null, address = '198.51.100.7'): boolean => rows([{ host, port: 443 }], [flow(name, 443, { address })])[0] === `${host.includes(':') ? `[${host}]` : host}:443: used`

t.test('names match as names', async t => {
  t.ok(hit('*.example.com', 'a.example.com'))
  t.ok(hit('*.example.com', 'b.a.example.com'))
  t.notOk(hit('*.example.com', 'example.com'))
  t.notOk(hit('*.example.com', 'evil-example.com'))
  t.notOk(hit('example.com', 'a.example.com'))
  t.notOk(hit('example.com', 'example.com.evil.test'))
  t.ok(hit('example.com', 'EXAMPLE.COM.'), 'case and the last dot say nothing')
  t.same(network.schema.parse([{ host: 'Example.COM.', port: 443 }]), [{ host: 'example.com', port: 443 }])
  t.notOk(hit('example.com', null), 'an address alone is no name')
})

t.test('addresses match as addresses', async t => {
  t.ok(hit('198.51.100.0/24', null))
  t.notOk(hit('198.51.101.0/24', null))
  t.ok(hit('2001:db8::/32', null, '2001:0DB8:0:0::1'))
  t.ok(hit('198.51.100.7', null, '::ffff:198.51.100.7'), 'a mapped address is the one it means')
  t.notOk(hit('2001:db8::/32', null))
  t.same(network.schema.parse([{ host: '[2001:DB8:0::1]', port: '*' }]), [{ host: '2001:db8::1', port: '*' }])
})

t.test('ports are numbers or all', async t => {
  t.same(rows([{ host: 'a.test', port: 80 }], [flow('a.test', 443)]), ['a.test:80: unused', 'a.test:443: undeclared'])
  t.same(rows([{ host: 'a.test', port: '*' }], [flow('a.test', 443)]), ['a.test:*: used'])
  for (const port of [0, 65536, 1.5, '443', null, -1]) t.notOk(network.schema.safeParse([{ host: 'a.test', port }]).success, `port ${port}`)
  for (const host of ['', 'a b', 'http://a.test', 'a.test:443', '*a.test', 'a.*.test', '**', '10.0.0.1/8', '10.0.0.0/33', '-a.test', '1.2.3', '0x7f.1', 'ä.test', 'a..b', `${'a'.repeat(64)}.test`, '10.0.0.0/8/8']) {
    t.notOk(network.schema.safeParse([{ host, port: 443 }]).success, `host ${JSON.stringify(host)}`)
  }
  t.notOk(network.schema.safeParse([{ host: 'a.test', port: 1 }, { host: 'A.TEST', port: 1 }]).success, 'twice the same')
})

t.test('what was tried and stopped is denied', async t => {
  t.same(rows([], [flow('evil.test', 443, { decision: 'refused', reason: 'not declared' })]), ['evil.test:443: denied'])
  t.same(rows([], [dns('evil.test', 'refused')]), ['evil.test: denied'])
  t.same(rows([], [dns('a.test', 'allowed', ['198.51.100.7']), dns('a.test', 'refused', [], 'no answer for AAAA')]), [], 'a name that was answered was not withheld')
  t.same(rows([], [connect('203.0.113.5', 22)]), ['203.0.113.5:22: denied'])
  t.same(rows([], [connect('127.0.0.1', 22), connect('::1', 22), connect('203.0.113.5', 53, 'udp')]), [], 'the cell itself, and address sorting')
  t.same(rows([], [connect('198.51.100.7', 443), flow('a.test', 443)]), ['a.test:443: undeclared'], 'what the relay saw is told once')
  const [row] = network.compare(network.schema.parse([{ host: 'a.test', port: 443 }]), used([flow('a.test', 443, { decision: 'refused', reason: 'the name leads elsewhere' })]), coverage()).slice(1)
  t.match(row, { outcome: 'denied', declared: true, proof: /leads elsewhere/ }, 'declared, and refused all the same')
})

t.test('a declared destination that was tried and never reached is kept', async t => {
  const tried = [dns('a.test', 'allowed', ['203.0.113.5']), connect('203.0.113.5', 443)]
  t.same(rows([{ host: 'a.test', port: 443 }], tried), ['a.test:443: used'])
  t.same(narrow([{ host: 'a.test', port: 443 }], tried), [{ host: 'a.test', port: 443 }])
})

t.test('"*" narrows to where the job went', async t => {
  t.same(narrow([{ host: '*', port: '*' }], [flow('b.test', 443), flow('a.test', 80), flow(null, 25, { address: '203.0.113.5' }), flow('c.test', 443, { decision: 'refused' })]),
    [{ host: '203.0.113.5', port: 25 }, { host: 'a.test', port: 80 }, { host: 'b.test', port: 443 }])
  t.same(narrow([{ host: '*.test', port: '*' }], [flow('b.a.test', 443)]), [{ host: '*.test', port: 443 }], 'a family of names stays: its members change from run to run')
  t.same(narrow([{ host: '*', port: '*' }], [flow('bad name\u001b', 443)]), [{ host: '198.51.100.7', port: 443 }], 'a name that no grant can hold is none')
})

t.test('UDP is declared by its name, and says nothing of TCP', async t => {
  t.same(network.schema.parse([{ host: 'a.test', port: 1, protocol: 'tcp' }]), [{ host: 'a.test', port: 1 }], 'one form for what is meant')
  t.same(rows([{ host: 'ntp.test', port: 123, protocol: 'udp' }], [flow('ntp.test', 123, { protocol: 'udp' })]), ['ntp.test:123/udp: used'])
  t.same(rows([{ host: 'ntp.test', port: 123 }], [flow('ntp.test', 123, { protocol: 'udp' })]), ['ntp.test:123: unused', 'ntp.test:123/udp: undeclared'])
  t.same(rows([{ host: '*', port: '*' }], [flow('ntp.test', 123, { protocol: 'udp', decision: 'refused' })]), ['*:*: unused', 'ntp.test:123/udp: denied'])
  t.same(narrow([{ host: '*', port: '*', protocol: 'udp' }], [flow('ntp.test', 123, { protocol: 'udp' }), flow('a.test', 443)]), [{ host: 'ntp.test', port: 123, protocol: 'udp' }])
  t.notOk(network.schema.safeParse([{ host: 'a.test', port: 1, protocol: 'sctp' }]).success)
  t.same(network.toJob!([{ host: 'a.test', port: 443 }, { host: 'a.test', port: 443, protocol: 'udp' }]), {}, 'a pipeline file cannot say it')
})

t.test('a hidden name is used only where the contract lets names be hidden', async t => {
  const hidden = flow('a.test', 443, { encryptedClientHello: true })
  t.same(rows([{ host: 'a.test', port: 443, encryptedClientHello: true }], [hidden]), ['a.test:443 with encrypted ClientHello: used'])
  t.same(rows([{ host: 'a.test', port: 443 }], [hidden]), ['a.test:443: unused', 'a.test:443 with encrypted ClientHello: undeclared'])
  t.same(narrow([{ host: 'a.test', port: 443, encryptedClientHello: true }], [flow('a.test', 443)]), [{ host: 'a.test', port: 443 }], 'what was not hidden need not be')
  t.same(narrow([{ host: '*', port: '*' }], [hidden]), [{ host: 'a.test', port: 443, encryptedClientHello: true }])
  t.same(rows([{ host: '198.51.100.0/24', port: 443 }], [hidden]), ['198.51.100.0/24:443: used'], 'an address is asked for no name')
  for (const bad of [{ host: '*', port: 1 }, { host: '10.0.0.0/8', port: 1 }, { host: 'a.test', port: 1, protocol: 'udp' }]) t.notOk(network.schema.safeParse([{ ...bad, encryptedClientHello: true }]).success, JSON.stringify(bad))
  t.same(network.schema.parse([{ host: 'a.test', port: 1, encryptedClientHello: false }]), [{ host: 'a.test', port: 1 }])
})

t.test('a proxy is used as one only where the contract says so, and how many names a wildcard was asked for is told', async t => {
  const asked = flow('proxy.test', 3128, { proxy: true })
  t.same(rows([{ host: 'proxy.test', port: 3128, proxy: true }], [asked]), ['proxy.test:3128 as a proxy: used'])
  t.same(rows([{ host: 'proxy.test', port: 3128 }], [asked]), ['proxy.test:3128: unused', 'proxy.test:3128 as a proxy: undeclared'])
  t.same(narrow([{ host: 'proxy.test', port: 3128, proxy: true }], [asked]), [{ host: 'proxy.test', port: 3128, proxy: true }])
  t.same(narrow([{ host: 'proxy.test', port: 3128, proxy: true }], [flow('proxy.test', 3128)]), [{ host: 'proxy.test', port: 3128 }], 'what led nowhere need not be one')
  t.notOk(network.within(network.schema.parse([{ host: 'proxy.test', port: 1, proxy: true }]), network.schema.parse([{ host: 'proxy.test', port: 1 }])))
  for (const bad of [{ host: '*', port: 1 }, { host: 'a.test', port: 1, protocol: 'udp' }, { unix: '/run/x.sock' }]) t.notOk(network.schema.safeParse([{ ...bad, proxy: true }]).success, JSON.stringify(bad))
  const names = Array.from({ length: 12 }, (_, index) => dns(`n${index}.cdn.test`, 'allowed', []))
  t.match(proofOf('*.cdn.test', names), /; 12 different names were asked for/)
  t.match(proofOf('*.cdn.test', [...names, flow('n1.cdn.test', 443)]), /; 12 different names below it were asked for/)
})

t.test('a Unix socket is granted by its path, and only what speaks to it uses it', async t => {
  const PG = '/run/postgresql/.s.PGSQL.5432'
  t.same(rows([{ unix: PG }], [socket(PG)]), [`unix:${PG}: used`])
  t.same(rows([{ unix: PG }], []), [`unix:${PG}: unused`])
  t.same(rows([{ unix: PG }], [], coverage({ file: ['lost'] })), [`unix:${PG}: unobservable`], 'connections to paths are evidence of files')
  t.same(narrow([{ unix: PG }], []), [])
  t.same(network.narrow(network.schema.parse([{ unix: PG }]), used([]), coverage({ file: ['lost'] })), [{ unix: PG }])
  t.same(rows([{ unix: PG }], [socket('/tmp/link')]), [`unix:${PG}: unobservable`, 'unix:/tmp/link: unobservable'], 'a link may have led there')
  t.same(rows([], [socket('/run/docker.sock', false)]), ['unix:/run/docker.sock: denied'])
  t.same(rows([], [socket('/var/lib/x.sock')]), ['unix:/var/lib/x.sock: undeclared'])
  const owned = (path: string, owner?: 'cell' | 'host'): string[] => rows([], [socket(path, true, '', owner)])
  for (const path of ['/tmp/own.sock', '/workspace/own.sock', '/proc/self/fd/3', '/var/lib/made.sock']) t.same(owned(path, 'cell'), [], `${path}, of the job's making`)
  for (const path of ['/tmp/own.sock', '/workspace/own.sock', '/proc/self/fd/3', '/var/lib/x.sock']) t.same(owned(path, 'host'), [`unix:${path}: undeclared`], 'a name of the job\'s own for a socket of the host')
  t.same(owned('/tmp/own.sock'), ['unix:/tmp/own.sock: unobservable'], 'what a message was sent to is not known')
  t.same(rows([{ unix: PG }], [socket('/tmp/own.sock', true, '', 'cell')]), [`unix:${PG}: unused`])
  t.same(rows([{ unix: PG }], [socket('/proc/self/fd/3', true, '', 'host')]), [`unix:${PG}: unobservable`, 'unix:/proc/self/fd/3: undeclared'])
  for (const unix of ['relative', '/run/../etc', '/run/ambit/ambit.sock', '/proc/1/root/run/x', '/dev/log', `/run/${'x'.repeat(120)}`, '/run', '/', '/run//x']) t.notOk(network.schema.safeParse([{ unix }]).success, unix)
  t.notOk(network.schema.safeParse([{ unix: PG, port: 1 }]).success)
  t.notOk(network.schema.safeParse([{}]).success)
  t.notOk(network.schema.safeParse([{ host: 'a.test' }]).success)
  t.notOk(network.schema.safeParse([{ port: 1 }]).success)
})

t.test('a pipeline file gets what it can say', async t => {
  t.same(network.toJob!([{ host: 'a.test', port: 443 }]), { egress: [{ host: 'a.test', port: 443 }] })
  t.same(network.toJob!([]), { egress: [] })
  t.same(network.toJob!([{ host: '*', port: 443 }]), {})
  const job = { tokenPermissions: {}, oidc: false, secrets: [], egress: null }
  t.same(network.fromJob(job), [{ host: '*', port: '*' }], 'no limit in the file is no limit')
  t.same(network.fromJob({ ...job, egress: [] }), [])
})

t.test('one grant stands for another', async t => {
  const within = (inner: Raw, outer: Raw): boolean => network.within(network.schema.parse(inner), network.schema.parse(outer))
  t.ok(within([{ host: 'a.example.com', port: 1 }], [{ host: '*.example.com', port: '*' }]))
  t.ok(within([{ host: '*.a.example.com', port: 1 }], [{ host: '*.example.com', port: 1 }]))
  t.notOk(within([{ host: '*.example.com', port: 1 }], [{ host: '*.a.example.com', port: 1 }]))
  t.notOk(within([{ host: 'example.com', port: 1 }], [{ host: '*.example.com', port: 1 }]))
  t.ok(within([{ host: '10.1.0.0/16', port: 1 }], [{ host: '10.0.0.0/8', port: 1 }]))
  t.notOk(within([{ host: '10.0.0.0/8', port: 1 }], [{ host: '10.1.0.0/16', port: 1 }]))
  t.notOk(within([{ host: '*', port: 1 }], [{ host: '0.0.0.0/0', port: 1 }]), 'all names is more than all IPv4 addresses')
  t.notOk(within([{ host: 'a.test', port: '*' }], [{ host: 'a.test', port: 1 }]))
  t.notOk(within([{ host: 'a.test', port: 1, protocol: 'udp' }], [{ host: '*', port: '*' }]))
  t.notOk(within([{ host: 'a.test', port: 1, encryptedClientHello: true }], [{ host: 'a.test', port: 1 }]))
  t.ok(within([{ host: 'a.test', port: 1 }], [{ host: 'a.test', port: 1, encryptedClientHello: true }]))
  t.notOk(within([{ unix: '/run/a' }], [{ unix: '/run/b' }, { host: '*', port: '*' }]))
})
