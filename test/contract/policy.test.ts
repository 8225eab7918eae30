import { spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { excessOf, readPolicy, readPolicyFile } from '../../src/contract/policy.ts'
import { policySchema, type PolicyRule } from '../../src/contract/policy-schema.ts'
import { readContract } from '../../src/contract/read.ts'
import { contractSchema, type Contract } from '../../src/contract/schema.ts'
import { AmbitError } from '../../src/errors.ts'

const HEAD = 'apiVersion: ambit/v1\nkind: Policy\nrules:\n'
const CONTRACT = 'apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: enforce\n  ttl: 1h\n  limits: { memory: 4GiB }\n  authority:\n    network: [{ host: api.example.com, port: 443 }]\n    filesystem:\n      read: [/usr]\n      write: [/srv/out]\n    exec: [/usr/bin/true]\n    secret: [{ name: NPM_TOKEN }]\n'
const ROOT = { uid: 0, gid: 0 }
function outcome(policy: string, contract = CONTRACT, caller = ROOT): string {
  try {
    readPolicy(policy, 'policy.yaml').admit(readContract(contract, 'c.yaml'), caller, { text: contract, file: 'c.yaml' })
    return 'admitted'
  } catch (error) {
    if (error instanceof AmbitError) return `${error.code} ${error.message}`
    throw error
  }
}
const bounded = (bounds: string): string => `${HEAD}  - name: all\n    bounds: { ${bounds} }\n`

t.test('each bound admits what is within it and names the lines of both documents for what is not', async t => {
  const rows: [string, string, RegExp][] = [
    ['ttl: 1h', 'ttl: 59m', /c\.yaml:6:8: .*rule "all" does not admit it: ttl 1h is longer than 59m \(policy\.yaml:5\)/],
    ['memory: 4GiB', 'memory: 2GiB', /c\.yaml:7:21: .*memory 4GiB is more than 2GiB/],
    ['pids: 1024', 'pids: 100', /1024 processes are more than 100/],
    ['modes: [enforce]', 'modes: [observe]', /mode enforce is not among observe/],
    ['network: [{ host: "*.example.com", port: 443 }]', 'network: [{ host: api.example.com, port: 80 }]', /c\.yaml:9:15: .*destination api\.example\.com:443 is not among/],
    ['read: [/usr, /srv]', 'read: [/etc]', /c\.yaml:11:14: .*reading \/usr is in none of its trees/],
    ['write: [/srv]', 'write: [/srv/other]', /c\.yaml:12:15: .*writing \/srv\/out is in none/],
    ['exec: [/usr/bin]', 'exec: [/usr/sbin]', /executing \/usr\/bin\/true is not among/],
    ['profiles: [strict]', 'profiles: [build]', /syscall profile strict is not among build/],
    ['secrets: ["NPM_*"]', 'secrets: [NPM]', /secret NPM_TOKEN is not among/],
    ['workspaces: [none]', 'workspaces: [shared]', /workspace none is not among shared/],
    ['capabilities: []', 'cpus: 2', /no limit of cpus is set, and 2 are the most/],
  ]
  for (const [within, beyond, why] of rows) {
    t.equal(outcome(bounded(within)), 'admitted', within)
    t.match(outcome(bounded(beyond)), why, beyond)
    t.match(outcome(bounded(beyond)), /^POLICY_REFUSED/)
  }
  const wide = CONTRACT.replace('exec: [/usr/bin/true]', 'exec: ["*"]').replace('host: api.example.com', 'host: "*"').replace('read: [/usr]', 'read: [/]') + '    syscall: { allow: [ptrace] }\n    github: { permissions: { contents: write }, repositories: [o/r] }\n'
  const needs: [string, RegExp][] = [['listed-programs', /exec "\*" lists no program/], ['named-destinations', /destination \*:443 names no host/], ['listed-paths', /read of \/ lists nothing/], ['listed-calls', /syscall profile build lists no calls/]]
  for (const [name, why] of needs) {
    t.match(outcome(`${HEAD}  - { name: all, require: [${name}] }\n`, wide), why)
    t.equal(outcome(`${HEAD}  - { name: all, require: [${name}] }\n`), 'admitted', name)
  }
  t.match(outcome(bounded('syscalls: []'), wide), /system call ptrace may not be added/)
  t.match(outcome(bounded('permissions: { contents: read }'), wide), /permission contents: write is more than read/)
  t.match(outcome(bounded('permissions: {}'), wide), /contents: write is not among/)
  t.match(outcome(bounded('exec: ["*"]'), wide), /^admitted/)
  t.match(outcome(bounded('read: [/usr]'), CONTRACT.replace('enforce', 'observe')), /mode observe is not among enforce/, 'observe withholds nothing that a bound could hold')
})

t.test('a fixed address and an image are bounded as what they are, not as the names that the contract gives them', async t => {
  const mapped = (address: string): string => CONTRACT.replace('  limits', `  hosts: { api.example.com: "${address}" }\n  limits`)
  const names = bounded('network: [{ host: "*.example.com", port: "*" }]')
  t.equal(outcome(names), 'admitted', 'the name itself')
  for (const address of ['127.0.0.1', '169.254.169.254', '10.0.0.5', '93.184.216.34', '::1', '::ffff:127.0.0.1']) {
    t.equal(outcome(bounded('ttl: 1h'), mapped(address)), 'admitted', 'where the network is not bounded')
    t.match(outcome(names, mapped(address)), /^POLICY_REFUSED c\.yaml:\d+:\d+: .*api\.example\.com stands for .*, which is not among the destinations/, address)
  }
  t.match(outcome(names, mapped('10.0.0.5').replace('enforce', 'observe')), /^POLICY_REFUSED/)
  t.match(outcome(bounded('modes: [observe], network: [{ host: "*.example.com", port: "*" }]'), mapped('10.0.0.5').replace('enforce', 'observe')), /stands for 10\.0\.0\.5/)
  const both = (more: string): string => bounded(`network: [{ host: api.example.com, port: 443 }, ${more}]`)
  t.equal(outcome(both('{ host: 10.0.0.0/24, port: 443 }'), mapped('10.0.0.5')), 'admitted')
  t.match(outcome(both('{ host: 10.0.0.0/24, port: 80 }'), mapped('10.0.0.5')), /stands for 10\.0\.0\.5:443/)
  t.match(outcome(both('{ host: 10.0.1.0/24, port: 443 }'), mapped('10.0.0.5')), /stands for 10\.0\.0\.5:443/)

  const any = bounded('network: [{ host: "*", port: "*" }]')
  t.equal(outcome(any, mapped('93.184.216.34')), 'admitted')
  t.match(outcome(any, mapped('127.0.0.1')), /stands for 127\.0\.0\.1/)
  const to = (host: string): string => CONTRACT.replace('host: api.example.com', `host: "${host}"`)
  t.equal(outcome(any, to('93.184.216.0/24')), 'admitted')
  for (const host of ['127.0.0.1', '10.0.0.0/8', '169.254.169.254', 'fe80::1', '192.168.1.0/24']) {
    t.match(outcome(any, to(host)), /is not among those that it allows/, `"*" of a contract does not reach ${host}, nor does that of a policy`)
    t.match(outcome(bounded('network: [{ host: 0.0.0.0/0, port: "*" }, { host: "::/0", port: "*" }]'), to(host)), /is not among those that it allows/, host)
    t.equal(outcome(bounded(`network: [{ host: "${host}", port: "*" }]`), to(host)), 'admitted', host)
  }

  const image = CONTRACT.replace('  limits', '  rootfs: /home/someone/image\n  limits')
  t.equal(outcome(bounded('ttl: 1h'), image), 'admitted')
  for (const [name, trees] of [['exec', '[/usr/bin]'], ['read', '[/usr]'], ['write', '[/srv]']] as const) {
    t.equal(outcome(bounded(`${name}: ${trees}`)), 'admitted', name)
    t.match(outcome(bounded(`${name}: ${trees}`), image), new RegExp(`${name} is bounded, and means nothing in an image of the contract's choice`))
    t.equal(outcome(bounded(`${name}: ${trees}, images: [/home/someone]`), image), 'admitted', name)
  }
})

t.test('rules are for users and groups by name and number; one that admits all is enough', async t => {
  const policy = `${HEAD}  - name: short\n    bounds: { ttl: 1m }\n  - name: root\n    for: { users: [root] }\n`
  t.equal(outcome(policy), 'admitted')
  t.match(outcome(policy, CONTRACT, { uid: 54321, gid: 54321 }), /rule "short" does not admit it/)
  const only = (who: string): string => `${HEAD}  - name: some\n    for: ${who}\n`
  t.match(outcome(only('{ users: [root, daemon] }'), CONTRACT, { uid: 54321, gid: 54321 }), /no rule of this host's policy is for user 54321 \(uid 54321\) \(policy\.yaml:\d\)/)
  for (const who of ['{ users: [54321] }', '{ groups: [54322] }', '{ users: [root], groups: [54322] }']) t.equal(outcome(only(who), CONTRACT, { uid: 54321, gid: 54322 }), 'admitted', who)
  t.equal(outcome(only('{ groups: [root] }')), 'admitted')
  t.match(outcome(`${HEAD}  []\n`.replace('rules:\n  []', 'rules: []')), /no rule of this host/, 'no rule, no cell')
})

t.test('what is no policy is refused with its line, and keeps the daemon from starting', async t => {
  const rows: [string, RegExp][] = [
    ['', /it is empty.*a policy starts with/s], [`${HEAD}  - name: a\n    bunds: {}\n`, /p\.yaml:5:5: .*"bunds" is not known.*did you mean "bounds"/s],
    [bounded('ttl: soon'), /p\.yaml:5:\d+: .*must be a time/], [bounded('network: [{ host: "http://x", port: 1 }]'), /p\.yaml:5/], [bounded('profiles: [loose]'), /must be one of oci, strict/],
    [`${HEAD}  - { name: a }\n  - { name: a }\n`, /two rules are called "a"/], [`${HEAD}  - { name: a, for: {} }\n`, /neither "users" nor "groups"/], ['a: &x 1\nb: *x\n', /anchor/],
  ]
  for (const [text, why] of rows) t.throws(() => readPolicy(text, 'p.yaml'), { code: 'POLICY_INVALID', message: why }, text)
  const dir = mkdtempSync(join(tmpdir(), 'ambit-policy-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const file = join(dir, 'policy.yaml')
  t.throws(() => readPolicyFile(file), { code: 'FILE_UNREADABLE' })
  writeFileSync(file, bounded('ttl: 1h'))
  t.equal(readPolicyFile(file, { obeyed: true }).document.rules.length, 1)
  chmodSync(file, 0o666)
  t.throws(() => readPolicyFile(file, { obeyed: true }), { code: 'POLICY_INVALID', message: /can be changed by others/ })
  writeFileSync(file, 'nonsense')
  chmodSync(file, 0o600)
  const ambit = (...args: string[]) => spawnSync(process.execPath, [join(import.meta.dirname, '../../dist/cli/main.js'), ...args], { encoding: 'utf8' })
  t.match(ambit('daemon', '--policy', file, '--state', join(dir, 's'), '--socket', join(dir, 'sock'), '--feed-port', '0'), { status: 2, stderr: /could not read the policy/ })

  writeFileSync(file, bounded('ttl: 1m'))
  const contract = join(dir, 'c.yaml')
  writeFileSync(contract, CONTRACT)
  t.match(ambit('policy', 'check', file), { status: 0, stdout: /1 rule: all/ })
  t.match(ambit('policy', 'check', file, '--contract', contract), { status: 125, stderr: /ttl 1h is longer than 1m/ })
  t.match(JSON.parse(ambit('policy', 'check', file, '--contract', contract, '--json').stdout), { admitted: false, error: { code: 'POLICY_REFUSED', where: { line: 6 } } })
  writeFileSync(contract, CONTRACT.replace('1h', '1m'))
  t.match(ambit('policy', 'check', file, '--contract', contract), { status: 0, stdout: /admits/ })
  t.match(ambit('policy', 'chek'), { status: 2, stderr: /no action/ })
})

const tree = fc.constantFrom('/usr', '/usr/lib', '/srv', '/srv/a', '/')
const destination = fc.record({ host: fc.constantFrom('*', '*.example.com', 'a.example.com', '10.0.0.0/8', '10.1.2.3'), port: fc.constantFrom(443, 80, '*' as const) })
const unique = <T>(items: fc.Arbitrary<T>): fc.Arbitrary<T[]> => fc.uniqueArray(items, { maxLength: 3, selector: one => JSON.stringify(one) })
const contract = fc.record({
  mode: fc.constantFrom('observe', 'enforce'), ttl: fc.constantFrom('1m', '1h'), pids: fc.constantFrom(10, 100), exec: unique(fc.constantFrom('/usr/bin/a', '/srv/b')), read: unique(tree), write: unique(fc.constantFrom('/srv', '/srv/a')),
  network: unique(destination), profile: fc.constantFrom('strict', 'build', 'network-service'), secret: unique(fc.constantFrom('A', 'AB', 'B')),
}).map(({ mode, ttl, pids, exec, read, write, network, profile, secret }) => contractSchema.parse({
  apiVersion: 'ambit/v1', kind: 'Cell', metadata: { name: 'x' },
  spec: { mode, ttl, limits: { pids }, authority: { exec, filesystem: { read, write }, network, syscall: { profile }, secret: secret.map(name => ({ name })) } },
}) as Contract)
const LISTS = { network: destination, read: tree, write: tree, exec: fc.constantFrom('*', '/usr', '/usr/bin', '/srv'), profiles: fc.constantFrom('strict', 'build', 'network-service'), secrets: fc.constantFrom('A', 'A*', 'B'), modes: fc.constantFrom('observe', 'enforce') }
const ALL = { network: [{ host: '*', port: '*' }], read: ['/'], write: ['/srv'], exec: ['*'], profiles: ['strict', 'build', 'network-service'], secrets: ['A*', 'B'], modes: ['observe', 'enforce'] }
const bounds = fc.record({ ttl: fc.constantFrom('1m', '30m', '2h'), pids: fc.constantFrom(5, 50, 500), ...Object.fromEntries(Object.entries(LISTS).map(([name, items]) => [name, fc.oneof(unique(items as fc.Arbitrary<unknown>), fc.constant(ALL[name as keyof typeof ALL]))])) }, { requiredKeys: [] })
const requirement = fc.subarray(['listed-programs', 'named-destinations', 'listed-paths', 'listed-calls'], { maxLength: 1 })
const ruleOf = (raw: object, needs: string[]): PolicyRule => policySchema.parse({ apiVersion: 'ambit/v1', kind: 'Policy', rules: [{ name: 'r', bounds: raw, require: needs }] }).rules[0]!

t.test('what a rule admits, every wider rule admits', async t => {
  let [admitted, refused] = [0, 0]
  t.doesNotThrow(() => fc.assert(fc.property(contract, bounds, bounds, requirement, fc.constantFrom('drop', 'add', 'raise', 'waive'), (asked, raw, other, needs, how) => {
    const narrow = raw as Record<string, unknown>
    const more = other as Record<string, unknown>
    const wide: Record<string, unknown> = { ...narrow }
    for (const key of Object.keys(narrow)) {
      // Without modes a rule that bounds authority admits enforce only: leaving them out widens nothing.
      if (how === 'drop' && key in more && key !== 'modes') delete wide[key]
      if (how === 'add' && Array.isArray(narrow[key])) wide[key] = [...new Map([...narrow[key] as unknown[], ...(more[key] as unknown[] | undefined ?? [])].map(one => [JSON.stringify(one), one])).values()]
      if (how === 'raise' && key === 'pids') wide[key] = (narrow[key] as number) + 60
      if (how === 'raise' && key === 'ttl') wide[key] = '5h'
    }
    const before = excessOf(asked, ruleOf(narrow, needs)).length
    if (before > 0) {
      refused++
      return true
    }
    admitted++
    return excessOf(asked, ruleOf(wide, how === 'waive' ? needs.slice(1) : needs)).length === 0
  }), { numRuns: 3000 }))
  t.ok(admitted > 100 && refused > 100, `${admitted} admitted, ${refused} refused`)
})
