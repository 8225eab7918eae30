import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { readContract } from '../../src/contract/read.ts'
import { keepAge, keepBytes, removeOld } from '../../src/evidence/retention.ts'
import { loadOrCreateKey } from '../../src/evidence/sign.ts'
import { BUNDLE } from '../../src/evidence/statement.ts'
import { EvidenceStore } from '../../src/evidence/store.ts'

const DAY = 24 * 3_600_000
const contract = readContract('apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: observe\n  ttl: 1m\n  authority: { filesystem: { read: [/] }, exec: [\'*\'], syscall: { profile: build } }\n', 'x.yaml')
const dir = mkdtempSync(join(tmpdir(), 'ambit-retention-'))
chmodSync(dir, 0o755)
t.teardown(() => rmSync(dir, { recursive: true, force: true }))
const key = loadOrCreateKey(dir)
const now = Date.now()

let stores = 0
const newStore = (): { store: EvidenceStore; path: string } => {
  const path = join(dir, `store-${stores++}`)
  return { store: new EvidenceStore(path, key), path }
}
async function sealed(store: EvidenceStore, id: string, ageMs: number): Promise<void> {
  await store.finish(store.begin(id), contract)
  utimesSync(join(store.pathOf(id), BUNDLE.statement), new Date(now - ageMs), new Date(now - ageMs))
}
const never = (cell: string, error: unknown): void => { throw new Error(`${cell}: ${String(error)}`) }

t.test('sealed bundles beyond their age go, whole; younger, open and unsealed ones stay', async t => {
  const { store, path } = newStore()
  await sealed(store, 'old', 31 * DAY)
  await sealed(store, 'young', 29 * DAY)
  store.begin('open')
  mkdirSync(join(path, 'unsealed'))
  writeFileSync(join(path, 'unsealed', BUNDLE.log), '')
  for (const id of ['open', 'unsealed']) utimesSync(join(path, id, BUNDLE.log), new Date(0), new Date(0))
  t.match(await removeOld(store, { ageMs: 30 * DAY, bytes: null }, now, never), [{ cell: 'old', why: 'age' }])
  t.same(readdirSync(path).sort(), ['open', 'unsealed', 'young'])
  t.same(await removeOld(store, { ageMs: 30 * DAY, bytes: null }, now, never), [], 'once')
  t.equal(store.view('old'), null)
  store.close()
})

t.test('beyond the size the oldest go first, but nothing that somebody may still be fetching', async t => {
  const { store, path } = newStore()
  for (const [id, age] of [['b', 2 * DAY], ['a', 3 * DAY], ['c', DAY], ['now', 0]] as const) await sealed(store, id, age)
  const one = store.sealed('a')!.bytes
  t.match(await removeOld(store, { ageMs: null, bytes: 3 * one + 100 }, now, never), [{ cell: 'a', why: 'size' }])
  t.match(await removeOld(store, { ageMs: null, bytes: 1 }, now, never), [{ cell: 'b' }, { cell: 'c' }])
  t.same(readdirSync(path), ['now'])
  store.close()
})

t.test('only the files of a bundle are removed, and no link is followed', async t => {
  const { store, path } = newStore()
  const other = join(dir, 'other')
  mkdirSync(other)
  writeFileSync(join(other, BUNDLE.log), 'not ours')
  await sealed(store, 'linked', 31 * DAY)
  rmSync(join(store.pathOf('linked'), BUNDLE.contract))
  symlinkSync(join(other, BUNDLE.log), join(store.pathOf('linked'), BUNDLE.contract))
  await sealed(store, 'more', 31 * DAY)
  writeFileSync(join(store.pathOf('more'), 'notes'), 'a person\'s')
  await sealed(store, 'target', 31 * DAY)
  symlinkSync(other, join(path, 'link'))
  const failed: string[] = []
  t.same((await removeOld(store, { ageMs: DAY, bytes: null }, now, cell => failed.push(cell))).map(({ cell }) => cell).sort(), ['linked', 'target'])
  t.same(failed, ['more'])
  t.equal(readFileSync(join(other, BUNDLE.log), 'utf8'), 'not ours')
  t.ok(existsSync(join(path, '.leaving-more/notes')))
  t.same(store.ids(), [], 'what is left of it is no cell\'s log')
  rmSync(join(path, '.leaving-more/notes'))
  store.close()
  const again = new EvidenceStore(path, key)
  for (let i = 0; i < 200 && existsSync(join(path, '.leaving-more')); i++) await new Promise(resolve => setTimeout(resolve, 10))
  t.notOk(existsSync(join(path, '.leaving-more')), 'the next start ends what was begun')
  again.close()
})

t.test('times and sizes that cannot be meant are refused', async t => {
  t.equal(keepAge('30d'), 30 * DAY)
  t.equal(keepAge('12h'), DAY / 2)
  t.equal(keepBytes('10GiB'), 10 * 1024 ** 3)
  for (const text of ['', '0d', '30', '30s', '-1d', '1.5d', 'd']) t.throws(() => keepAge(text), { code: 'USAGE' }, text)
  for (const text of ['', '0MiB', '10', '10GB', '-1GiB']) t.throws(() => keepBytes(text), { code: 'USAGE' }, text)
})
