import { spawn } from 'node:child_process'
import { appendFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import type { LedgerEntry } from '../../src/audit/ledger-entry.ts'
import { appendLedger, readLedger } from '../../src/evidence/ledger.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-ledger-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))
const entry = (cell: string, padding = ''): LedgerEntry => ({
  time: '2026-01-02T03:04:05.678Z', cell, pipeline: { file: '.github/workflows/b.yml', job: 'build', digest: 'd' }, evidenceDigest: 'a'.repeat(64), contractDigest: 'b'.repeat(64),
  mode: 'observe', outcome: { code: 0 }, rows: [{ kind: 'github', grant: `packages: write${padding}`, outcome: 'unused', declared: true, count: 0, proof: 'no call' }],
})

t.test('entries are read back in the order they came', async t => {
  const ledger = join(dir, 'order', 'deep')
  const entries = ['c1', 'c2', 'c3'].map(cell => entry(cell))
  for (const one of entries) await appendLedger(ledger, one)
  t.same(await readLedger(ledger), entries)
})

t.test('no entries are none; no ledger is an error', async t => {
  mkdirSync(join(dir, 'empty'))
  t.same(await readLedger(join(dir, 'empty')), [])
  await t.rejects(readLedger(join(dir, 'none')), { code: 'FILE_UNREADABLE', message: /none: could not read the ledger: there is no such directory/ })
})

t.test('writers in several processes do not spoil each other\'s lines', async t => {
  const ledger = join(dir, 'shared')
  const script = join(dir, 'writer.mts')
  writeFileSync(script, `import { appendLedger } from ${JSON.stringify(join(import.meta.dirname, '../../src/evidence/ledger.ts'))}
const [name] = process.argv.slice(2)
for (let i = 0; i < 30; i++) await appendLedger(${JSON.stringify(ledger)}, { ...${JSON.stringify(entry('', 'x'.repeat(200_000)))}, cell: name + i })`)
  const writers = ['a', 'b', 'c'].map(name => spawn(process.execPath, ['--import', 'tsx', script, name], { cwd: join(import.meta.dirname, '../..'), stdio: 'inherit' }))
  t.same(await Promise.all(writers.map(writer => new Promise(resolve => writer.once('exit', resolve)))), [0, 0, 0])
  const cells = (await readLedger(ledger)).map(one => one.cell)
  t.equal(new Set(cells).size, 90)
  for (const name of ['a', 'b', 'c']) t.same(cells.filter(cell => cell.startsWith(name)), Array.from({ length: 30 }, (_, index) => `${name}${index}`))
})

t.test('a line that is no entry is named, and what a dead writer left spoils nothing after it', async t => {
  const ledger = join(dir, 'bad')
  const file = join(ledger, 'ledger.jsonl')
  await appendLedger(ledger, entry('c1'))
  appendFileSync(file, '{"time":')
  await t.rejects(readLedger(ledger), { code: 'FILE_UNREADABLE', message: /ledger\.jsonl:2: could not read the ledger: the line is cut off/ })
  await appendLedger(ledger, entry('c2'))
  t.equal(readFileSync(file, 'utf8').split('\n').length, 4)
  await t.rejects(readLedger(ledger), /:2: .*not JSON/)
  const [one, , three] = readFileSync(file, 'utf8').split('\n')
  writeFileSync(file, `${one}\n${three}\n`)
  t.same((await readLedger(ledger)).map(({ cell }) => cell), ['c1', 'c2'])
  for (const wrong of [{ ...entry('c'), mode: 'off' }, { ...entry('c'), evidenceDigest: 'x' }, { ...entry('c'), rows: [{ kind: 'k' }] }, [], null]) {
    writeFileSync(file, `${one}\n${JSON.stringify(wrong)}\n`)
    await t.rejects(readLedger(ledger), { code: 'FILE_UNREADABLE', message: /ledger\.jsonl:2: / })
  }
  await t.rejects(appendLedger(ledger, { ...entry('c'), rows: [{}] } as never), 'nor is one written')
  await t.rejects(appendLedger(join(file, 'below'), entry('c')), { code: 'FILE_UNREADABLE' })
})
