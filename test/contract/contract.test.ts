import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import type { ExecGrant } from '../../src/authority/exec.ts'
import { KINDS } from '../../src/authority/kinds.ts'
import { covers } from '../../src/authority/paths.ts'
import { contractFromJob } from '../../src/contract/from-job.ts'
import { narrowContract } from '../../src/contract/narrow.ts'
import { readContract, readContractFile } from '../../src/contract/read.ts'
import { contractSchema, memoryBytes, ttlSeconds, type Contract } from '../../src/contract/schema.ts'
import { contractDigest, writeContract } from '../../src/contract/write.ts'
import { AmbitError } from '../../src/errors.ts'
import { CASES } from '../authority/arbitraries.ts'
import { ended, exec, file, hooks, started, syscalls } from '../authority/evidence.ts'

const HEAD = 'apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: enforce\n  ttl: 1m\n'

function refusal(text: string, file = 'c.yaml'): AmbitError {
  try {
    readContract(text, file)
  } catch (error) {
    if (error instanceof AmbitError) return error
    throw error
  }
  throw new Error(`accepted: ${text.slice(0, 200)}`)
}

t.test('absent means none, and every default is filled in', async t => {
  t.same(readContract(HEAD, 'c.yaml'), {
    apiVersion: 'ambit/v1', kind: 'Cell', metadata: { name: 'x' },
    spec: {
      mode: 'enforce', ttl: '1m', workspace: 'none', rootfsWrites: 'readonly', system: 'readonly', capabilities: [], noexec: [], missingPaths: 'refuse', limits: { memory: '2GiB', pids: 1024, openFiles: 4096 }, environment: { pass: [], set: {} }, hosts: {}, onDaemonLoss: 'stop',
      authority: {
        github: { permissions: {}, repositories: [], apiUrl: 'https://api.github.com' }, network: [], filesystem: { read: [], write: [] }, exec: [],
        syscall: { profile: 'strict', allow: [], deny: [] }, secret: [],
      },
    },
  })
})

t.test('the contracts that the benches write are contracts', async t => {
  const root = join(import.meta.dirname, '../..')
  let seen = 0
  for (const name of ['bench/launch.mjs', 'bench/build.mjs', 'bench/relay.mjs']) {
    for (const [, text] of readFileSync(join(root, name), 'utf8').matchAll(/`(apiVersion: ambit\/v1\n[^`]*)`/g)) {
      t.ok(readContract(text!.replace(/\$\{\w+\}/g, (_, place: number) => String(place)), name))
      seen++
    }
  }
  t.ok(seen >= 3, `${seen} contracts`)
})

t.test('JSON is read as well, and has the same digest', async t => {
  const contract = readContract(HEAD, 'c.yaml')
  const json = readContract(JSON.stringify(contract, null, '\t'), 'c.json')
  t.same(json, contract)
  t.equal(contractDigest(json), contractDigest(contract))
  t.match(contractDigest(contract), /^[0-9a-f]{64}$/)
  const shuffled = { spec: contract.spec, metadata: contract.metadata, kind: contract.kind, apiVersion: contract.apiVersion }
  t.equal(contractDigest(shuffled), contractDigest(contract), 'the order of keys says nothing')
  t.not(contractDigest({ ...contract, spec: { ...contract.spec, ttl: '60s' } }), contractDigest(contract))
})

t.test('a mistyped key is told with the close one and its place', async t => {
  const error = refusal(`${HEAD}  wrokspace: shared\n`)
  t.equal(error.code, 'CONTRACT_INVALID')
  t.equal(error.exitCode, 2)
  t.match(error.message, /^c\.yaml:7:3: could not read the contract: the key "wrokspace" is not known in spec/)
  t.match(error.message, /did you mean "workspace"\?/)
  t.match(refusal(`${HEAD}  authority:\n    netwrok: []\n`).message, /c\.yaml:8:5.*\n.*"network"/)
  t.match(refusal(`${HEAD}  authority:\n    network:\n      - { host: a.test, prot: 1 }\n`).message, /c\.yaml:9:25/)
  t.match(refusal(`${HEAD}unrelated: 1\n`).message, /known keys there: apiVersion, kind, metadata, spec/)
  t.match(refusal(`${HEAD}  __proto__: { mode: observe }\n`).message, /7:3.*"__proto__" is not known/)
})

t.test('each fault is told where it is, with the reason', async t => {
  const faults: [string, RegExp][] = [
    ['  ttl: soon\n', /unique/],
    ['  limits: { memory: 1MiB }\n', /c\.yaml:7:21: .*1MiB is too little to start a program/],
    ['  limits: { memory: 2GB }\n', /must be a size such as/],
    ['  limits: { memory: 9999999TiB }\n', /more than a machine has/],
    ['  limits: { pids: 1 }\n', /must be at least 2: the cell's own process and the command/],
    ['  limits: { pids: 9999999 }\n', /the kernel's own limit/],
    ['  limits: { openFiles: 1.5 }\n', /whole number/],
    ['  environment: { set: { CI: true } }\n', /spec\.environment\.set\.CI: must be text; quote/],
    ['  environment: { set: { "A=B": x } }\n', /name of an environment variable/],
    ['  environment: { pass: [A, A] }\n', /A is listed twice/],
    ['  hosts: { a.test: localhost }\n', /must be an IPv4 or IPv6 address/],
    ['  hosts: { A.test: 127.0.0.1 }\n', /write a\.test/],
    ['  authority:\n    filesystem: { read: [/usr/../etc] }\n', /c\.yaml:8:26: spec\.authority\.filesystem\.read\[0\]: must not hold "\.\."|c\.yaml:8:26/],
    ['  authority:\n    github: { permissions: { pull-requests: read }, repositories: [o/r] }\n', /c\.yaml:8:30.*write pull_requests/],
    ['  authority:\n    syscall: { allow: [io_uring_setup] }\n', /passes neither the filter nor the evidence/],
    ['  authority:\n    exec: [gcc]\n', /must be an absolute path/],
    ['  authority:\n', /spec\.authority.*null/],
    ['  mode: Observe\n', /unique/],
  ]
  for (const [text, why] of faults) t.match(refusal(HEAD + text).message, why, text.trim())
  t.match(refusal(HEAD.replace('1m', '999h')).message, /6:8.*longer than the 120h/)
  t.match(refusal(HEAD.replace('1m', '0s')).message, /at least 1s/)
  t.match(refusal(HEAD.replace('1m', '30')).message, /a time such as 30s/)
  t.match(refusal(HEAD.replace('  ttl: 1m\n', '')).message, /spec\.ttl is missing/)
  t.match(refusal(HEAD.replace('v1', 'v2')).message, /1:13/)
  t.match(refusal(HEAD.replace('name: x', 'name: "a/b"')).message, /metadata\.name/)
  t.match(refusal(`${HEAD}  limits: { memory: 1MiB, pids: 0 }\n  worksapce: none\n`).message, /7:21.*; also line 7:.*; line 8:/, 'and the others behind it')
})

t.test('what is no plain document is refused', async t => {
  const bombs = `a: &a [x]\n${Array.from({ length: 20 }, (_, i) => `b${i}: &b${i} [*${i === 0 ? 'a' : `b${i - 1}`}, *${i === 0 ? 'a' : `b${i - 1}`}]`).join('\n')}\n`
  const texts: [string, RegExp][] = [
    ['', /is empty/], ['# nothing\n', /is empty/], ['---\n', /is empty/], ['[]', /expected object/], ['42', /expected object/],
    ['{', /1:\d/], ['a: "x', /quote/], ['\tkey: 1', /./], [`${HEAD}---\n${HEAD}`, /several documents/], ['a: 1\na: 2\n', /2:1.*unique/],
    [bombs, /anchor|alias/], [`${HEAD}  workspace: &w none\n`, /anchor &w/], ['a: *b', /alias/], ['<<: { a: 1 }', /not known/],
    ['a: !!js/function x', /tag/], ['a: !!binary aGk=', /tag/], ['? [a]\n: 1', /key/], ['['.repeat(20_000), /nested too deeply|flow/], [`${'- '.repeat(20_000)}x`, /./], ['x'.repeat(300_000), /larger than 256 KiB/],
  ]
  for (const [text, why] of texts) {
    const error = refusal(text)
    t.equal(error.code, 'CONTRACT_INVALID')
    t.match(error.message, why, JSON.stringify(text).slice(0, 40))
  }
})

t.test('no input makes anything but a contract or a refusal', async t => {
  const pieces = fc.constantFrom(...HEAD.split(/(?<=\s)/), '{', '}', '[', ']', ':', '- ', '\n', '  ', '"', '\'', '&a ', '*a', '!!str ', '|\n', '#', '\0', '\ufeff', '\u2028', 'spec', 'authority', '1e999', '0x1', '~', '%YAML 1.1\n', '---\n', '...\n', '? ')
  t.doesNotThrow(() => fc.assert(fc.property(fc.oneof(fc.string({ unit: 'binary' }), fc.array(pieces, { maxLength: 60 }).map(parts => parts.join('')), fc.array(pieces, { maxLength: 10 }).map(parts => HEAD + parts.join(''))), text => {
    try {
      const contract = readContract(text, 'c.yaml')
      return contract.kind === 'Cell'
    } catch (error) {
      if (!(error instanceof AmbitError)) throw error
      const { line, column } = error.detail.where!
      return error.code === 'CONTRACT_INVALID' && line! >= 1 && column! >= 1
    }
  }), { numRuns: 800 }))
})

t.test('a file is read with its faults told of it', async t => {
  const dir = mkdtempSync(join(tmpdir(), 'ambit-contract-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const path = join(dir, 'c.yaml')
  writeFileSync(path, HEAD)
  t.equal(readContractFile(path).metadata.name, 'x')
  writeFileSync(path, Buffer.from([0x61, 0xff, 0xfe]))
  t.throws(() => readContractFile(path), { code: 'CONTRACT_INVALID', message: /not UTF-8/ })
  t.throws(() => readContractFile(join(dir, 'none')), { code: 'FILE_UNREADABLE', message: /ENOENT/ })
  t.throws(() => readContractFile(dir), { code: 'FILE_UNREADABLE' })
})

/** Contracts of every kind's declarations, and texts that YAML likes to take for something else. */
const odd = fc.oneof(fc.constantFrom('yes', 'true', 'null', '~', '1', '0x10', '1e3', '', ' ', '- a', '# c', 'a: b', '"', '\'', '|', '\n', 'a\n\n b\n', '\t', '\r\n', '*a', '&a', '!t', '%', '\u0085', '\u2028', '\ufeff', '{}', '=', '<<', '2001-01-01', '\u001b[31m', '.inf'), fc.string({ unit: 'grapheme' }), fc.string())
  .filter(value => !value.includes('\0') && !/\p{Surrogate}/u.test(value))
const label = odd.filter(value => value.length > 0)
const contracts: fc.Arbitrary<Contract> = fc.record({
  name: fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,20}$/),
  pipeline: fc.option(fc.record({ file: label, job: label, digest: label }), { nil: undefined }),
  mode: fc.constantFrom('observe', 'enforce'), ttl: fc.constantFrom('1s', '30s', '5m', '120h'), workspace: fc.constantFrom('shared', 'none'),
  memory: fc.constantFrom('16MiB', '2GiB', '1TiB'), pids: fc.integer({ min: 2, max: 4_194_304 }),
  set: fc.dictionary(fc.stringMatching(/^[A-Z_][A-Z0-9_]{0,8}$/), odd, { maxKeys: 5, noNullPrototype: true }),
  hosts: fc.dictionary(fc.constantFrom('a.test', 'b.test', 'on', 'no'), fc.constantFrom('127.0.0.1', '::1'), { maxKeys: 3, noNullPrototype: true }),
  authority: fc.record(Object.fromEntries(KINDS.map(kind => [kind.name, CASES[kind.name]!.declared]))),
}).map(({ name, pipeline, mode, ttl, workspace, memory, pids, set, hosts, authority }) => contractSchema.parse({
  apiVersion: 'ambit/v1', kind: 'Cell', metadata: { name, ...(pipeline ? { pipeline } : {}) },
  spec: { mode, ttl, workspace, limits: { memory, pids }, environment: { set }, hosts, authority: { ...authority, exec: withoutVainDigests(authority as never) } },
}) as Contract)

/** What a contract could not hold: digests where the job may write. */
function withoutVainDigests({ exec, filesystem }: { exec: ExecGrant[]; filesystem: { write: string[] } }): ExecGrant[] {
  return exec.filter(grant => typeof grant === 'string' || !covers(filesystem.write, grant.path))
}

t.test('a digest of a program that the job may rewrite, or of one in an image, is refused with its line', async t => {
  const contract = (spec: string): string => `${HEAD}${spec}  authority:\n    filesystem: { write: [/opt/tools, /tmp] }\n    exec:\n      - path: /opt/tools/x\n        sha256: ${'f'.repeat(64)}\n`
  t.throws(() => readContract(contract(''), 'c.yaml'), { code: 'CONTRACT_INVALID', message: /c\.yaml:\d+[^]*the job may write to \/opt\/tools, so a digest of \/opt\/tools\/x would hold nothing/ })
  t.throws(() => readContract(contract('  rootfs: /srv/image\n').replace('/opt/tools,', '/srv,'), 'c.yaml'), { code: 'CONTRACT_INVALID', message: /the cell runs from the image/ })
  t.same(readContract(contract('').replace('/opt/tools, ', ''), 'c.yaml').spec.authority.exec, [{ path: '/opt/tools/x', sha256: 'f'.repeat(64) }])
})

t.test('what is written reads back as the same contract', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(contracts, contract => {
    const back = readContract(writeContract(contract), 'written.yaml')
    return JSON.stringify(back) === JSON.stringify(contract) && contractDigest(back) === contractDigest(contract) && writeContract(back) === writeContract(contract)
  }), { numRuns: 200 }))
})

t.test('times and sizes are what they say', async t => {
  t.same(['30s', '5m', '1h'].map(ttlSeconds), [30, 300, 3600])
  t.same(['64MiB', '2GiB', '16KiB'].map(memoryBytes), [67108864, 2147483648, 16384])
  t.ok(Number.isNaN(ttlSeconds('1d')) && Number.isNaN(memoryBytes('1MB')))
})

const JOB = {
  name: 'ci build/x', pipeline: { file: '.github/workflows/ci.yml', job: 'build', digest: 'sha256:0' },
  grant: { tokenPermissions: { contents: 'write' as const, packages: 'write' as const }, oidc: true, secrets: ['NPM_TOKEN'], egress: null },
  apiUrl: 'https://api.forge.test:8443', repositories: ['o/r'], hosts: { 'api.forge.test': '127.0.0.1' }, environment: { pass: ['LANG'], set: { CI: 'true' } },
}

t.test('a job\'s grants make an observed contract that says all of them', async t => {
  const contract = contractFromJob(JOB)
  t.same(readContract(writeContract(contract), 'c.yaml'), contract)
  t.match(contract, {
    metadata: { name: 'ci-build-x', pipeline: JOB.pipeline },
    spec: {
      mode: 'observe', ttl: '1h', workspace: 'shared', hosts: JOB.hosts,
      authority: {
        github: { permissions: { contents: 'write', packages: 'write', id_token: 'write' }, repositories: ['o/r'], apiUrl: 'https://api.forge.test:8443' },
        network: [{ host: '*', port: '*' }], filesystem: { read: ['/'], write: ['/workspace', '/tmp'] }, exec: ['*'], syscall: { profile: 'build' },
        secret: [{ name: 'NPM_TOKEN', delivery: 'environment' }],
      },
    },
  })
  t.throws(() => contractFromJob({ ...JOB, environment: { pass: [], set: { 'a b': 'x' } } }), { code: 'CONTRACT_INVALID', message: /ci\.yml: could not write the contract of job "build"/ })
})

t.test('a narrowed contract is to be enforced, holds what was used, and is narrowed once', async t => {
  const contract = contractFromJob(JOB)
  const events = [started(contract), hooks(), exec('/usr/bin/true'), file('/usr/lib/x86_64-linux-gnu/libc.so.6'), syscalls({ read: { succeeded: 1 }, mkdir: { succeeded: 1 } }), ended]
  const narrowed = narrowContract(contract, events)
  t.match(narrowed.spec, {
    mode: 'enforce', ttl: '1h', workspace: 'shared',
    authority: { github: { permissions: {} }, network: [], filesystem: { read: ['/usr/lib/x86_64-linux-gnu'], write: [] }, exec: ['/usr/bin/true'], syscall: { profile: 'strict', allow: ['mkdir', 'mkdirat'] }, secret: [{ name: 'NPM_TOKEN' }] },
  })
  t.same(narrowed.spec.authority.github.permissions, {})
  t.same(narrowContract(narrowed, events), narrowed)
  t.same(readContract(writeContract(narrowed), 'c.yaml'), narrowed)
  t.same(contract, contractFromJob(JOB), 'the contract that it came from is as it was')

  const cut = narrowContract(contract, events.slice(0, -1))
  t.same(cut.spec.authority, contract.spec.authority, 'a log that never closed narrows nothing')
  const partly = narrowContract(contract, [started(contract), hooks(['file']), ...events.slice(2)])
  t.same(partly.spec.authority.filesystem, contract.spec.authority.filesystem, 'what a missing hook would have seen stays')
  t.same(partly.spec.authority.exec, ['/usr/bin/true'], 'the rest is narrowed')
})

t.test('a root inside gets what is harmless, by Docker\'s words, and the reason for what it does not get', async t => {
  const contract = (spec: string): string => `apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: enforce\n  ttl: 1m\n  ${spec}\n`
  t.same(readContract(contract('capabilities: [CHOWN, SETUID]'), 'c.yaml').spec.capabilities, ['CHOWN', 'SETUID'])
  const refused = (spec: string, message: RegExp, line = 7): void => { t.throws(() => readContract(contract(spec), 'c.yaml'), { code: 'CONTRACT_INVALID', message, detail: { where: { line } } }, spec) }
  for (const name of ['SYS_ADMIN', 'SYS_PTRACE', 'NET_ADMIN', 'SYS_CHROOT', 'MKNOD', 'SETFCAP']) refused(`capabilities: [${name}]`, new RegExp(`no cell gives ${name}: `))
  refused('capabilities: [CAP_CHOWN]', /write CHOWN/)
  refused('capabilities: [EVERYTHING]', /must be one of CHOWN, /)
  refused('capabilities: [KILL, KILL]', /KILL is listed twice/)
  refused('capabilities: [FSETID]\n  workspace: shared', /keeps its bit/)
  refused('capabilities: [FSETID]\n  authority: { filesystem: { write: [/srv/x] } }', /keeps its bit/)
  t.ok(readContract(contract('capabilities: [FSETID]\n  workspace: overlay\n  system: overlay\n  authority: { filesystem: { write: [/usr] } }'), 'c.yaml'))
  refused('rootfsWrites: overlay', /rootfs names none/)
  refused('rootfs: /srv/image\n  system: overlay', /rootfsWrites is its like/, 8)
  refused('rootfs: /', /is the host itself/)
  refused('rootfs: /proc/1/root', /never part of a cell/)
  refused('noexec: [/usr]', /must be one of \/workspace/)
})
