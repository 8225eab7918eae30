import { generateKeyPairSync } from 'node:crypto'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { spawnSync } from 'node:child_process'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { readContract } from '../../src/contract/read.ts'
import { contractDigest } from '../../src/contract/write.ts'
import { readBundle } from '../../src/evidence/bundle.ts'
import { appendLine, checkLine, digest, emptyChain } from '../../src/evidence/chain.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { loadOrCreateKey, openEnvelope, preAuthEncoding, readPublicKey, sealStatement } from '../../src/evidence/sign.ts'
import { BUNDLE } from '../../src/evidence/statement.ts'
import { EvidenceStore } from '../../src/evidence/store.ts'
import { verifyBundle } from '../../src/evidence/verify.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-bundle-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))
const contract = readContract(`apiVersion: ambit/v1
kind: Cell
metadata: { name: test }
spec:
  mode: enforce
  ttl: 1m
  workspace: none
  authority:
    filesystem: { read: [/usr/lib], write: [] }
    exec: [/usr/bin/true]
    syscall: { profile: build }
`, 'test.yaml')

const process = { pid: 7, start: '123456789', comm: 'sh' }
const started = (cell: string): EvidenceBody => ({ type: 'cell.started', cell, mode: 'enforce', contract, contractDigest: contractDigest(contract), argv: ['true'], host: 'h', boot: 'b', kernel: 'k', pipeline: null })
const ended: EvidenceBody = { type: 'cell.ended', code: 0, signal: null, reason: 'exited', wallMs: 1, userMs: 1, systemMs: 1, maxRssKiB: 1 }
const file = (path: string): EvidenceBody => ({ type: 'file', process, path, access: 'read', created: false, dev: '1', ino: '2', source: 'descriptor' })

let stores = 0
async function bundle(bodies: EvidenceBody[], cell = 'c1', state = join(dir, `state-${stores++}`)): Promise<{ path: string; state: string }> {
  mkdirSync(state, { recursive: true })
  const store = new EvidenceStore(join(state, 'evidence'), loadOrCreateKey(state))
  const log = store.begin(cell)
  for (const body of [started(cell), ...bodies, ended]) log.append(body)
  await store.finish(log, contract)
  store.close()
  return { path: store.pathOf(cell), state }
}
let copies = 0
function copy(path: string): string {
  const target = join(dir, `copy-${copies++}`)
  cpSync(path, target, { recursive: true })
  return target
}

t.test('what was written is read back and verifies, whatever strings a job chose', async t => {
  const text = fc.oneof(fc.string({ unit: 'binary' }), fc.string({ unit: 'grapheme' }), fc.constantFrom('\u2028\ud800', '__proto__', '\n\r\0"\\', '1e400'))
  await fc.assert(fc.asyncProperty(fc.array(text, { maxLength: 12 }), fc.dictionary(text, text), async (paths, grants) => {
    const bodies: EvidenceBody[] = [...paths.map(file), { type: 'credential', kind: 'k', name: 'n', outcome: 'issued', grants, expires: null, delivery: 'none', detail: '' }]
    const { path } = await bundle(bodies)
    const report = await verifyBundle(path)
    t.same(report.problems, [])
    const { events } = await readBundle(path)
    t.same(events.filter(event => event.type === 'file').map(event => event.path), paths)
    t.equal(report.records, bodies.length + 2)
  }), { numRuns: 40 })
})

t.test('no change of any byte of any file passes', async t => {
  const { path } = await bundle(['/etc/passwd', '/usr/lib/x.so', '/tmp/ü'].map(file))
  t.ok((await verifyBundle(path)).valid, 'as it is')
  for (const name of Object.values(BUNDLE)) {
    const content = readFileSync(join(path, name))
    const change = fc.oneof(
      fc.tuple(fc.constant('flip'), fc.nat(content.length * 8 - 1), fc.nat()),
      fc.tuple(fc.constant('cut'), fc.nat(content.length - 1), fc.nat()),
      fc.tuple(fc.constant('drop'), fc.nat(content.length - 1), fc.nat({ max: 20 })),
      fc.tuple(fc.constant('insert'), fc.nat(content.length), fc.nat(255)),
    )
    const target = copy(path)
    await fc.assert(fc.asyncProperty(change, async ([how, at, what]) => {
      const changed = how === 'flip' ? Buffer.from(content)
        : how === 'cut' ? content.subarray(0, at)
          : how === 'drop' ? Buffer.concat([content.subarray(0, at), content.subarray(at + 1 + what)])
            : Buffer.concat([content.subarray(0, at), Buffer.from([what]), content.subarray(at)])
      if (how === 'flip') changed[at >> 3]! ^= 1 << (at & 7)
      writeFileSync(join(target, name), changed)
      const { valid, problems } = await verifyBundle(target)
      return !valid && problems.length > 0
    }), { numRuns: 150 })
    rmSync(join(target, name))
    t.match((await verifyBundle(target)).problems.join('\n'), /missing/, `${name} is not there`)
  }
})

t.test('no rearrangement of records passes, not even of records that are good in themselves', async () => {
  const { path } = await bundle(Array.from({ length: 8 }, (_, index) => file(`/file-${index}`)))
  const lines = readFileSync(join(path, BUNDLE.log), 'utf8').trimEnd().split('\n')
  const target = copy(path)
  const index = fc.nat(lines.length - 1)
  const edit = fc.oneof(
    fc.tuple(fc.constant('drop'), index, index), fc.tuple(fc.constant('swap'), index, index).filter(([, a, b]) => a !== b),
    fc.tuple(fc.constant('repeat'), index, index), fc.tuple(fc.constant('truncate'), index, index), fc.tuple(fc.constant('space'), index, index),
  )
  await fc.assert(fc.asyncProperty(edit, async ([how, a, b]) => {
    const changed = [...lines]
    if (how === 'drop') changed.splice(a, 1)
    if (how === 'swap') [changed[a], changed[b]] = [changed[b]!, changed[a]!]
    if (how === 'repeat') changed.splice(b, 0, changed[a]!)
    if (how === 'truncate') changed.length = a
    if (how === 'space') changed[a] = changed[a]!.replace(',', ', ')
    writeFileSync(join(target, BUNDLE.log), changed.map(line => `${line}\n`).join(''))
    return !(await verifyBundle(target)).valid
  }), { numRuns: 150 })
})

t.test('a chain made anew over other records fails at the signature, and only there', async t => {
  const { path, state } = await bundle([file('/real')])
  const target = copy(path)
  const chain = emptyChain()
  const forged = [started('c1'), ended].map(body => `${appendLine(chain, body, Date.now() * 1000)}\n`).join('')
  writeFileSync(join(target, BUNDLE.log), forged)
  const { problems } = await verifyBundle(target)
  t.ok(problems.length > 0 && problems.every(problem => problem.startsWith('the signed ')), 'the chain itself holds: a hash chain alone proves nothing')

  const own = join(dir, 'forger')
  mkdirSync(own)
  const forger = loadOrCreateKey(own)
  const statement = JSON.parse(Buffer.from((JSON.parse(readFileSync(join(path, BUNDLE.statement), 'utf8')) as { payload: string }).payload, 'base64').toString()) as { subject: { digest: { sha256: string } }[]; predicate: object }
  statement.subject[0]!.digest.sha256 = digest(forged)
  Object.assign(statement.predicate, { records: 2, bytes: forged.length, head: chain.head })
  writeFileSync(join(target, BUNDLE.statement), sealStatement(forger, statement))
  writeFileSync(join(target, BUNDLE.key), forger.publicPem)
  t.ok((await verifyBundle(target)).valid, 'whoever signs with a key of their own passes without --key')
  const publicKey = loadOrCreateKey(state).publicPem
  t.notOk((await verifyBundle(target, { publicKey })).valid, 'and does not pass with the daemon\'s')
  t.ok((await verifyBundle(path, { publicKey })).valid)

  const other = await bundle([file('/other')], 'c2', state)
  const swapped = copy(path)
  cpSync(join(other.path, BUNDLE.statement), join(swapped, BUNDLE.statement))
  t.match((await verifyBundle(swapped, { publicKey })).problems, [/the signed digest of the log/], 'the statement of another log, by the same key')
})

t.test('records that no daemon writes are refused though chain and signature hold', async t => {
  const sealed = async (bodies: EvidenceBody[]): Promise<string[]> => {
    const state = join(dir, `state-${stores++}`)
    mkdirSync(state)
    const store = new EvidenceStore(join(state, 'evidence'), loadOrCreateKey(state))
    const log = store.begin('c1')
    for (const body of bodies) log.append(body)
    await store.finish(log, contract)
    return (await verifyBundle(store.pathOf('c1'))).problems
  }
  t.match(await sealed([started('c1'), file('/x')]), [/no closing record/], 'signed, and still not closed')
  t.match(await sealed([file('/x'), ended]), [/does not begin/, /the signed cell/, /the signed contract/])
  t.match(await sealed([started('c1'), started('c1'), ended]), [/:2: a second start/])
  t.match(await sealed([started('other'), ended]), [/the signed cell is c1, the bundle has other/])
  t.match(await sealed([started('c1'), { type: 'file', path: '/x' } as never, ended]), [/:2: the record does not follow the schema/])
  t.match(await sealed([{ ...started('c1'), contractDigest: '0'.repeat(64) } as EvidenceBody, ended]), [/not the contract/, /does not have the digest/, /the signed contract/])
})

t.test('a hostile bundle makes a report, not a hang or a crash', async t => {
  const { path } = await bundle([])
  const piped = copy(path)
  rmSync(join(piped, BUNDLE.log))
  spawnSync('mkfifo', [join(piped, BUNDLE.log)])
  t.match((await verifyBundle(piped)).problems, [/not a regular file/])
  const linked = copy(path)
  rmSync(join(linked, BUNDLE.statement))
  symlinkSync(join(path, BUNDLE.statement), join(linked, BUNDLE.statement))
  t.match((await verifyBundle(linked)).problems, [/symbolic link/])
  const long = copy(path)
  writeFileSync(join(long, BUNDLE.log), Buffer.alloc(5 * 1024 * 1024, 'x'))
  t.match((await verifyBundle(long)).problems, [/longer than/])
  const many = copy(path)
  writeFileSync(join(many, BUNDLE.log), 'x\n'.repeat(20_000))
  const report = await verifyBundle(many)
  t.equal(report.problems.length, 21)
  t.match(report.problems.at(-1)!, /more problems/)
  const deep = copy(path)
  writeFileSync(join(deep, BUNDLE.log), `${'['.repeat(500_000)}${']'.repeat(500_000)}\n`)
  t.match((await verifyBundle(deep)).problems, [/not JSON/])
  await t.rejects(verifyBundle(join(dir, 'none')), { code: 'EVIDENCE_UNREADABLE' })
  await t.rejects(verifyBundle(path, { publicKey: 'no key' }), { code: 'FILE_UNREADABLE' })
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey.export({ type: 'spki', format: 'pem' }) as string
  await t.rejects(verifyBundle(path, { publicKey: rsa }), /not an Ed25519 public key/)
  await t.rejects(readBundle(join(dir, 'none')), { code: 'EVIDENCE_UNREADABLE' })
})

t.test('readBundle names the line that is not good', async t => {
  const { path } = await bundle([file('/a'), file('/b')])
  const target = copy(path)
  const lines = readFileSync(join(path, BUNDLE.log), 'utf8').split('\n')
  writeFileSync(join(target, BUNDLE.log), [lines[0], lines[2], lines[3], ''].join('\n'))
  await t.rejects(readBundle(target), { code: 'EVIDENCE_INVALID', message: /events\.jsonl:2: could not read the evidence: the sequence number is 2, and 1 follows/ })
  writeFileSync(join(target, BUNDLE.log), `${lines.join('\n')}{"seq":`)
  await t.rejects(readBundle(target), /:5: .*something follows the closing record/)
})

t.test('one line has one form only: checkLine takes what appendLine makes and nothing beside it', t => {
  const chain = emptyChain()
  const line = appendLine(chain, file('/x'), 1_700_000_000_123_456)
  t.match(line, /^\{"seq":0,"prev":"0{64}","time":"2023-11-14T22:13:20\.123456Z","type":"file"/)
  t.equal(checkLine(emptyChain(), Buffer.from(line)).problem, null)
  for (const other of [line.replace('"/x"', '"\\u002fx"'), line.replace('{', '{ '), line.replace('"seq":0', '"seq":0.0'), line.replace('"seq":0', '"seq":0,"seq":0'), `\ufeff${line}`, line.replace('.123456Z', '.123Z'), line.replace('2023-11', '2023-13')]) {
    t.not(checkLine(emptyChain(), Buffer.from(other)).problem, null, other.slice(0, 60))
  }
  t.ok(appendLine(chain, file('/y'), 5).includes('20.123456Z'), 'a clock that was set back does not turn time around')
  t.end()
})

t.test('DSSE: the encoding is the standard\'s, and an envelope is opened by its key alone', t => {
  // The example of the DSSE specification (protocol.md).
  t.equal(preAuthEncoding('http://example.com/HelloWorld', Buffer.from('hello world')).toString(), 'DSSEv1 29 http://example.com/HelloWorld 11 hello world')
  const state = join(dir, 'dsse')
  mkdirSync(state)
  const key = loadOrCreateKey(state)
  const text = sealStatement(key, { hello: 'world' })
  t.same(openEnvelope(text, readPublicKey(key.publicPem)), { payload: { hello: 'world' } })
  for (const other of [text.trimEnd(), ` ${text}`, text.replace('"payload"', '"payloae"'), text.replace(/"keyid":"./, '"keyid":"z'), '{}', '']) t.match(openEnvelope(other, readPublicKey(key.publicPem)), { problem: String }, other.slice(0, 30))
  t.throws(() => readPublicKey(readFileSync(join(state, 'signing-key.pem'), 'utf8')), /not an Ed25519 public key/, 'a private key is not taken for a public one')

  const envelope = join(state, 'payload')
  const { payload, payloadType, signatures } = JSON.parse(text) as { payload: string; payloadType: string; signatures: { sig: string }[] }
  writeFileSync(envelope, preAuthEncoding(payloadType, Buffer.from(payload, 'base64')))
  writeFileSync(`${envelope}.sig`, Buffer.from(signatures[0]!.sig, 'base64'))
  writeFileSync(`${envelope}.pem`, key.publicPem)
  const { stdout } = spawnSync('openssl', ['pkeyutl', '-verify', '-pubin', '-inkey', `${envelope}.pem`, '-rawin', '-in', envelope, '-sigfile', `${envelope}.sig`], { encoding: 'utf8' })
  t.match(stdout, /Verified Successfully/, 'OpenSSL agrees')
  t.end()
})
