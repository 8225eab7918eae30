import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { readContract } from '../../src/contract/read.ts'
import { contractDigest } from '../../src/contract/write.ts'
import { readBundle } from '../../src/evidence/bundle.ts'
import { coverageOf } from '../../src/evidence/coverage.ts'
import { follow } from '../../src/evidence/follow.ts'
import { readOrCreatePrivate } from '../../src/evidence/private-file.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { loadOrCreateKey } from '../../src/evidence/sign.ts'
import { BUNDLE } from '../../src/evidence/statement.ts'
import { EvidenceStore } from '../../src/evidence/store.ts'
import { verifyBundle } from '../../src/evidence/verify.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-store-'))
chmodSync(dir, 0o755)
const key = loadOrCreateKey(dir)
t.teardown(() => rmSync(dir, { recursive: true, force: true }))
const contract = readContract(`apiVersion: ambit/v1
kind: Cell
metadata: { name: test }
spec:
  mode: observe
  ttl: 1m
  workspace: none
  authority:
    filesystem: { read: [/], write: [] }
    exec: ['*']
    syscall: { profile: build }
`, 'test.yaml')
const process_ = { pid: 7, start: '1', comm: 'sh' }
const started = (cell: string): EvidenceBody => ({ type: 'cell.started', cell, mode: 'observe', contract, contractDigest: contractDigest(contract), argv: ['true'], host: 'h', boot: 'b', kernel: 'k', pipeline: null })
const ended: EvidenceBody = { type: 'cell.ended', code: 0, signal: null, reason: 'exited', wallMs: 1, userMs: 1, systemMs: 1, maxRssKiB: 1 }
const file = (path: string): EvidenceBody => ({ type: 'file', process: process_, path, access: 'read', created: false, dev: '1', ino: '2', source: 'descriptor' })

let stores = 0
const newStore = (options = {}): { store: EvidenceStore; dir: string } => {
  const path = join(dir, `store-${stores++}`)
  return { store: new EvidenceStore(path, key, options), dir: path }
}

t.test('a sealed log is a bundle, private to the daemon, and one id names one cell for ever', async t => {
  const { store } = newStore()
  const log = store.begin('c1')
  for (const body of [started('c1'), file('/x'), ended]) log.append(body)
  t.equal(store.view('c1')?.state, 'open')
  await store.finish(log, contract)
  t.equal(store.view('c1')?.state, 'sealed')
  t.same(readdirSync(store.pathOf('c1')).sort(), Object.values(BUNDLE).sort())
  t.equal(statSync(store.pathOf('c1')).mode & 0o777, 0o700)
  for (const name of Object.values(BUNDLE)) t.equal(statSync(join(store.pathOf('c1'), name)).mode & 0o777, 0o600)
  t.same((await verifyBundle(store.pathOf('c1'), { publicKey: key.publicPem })).problems, [])
  const { events } = await readBundle(store.pathOf('c1'))
  t.same(events.map(event => event.type), ['cell.started', 'file', 'cell.ended'])
  t.throws(() => store.begin('c1'), 'the name is taken')
  for (const id of ['../up', '', '.', 'a/b', 'x'.repeat(65)]) {
    t.throws(() => store.begin(id), id)
    t.equal(store.view(id), null)
  }
  log.append(file('/late'))
  t.equal((await verifyBundle(store.pathOf('c1'))).records, 3)
})

t.test('what comes after cell.ended and before the seal stands before it', async t => {
  const { store } = newStore()
  const log = store.begin('c1')
  for (const body of [started('c1'), ended, file('/on its way')]) log.append(body)
  await store.finish(log, contract)
  t.same((await readBundle(store.pathOf('c1'))).events.map(event => event.type), ['cell.started', 'file', 'cell.ended'])
})

t.test('a cell that never started leaves nothing', async t => {
  const { store, dir } = newStore()
  const log = store.begin('c1')
  log.append(started('c1'))
  await store.abandon(log)
  t.same(readdirSync(dir), [])
  t.equal(store.view('c1'), null)
})

t.test('a flood does not fill the disk: what exceeds the limit is counted, and no verdict calls it complete', async t => {
  const limit = 100_000
  const { store } = newStore({ maxLogBytes: limit })
  const log = store.begin('c1')
  log.append(started('c1'))
  for (let i = 0; i < 5000; i++) log.append(file(`/flood/${i}`))
  for (let i = 0; i < 10; i++) log.append({ type: 'dns', name: 'x', rrtype: 'A', decision: 'refused', answers: [], reason: 'r' })
  log.append({ type: 'syscalls', calls: [], outOfRange: 0 })
  log.append(ended)
  await store.finish(log, contract)
  const path = store.pathOf('c1')
  t.ok(statSync(join(path, BUNDLE.log)).size < limit + 5000)
  t.ok((await verifyBundle(path)).valid)
  const { events } = await readBundle(path)
  const files = events.filter(event => event.type === 'file').length
  const losses = events.filter(event => event.type === 'loss')
  t.ok(files > 100 && files < 5000)
  t.match(losses, [
    { event: 'file (log at its limit)', family: 'file', produced: 5000, delivered: files, dropped: 5000 - files },
    { event: 'dns (log at its limit)', family: 'dns', produced: 10, delivered: 0, dropped: 10 },
  ])
  t.ok(events.some(event => event.type === 'syscalls'), 'the sets that a verdict rests on have room')
  t.equal(events.at(-1)?.type, 'cell.ended')
  t.match(coverageOf(events).gaps('file').join(), /dropped/)
})

t.test('a disk that refuses is told, and never gives a valid bundle', async t => {
  const small = join(dir, 'small')
  mkdirSync(small)
  t.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'ambit-test', small]).status, 0)
  t.teardown(() => spawnSync('umount', [small]))
  const store = new EvidenceStore(join(small, 'evidence'), key)
  const log = store.begin('c1')
  log.append(started('c1'))
  for (let i = 0; i < 2000; i++) log.append(file(`/file/${i}`))
  log.append(ended)
  await t.rejects(store.finish(log, contract), { code: 'EVIDENCE_UNREADABLE', message: /ENOSPC/ })
  t.equal(store.view('c1')?.state, 'unsealed')
  t.notOk((await verifyBundle(store.pathOf('c1'))).valid)
  const text = readFileSync(join(store.pathOf('c1'), BUNDLE.log), 'utf8')
  t.ok(text === '' || text.endsWith('\n'), 'no half line stays')
})

t.test('a daemon that dies while it writes leaves a log that can be read, in order, and is not valid', async t => {
  const { dir: path } = newStore()
  const script = join(dir, 'writer.mts')
  writeFileSync(script, `import { EvidenceStore } from ${JSON.stringify(join(import.meta.dirname, '../../src/evidence/store.ts'))}
const store = new EvidenceStore(${JSON.stringify(path)}, { keyid: '', publicPem: '', sign: () => Buffer.alloc(64) })
const log = store.begin('c1')
log.append(${JSON.stringify(started('c1'))})
let i = 0
const write = () => { for (let n = 0; n < 500; n++) log.append({ ...${JSON.stringify(file('/x'))}, path: '/file/' + i++ }); console.log(i); setImmediate(write) }
write()`)
  const child = spawn(process.execPath, ['--import', 'tsx', script], { cwd: join(import.meta.dirname, '../..'), stdio: ['ignore', 'pipe', 'inherit'] })
  let told = 0
  await new Promise<void>(resolve => child.stdout.on('data', chunk => {
    told = Number(String(chunk).trim().split('\n').at(-1))
    if (told > 20_000) {
      child.kill('SIGKILL')
      resolve()
    }
  }))
  await new Promise(resolve => child.once('close', resolve))

  const store = new EvidenceStore(path, key)
  t.equal(store.view('c1')?.state, 'unsealed')
  t.match(JSON.parse(readFileSync(join(path, 'c1/unsealed.json'), 'utf8')), { cell: 'c1', reason: /daemon ended/ })
  const { events, contract: own } = await readBundle(store.pathOf('c1'))
  t.same(own, contract, 'the contract is taken from the log')
  t.same(events.slice(1).map(event => event.type === 'file' && event.path), events.slice(1).map((_, index) => `/file/${index}`))
  t.ok(events.length > told - 1000, `${events.length - 1} records survived of ${told} or more: at most the last turns are lost`)
  const report = await verifyBundle(store.pathOf('c1'))
  t.notOk(report.valid)
  t.match(report.problems.join('\n'), /no closing record/)
  t.match(coverageOf(events).gaps('file').join(), /no closing record/, 'and no verdict calls anything of it unused')
  const stop = new AbortController()
  const lines = follow(store, 'c1', events.length - 2, stop.signal)
  const got = [await lines.next(), await lines.next(), await lines.next()]
  t.match(got, [{ done: false }, { done: false }, { done: true, value: 'unsealed' }])
  t.throws(() => store.begin('c1'))
})

t.test('a store that stops leaves its open logs marked', async t => {
  const { store } = newStore()
  const log = store.begin('c1')
  log.append(started('c1'))
  store.close()
  t.match(readFileSync(join(store.pathOf('c1'), 'unsealed.json'), 'utf8'), /daemon stopped/)
  t.equal((await readBundle(store.pathOf('c1'))).events.length, 1)
})

t.test('a cursor reads what is there, waits for more, and ends with the log', async t => {
  const { store } = newStore()
  const log = store.begin('c1')
  const stop = new AbortController()
  const seen: number[] = []
  const reader = (async () => {
    const lines = follow(store, 'c1', 3, stop.signal)
    for (;;) {
      const next = await lines.next()
      if (next.done === true) return next.value
      seen.push((JSON.parse(next.value) as { seq: number }).seq)
    }
  })()
  log.append(started('c1'))
  for (let turn = 0; turn < 20; turn++) {
    for (let i = 0; i < turn; i++) log.append(file(`/${turn}/${i}`))
    await new Promise(resolve => setImmediate(resolve))
  }
  log.append(ended)
  await store.finish(log, contract)
  t.equal(await reader, 'sealed')
  t.same(seen, Array.from({ length: 192 - 3 }, (_, index) => index + 3))
  t.match(await follow(store, 'c1', 1000, stop.signal).next(), { done: true, value: 'beyond' })
  t.match(await follow(store, 'c1', 192, stop.signal).next(), { done: true, value: 'sealed' })
  t.match(await follow(store, 'none', 0, stop.signal).next(), { done: true, value: 'gone' })
  const waiting = store.begin('c2')
  const next = follow(store, 'c2', 0, stop.signal).next()
  stop.abort()
  t.match(await next, { done: true, value: 'gone' }, 'a reader that leaves is not waited for')
  await store.abandon(waiting)
})

t.test('the bundle is copied into a directory of the caller\'s own, by descriptor, and belongs to the caller', async t => {
  const { store } = newStore()
  const log = store.begin('c1')
  for (const body of [started('c1'), ended]) log.append(body)
  await store.finish(log, contract)
  const owner = { uid: 54321, gid: 54322 }
  const directory = (name: string, uid: number): { path: string; fd: number } => {
    const path = join(dir, name)
    mkdirSync(path)
    spawnSync('chown', [String(uid), path])
    const fd = openSync(path, 'r')
    t.teardown(() => closeSync(fd))
    return { path, fd }
  }
  const good = directory('export-good', owner.uid)
  await store.exportTo('c1', good.fd, owner)
  t.same((await verifyBundle(good.path, { publicKey: key.publicPem })).problems, [])
  for (const name of Object.values(BUNDLE)) t.match(statSync(join(good.path, name)), { uid: owner.uid, gid: owner.gid })
  await t.rejects(store.exportTo('c1', good.fd, owner), { code: 'EVIDENCE_UNREADABLE', message: /EEXIST/ })
  t.ok((await verifyBundle(good.path)).valid, 'what was there is left alone')

  const foreign = directory('export-foreign', 0)
  await t.rejects(store.exportTo('c1', foreign.fd, owner), { code: 'FORBIDDEN', message: /belongs to user 0, not 54321/ })
  t.same(readdirSync(foreign.path), [])
  await store.exportTo('c1', foreign.fd, { uid: 0, gid: 0 })
  t.equal(readdirSync(foreign.path).length, 4, 'without the check the root daemon could')

  // The attack: a link where the daemon will write, to a file that only root may change.
  const target = join(dir, 'precious')
  writeFileSync(target, 'untouched', { mode: 0o600 })
  const trap = directory('export-trap', owner.uid)
  symlinkSync(target, join(trap.path, BUNDLE.statement))
  symlinkSync(join(dir, 'made-by-root'), join(trap.path, BUNDLE.key))
  await t.rejects(store.exportTo('c1', trap.fd, owner), { code: 'EVIDENCE_UNREADABLE' })
  t.equal(readFileSync(target, 'utf8'), 'untouched')
  t.notOk(existsSync(join(dir, 'made-by-root')))
  t.same(readdirSync(trap.path).sort(), [BUNDLE.key, BUNDLE.statement].sort(), 'what it made before is taken away again')
  const file_ = openSync(target, 'r')
  t.teardown(() => closeSync(file_))
  await t.rejects(store.exportTo('c1', file_, { uid: 0, gid: 0 }), { code: 'FORBIDDEN', message: /not a directory/ })
})

t.test('the key is made once, whoever asks at once, and is refused if others can have it', async t => {
  const state = join(dir, 'key')
  mkdirSync(state)
  const path = join(state, 'signing-key.pem')
  const script = `import { loadOrCreateKey } from ${JSON.stringify(join(import.meta.dirname, '../../src/evidence/sign.ts'))}; console.log(loadOrCreateKey(${JSON.stringify(state)}).keyid)`
  writeFileSync(join(dir, 'key.mts'), script)
  const makers = Array.from({ length: 4 }, () => spawn(process.execPath, ['--import', 'tsx', join(dir, 'key.mts')], { cwd: join(import.meta.dirname, '../..'), stdio: ['ignore', 'pipe', 'inherit'] }))
  const ids = await Promise.all(makers.map(maker => new Promise<string>(resolve => {
    let out = ''
    maker.stdout.on('data', chunk => { out += chunk })
    maker.once('close', () => resolve(out.trim()))
  })))
  t.equal(new Set(ids).size, 1)
  t.match(ids[0]!, /^[0-9a-f]{64}$/)
  t.equal(loadOrCreateKey(state).keyid, ids[0])
  t.same(readdirSync(state), ['signing-key.pem'], 'no drafts are left')
  t.equal(statSync(path).mode & 0o777, 0o600)
  chmodSync(path, 0o640)
  t.throws(() => loadOrCreateKey(state), { code: 'FILE_UNREADABLE', message: /others may use it \(mode 0640\)/ })
  chmodSync(path, 0o600)
  spawnSync('chown', ['54321', path])
  t.throws(() => loadOrCreateKey(state), /belongs to user 54321/)
  rmSync(path)
  symlinkSync(join(dir, 'signing-key.pem'), path)
  t.throws(() => loadOrCreateKey(state), /symbolic link/)
  rmSync(path)
  spawnSync('mkfifo', ['-m', '600', path])
  t.throws(() => loadOrCreateKey(state), /not a regular file/)
  rmSync(path)
  writeFileSync(path, 'nonsense', { mode: 0o600 })
  t.throws(() => loadOrCreateKey(state), /not a private key/)
  t.throws(() => readOrCreatePrivate(join(dir, 'none/such'), 'it', () => ''), { code: 'FILE_UNREADABLE' })
})
