import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { disksOf, heldLimits, limitNotice, limitRecords, named } from '../../src/cell/limits.ts'
import { readContract } from '../../src/contract/read.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-limits-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

const contract = (limits: string, mode = 'enforce') => readContract(`apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: ${mode}\n  ttl: 1m\n  limits: ${limits}\n  authority: {}\n`, 'c.yaml')
const NOTHING = { oomKills: 0, memoryAtLimit: false, pidsMax: 0, heldBackMs: 0 }
const LIMITS = contract('{ memory: 64MiB, pids: 20, cpus: 1.5 }').spec.limits

t.test('limits are read with their bounds', t => {
  t.match(LIMITS, { memory: '64MiB', pids: 20, cpus: 1.5 })
  t.match(contract('{ io: { read: 50MiB, write: 1GiB } }').spec.limits.io, { read: '50MiB', write: '1GiB' })
  for (const bad of ['{ cpus: 0 }', '{ cpus: "2" }', '{ cpus: 5000 }', '{ cpus: .nan }', '{ io: {} }', '{ io: { read: 1KiB } }', '{ io: { read: 50 } }', '{ io: { iops: 3 } }']) {
    t.throws(() => contract(bad), { code: 'CONTRACT_INVALID', message: /^c\.yaml:7:/ }, bad)
  }
  t.end()
})

t.test('what the host cannot hold is refused in enforce and told in observe', t => {
  const able = { lacks: () => null }
  const unable = { lacks: (limit: string) => `no ${limit} here` }
  t.match(heldLimits(contract('{ cpus: 2 }'), able, null), { limits: { cpus: 2 }, enforcers: [{ name: 'limit of cpus', state: '2' }] })
  t.throws(() => heldLimits(contract('{ cpus: 2 }'), unable, null), { code: 'CELL_FAILED', message: /no cpus here/ })
  t.throws(() => heldLimits(contract('{ io: { write: 1MiB } }'), unable, null), { code: 'CELL_FAILED', message: /no io write here/ })
  const told = heldLimits(contract('{ cpus: 2, io: { read: 1MiB } }', 'observe'), unable, null)
  t.same(told.limits, { memoryBytes: 2 * 1024 ** 3, pids: 1024 })
  t.match(told.enforcers, [{ state: 'not held: no cpus here' }, { state: 'not held: no io read here' }])
  t.same(heldLimits(contract('{}'), unable, null).enforcers, [], 'what nobody asked for is no matter')
  t.end()
})

t.test('a partition is held by its disk; what has no disk is left out', t => {
  const sys = join(dir, 'sys')
  mkdirSync(join(dir, 'devices/vdb/vdb1'), { recursive: true })
  mkdirSync(sys)
  writeFileSync(join(dir, 'devices/vdb/dev'), '254:16\n')
  writeFileSync(join(dir, 'devices/vdb/vdb1/dev'), '254:17\n')
  writeFileSync(join(dir, 'devices/vdb/vdb1/partition'), '1\n')
  symlinkSync(join(dir, 'devices/vdb'), join(sys, '254:16'))
  symlinkSync(join(dir, 'devices/vdb/vdb1'), join(sys, '254:17'))
  t.same(disksOf([0xfe11, 0xfe10], sys), ['254:16'], 'one disk, once')
  t.same(disksOf([0x1b, 0xfe12], sys), [])
  t.end()
})

t.test('limits that were hit are told in words, with who hit them', t => {
  const node = { pid: 412, comm: 'node' }
  const none = { oom: [], forks: [] }
  t.same(limitRecords(LIMITS, NOTHING, none), [])
  t.match(limitRecords(LIMITS, { ...NOTHING, oomKills: 1, memoryAtLimit: true }, { oom: [node], forks: [] }), [{ limit: 'memory', detail: 'memory limit of 64MiB reached by node[412]: killed', by: [node] }])
  t.match(limitRecords(LIMITS, { ...NOTHING, oomKills: 1 }, { oom: [node], forks: [] }), [{ detail: 'the host itself was out of memory, the cell not at its limit of 64MiB: node[412] killed' }])
  t.match(limitRecords(LIMITS, { ...NOTHING, oomKills: 1, memoryAtLimit: true }, none), [{ detail: /a process that was not seen/, by: [] }])
  t.match(limitRecords(LIMITS, { ...NOTHING, pidsMax: 3 }, { oom: [], forks: [node] }), [{ limit: 'pids', detail: 'limit of 20 processes reached by node[412]: 3 forks were refused' }])
  t.match(limitRecords(LIMITS, { ...NOTHING, heldBackMs: 1234.5 }, none), [{ limit: 'cpu', detail: 'held back for 1.23 s by the limit of 1.5 processors' }])
  t.equal(named([node, { pid: 1, comm: 'a' }], 2), 'node[412] and a[1]')
  t.equal(named([{ pid: 1, comm: 'a\n\u001b[2J\u202eb' }], 1), 'a\\x0a\\x1b[2J\\u202eb[1]', 'a name is not obeyed, and ends no line')
  t.equal(named(Array.from({ length: 6 }, (_, i) => ({ pid: i, comm: 'p' })), 9), 'p[0], p[1], p[2], p[3] and 5 more')
  t.equal(limitNotice(limitRecords(LIMITS, { oomKills: 1, memoryAtLimit: true, pidsMax: 1, heldBackMs: 5 }, none))?.split('; ').length, 2, 'a share of the processors is no event for a person')
  t.equal(limitNotice([]), null)
  t.end()
})
