import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { createConnection, createServer, type AddressInfo, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { CloudEvent } from 'cloudevents'
import { pino } from 'pino'
import t from 'tap'
import { WebSocket } from 'ws'
import { readContract } from '../../src/contract/read.ts'
import { contractDigest } from '../../src/contract/write.ts'
import { openFeed } from '../../src/daemon/feed.ts'
import { subscribe } from '../../src/daemon/feed-client.ts'
import type { CellLog } from '../../src/evidence/cell-log.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { loadOrCreateKey } from '../../src/evidence/sign.ts'
import { EvidenceStore } from '../../src/evidence/store.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-feed-'))
const store = new EvidenceStore(join(dir, 'evidence'), loadOrCreateKey(dir))
const tokenFile = join(dir, 'feed-token')
const feed = await openFeed({ host: '127.0.0.1', port: 0, tokenFile, store, log: pino({ level: 'silent' }) })
const token = readFileSync(tokenFile, 'utf8').trim()
const url = `ws://127.0.0.1:${feed.port}/v1/feed`
t.teardown(async () => {
  await feed.close()
  rmSync(dir, { recursive: true, force: true })
})
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
const started = (cell: string): EvidenceBody => ({ type: 'cell.started', cell, mode: 'observe', contract, contractDigest: contractDigest(contract), argv: ['true'], host: 'h', boot: 'b', kernel: 'k', pipeline: null })
const ended: EvidenceBody = { type: 'cell.ended', code: 0, signal: null, reason: 'exited', wallMs: 1, userMs: 1, systemMs: 1, maxRssKiB: 1 }
const file = (path: string): EvidenceBody => ({ type: 'file', process: { pid: 7, start: '1', comm: 'sh' }, path, access: 'read', created: false, dev: '1', ino: '2', source: 'descriptor' })
function begin(cell: string): CellLog {
  const log = store.begin(cell)
  log.append(started(cell))
  return log
}
async function end(log: CellLog): Promise<void> {
  log.append(ended)
  await store.finish(log, contract)
}
/** Bytes that cannot be collected. */
function memoryHeld(): number {
  setFlagsFromString('--expose-gc')
  ;(runInNewContext('gc') as () => void)()
  const { arrayBuffers, heapUsed } = process.memoryUsage()
  return arrayBuffers + heapUsed
}
const turn = (): Promise<void> => new Promise(resolve => setImmediate(resolve))

type Raw = { messages: string[]; closed: Promise<{ code: number; reason: string }>; socket: WebSocket }
function raw(query: string): Raw {
  const socket = new WebSocket(`${url}${query}`, { headers: { authorization: `Bearer ${token}` } })
  const messages: string[] = []
  socket.on('message', data => messages.push(String(data)))
  return { socket, messages, closed: new Promise(resolve => socket.once('close', (code, reason) => resolve({ code, reason: reason.toString() }))) }
}
async function seqs(options: { cell: string; from?: number; url?: string }): Promise<number[]> {
  const got: number[] = []
  for await (const record of subscribe({ url, token, from: 0, ...options })) got.push(record.seq)
  return got
}
const upTo = (count: number, from = 0): number[] => Array.from({ length: count - from }, (_, index) => from + index)

t.test('the token is made for this host\'s root alone, and is refused if others can read it', async t => {
  t.equal(statSync(tokenFile).mode & 0o777, 0o600)
  t.match(token, /^[0-9a-f]{64}$/)
  const open = (path: string): Promise<unknown> => openFeed({ host: '127.0.0.1', port: 0, tokenFile: path, store, log: pino({ level: 'silent' }) })
  const loose = join(dir, 'loose-token')
  writeFileSync(loose, 'x'.repeat(64))
  chmodSync(loose, 0o644)
  await t.rejects(open(loose), { code: 'FILE_UNREADABLE', message: /others may use it \(mode 0644\)/ })
  const short = join(dir, 'short-token')
  writeFileSync(short, 'x', { mode: 0o600 })
  await t.rejects(open(short), /too short/)
  await t.rejects(openFeed({ host: '127.0.0.1', port: feed.port, tokenFile, store, log: pino({ level: 'silent' }) }), { code: 'USAGE', message: /EADDRINUSE/ })
  await t.rejects(openFeed({ host: '0.0.0.0', port: 0, tokenFile, store, log: pino({ level: 'silent' }) }), /not a loopback/)
})

t.test('who may not ask is told why, before anything else is told', async t => {
  await end(begin('asked'))
  const ask = (path: string, headers: Record<string, string> = {}): Promise<{ status: number | undefined; body: string }> => new Promise((resolve, reject) => {
    const key = { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-version': '13', 'sec-websocket-key': 'dGhlIHNhbXBsZSBub25jZQ==' }
    const asking = request({ host: '127.0.0.1', port: feed.port, path, headers: { ...key, ...headers } })
    asking.once('error', reject)
    asking.once('upgrade', (response, socket) => {
      socket.destroy()
      resolve({ status: response.statusCode, body: '' })
    })
    asking.once('response', response => {
      let body = ''
      response.on('data', chunk => { body += chunk })
      response.once('end', () => resolve({ status: response.statusCode, body }))
    })
    asking.end()
  })
  const authorization = `Bearer ${token}`
  t.match(await ask('/v1/feed?cell=asked', { authorization }), { status: 101 }, 'with the token')
  t.match(await ask('/v1/feed?cell=asked'), { status: 401, body: /send the feed's token/ })
  t.match(await ask('/v1/feed?cell=none'), { status: 401 }, 'without the token nobody learns which cells there are')
  for (const wrong of [`Bearer ${token}0`, `Bearer ${token.slice(1)}`, 'Bearer ', `Basic ${token}`, token, `Bearer ${'0'.repeat(64)}`]) t.match(await ask('/v1/feed?cell=asked', { authorization: wrong }), { status: 401 }, wrong.slice(0, 12))
  t.match(await ask('/v1/feed?cell=asked', { authorization, origin: 'http://127.0.0.1' }), { status: 403, body: /web pages/ })
  t.match(await ask('/v2/feed', { authorization }), { status: 404, body: /the feed is at \/v1\/feed/ })
  t.match(await ask('//[', { authorization }), { status: 404 })
  t.match(await ask('/v1/feed?cell=none', { authorization }), { status: 404, body: /no evidence of such a cell/ })
  t.match(await ask('/v1/feed?cell=../../etc', { authorization }), { status: 404 })
  for (const query of ['cell=asked&from=-1', 'cell=asked&from=x', 'from=1', 'cell=a&cell=b', 'cell=asked&more=1', 'since=yesterday', 'cell=asked&since=2026-01-01T00:00:00Z']) t.match(await ask(`/v1/feed?${query}`, { authorization }), { status: 400 }, query)
  t.match(await new Promise<{ status: number | undefined }>(resolve => request({ host: '127.0.0.1', port: feed.port, path: '/v1/feed' }, response => resolve({ status: response.statusCode })).end()), { status: 426 })
  await t.rejects(seqs({ cell: 'none' }), { code: 'EVIDENCE_UNREADABLE', message: /no evidence of such a cell/ })
  await t.rejects((async () => { for await (const _ of subscribe({ url, token: 'wrong', cell: 'asked', from: 0 })) t.fail(String(_)) })(), { code: 'FORBIDDEN' })
})

t.test('a subscriber gets each record as a CloudEvent, as it stands in the log, and a normal close at the end', async t => {
  const log = begin('c1')
  const one = raw('?cell=c1')
  await turn()
  const two = raw('?cell=c1&from=0')
  for (let i = 0; i < 100; i++) {
    log.append(file(`/live/${i} ü \u2028 "`))
    if (i % 7 === 0) await turn()
  }
  await end(log)
  t.same([await one.closed, await two.closed], Array(2).fill({ code: 1000, reason: 'the log is sealed' }))
  t.same(one.messages, two.messages, 'two subscribers see the same bytes')
  const lines = readFileSync(join(store.pathOf('c1'), 'events.jsonl'), 'utf8').trimEnd().split('\n')
  t.same(one.messages.map(message => JSON.stringify((JSON.parse(message) as { data: unknown }).data)), lines, 'and they are the log\'s')
  const event = JSON.parse(one.messages[1]!) as Record<string, unknown>
  t.match(event, { specversion: '1.0', id: 'c1/1', type: 'dev.ambit.evidence.file', subject: 'c1', datacontenttype: 'application/json', source: /^\/ambit\// })
  t.ok(new CloudEvent(event).validate())
  t.same(await seqs({ cell: 'c1' }), upTo(102))
  t.same(await seqs({ cell: 'c1', from: 100 }), [100, 101])
  t.same(await seqs({ cell: 'c1', from: 102 }), [])
  await t.rejects(seqs({ cell: 'c1', from: 103 }), { code: 'EVIDENCE_UNREADABLE', message: /ends before the record/ })
})

t.test('a subscriber that does not read costs nobody else anything, and misses nothing', async t => {
  const log = begin('slow')
  const slow = raw('?cell=slow')
  await new Promise(resolve => slow.socket.once('open', resolve))
  slow.socket.pause()
  const quick = seqs({ cell: 'slow' })
  const many = 12_000
  const held = memoryHeld()
  for (let i = 0; i < many; i++) {
    log.append(file(`/${'x'.repeat(1000)}/${i}`))
    if (i % 200 === 0) await turn()
  }
  await end(log)
  t.equal((await quick).length, many + 2, 'the quick one has all of 17 MB')
  t.ok(slow.messages.length < many, 'the slow one has not')
  const more = memoryHeld() - held
  t.ok(more < 8e6, `and what it has not is on disk, not in memory (${more} bytes more)`)
  slow.socket.resume()
  t.equal((await slow.closed).code, 1000)
  t.same(slow.messages.map(message => (JSON.parse(message) as { data: { seq: number } }).data.seq), upTo(many + 2))
})

t.test('a connection that breaks is made again at the cursor: nothing is missed, nothing comes twice', async t => {
  const log = begin('broken')
  const sockets = new Set<Socket>()
  let connections = 0
  // Cuts each connection after some bytes, wherever they stand.
  const proxy = createServer(client => {
    connections++
    const upstream = createConnection(feed.port, '127.0.0.1')
    for (const socket of [client, upstream]) {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.once('close', () => { client.destroy(); upstream.destroy() })
    }
    client.pipe(upstream)
    let room = 3000 + connections * 1777
    upstream.on('data', chunk => {
      room -= chunk.length
      client.write(room < 0 ? chunk.subarray(0, Math.max(0, chunk.length + room)) : chunk)
      if (room < 0) client.end(() => client.destroy())
    })
  })
  await new Promise<void>(resolve => proxy.listen(0, '127.0.0.1', resolve))
  const got = seqs({ cell: 'broken', url: `ws://127.0.0.1:${(proxy.address() as AddressInfo).port}/v1/feed` })
  for (let i = 0; i < 60; i++) {
    log.append(file(`/broken/${i}`))
    await turn()
  }
  await end(log)
  t.same(await got, upTo(62))
  t.ok(connections > 2, `${connections} connections were needed`)
  for (const socket of sockets) socket.destroy()
  await new Promise(resolve => proxy.close(resolve))
  await t.rejects((async () => { for await (const _ of subscribe({ url: `ws://127.0.0.1:${(await nobody()).port}/v1/feed`, token, cell: 'broken', from: 0, retries: 2 })) t.fail(String(_)) })(), { code: 'DAEMON_UNREACHABLE', message: /ECONNREFUSED, 3 times in a row/ })
})

/** A port that nobody listens on any more. */
async function nobody(): Promise<AddressInfo> {
  const server = createServer()
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const address = server.address() as AddressInfo
  await new Promise(resolve => server.close(resolve))
  return address
}

t.test('a log that never closed ends with its own code, and the reader is told', async t => {
  const path = join(dir, 'other')
  const other = new EvidenceStore(path, loadOrCreateKey(dir))
  other.begin('dead').append(started('dead'))
  await turn()
  const reborn = new EvidenceStore(path, loadOrCreateKey(dir))
  const second = await openFeed({ host: '127.0.0.1', port: 0, tokenFile, store: reborn, log: pino({ level: 'silent' }) })
  t.teardown(() => second.close())
  const got: number[] = []
  await t.rejects((async () => { for await (const { seq } of subscribe({ url: `ws://127.0.0.1:${second.port}/v1/feed`, token, cell: 'dead', from: 0 })) got.push(seq) })(), { code: 'EVIDENCE_UNREADABLE', message: /never sealed/ })
  t.same(got, [0])
  const doomed = begin('doomed')
  await turn()
  const watcher = raw('?cell=doomed')
  await new Promise(resolve => watcher.socket.once('message', resolve))
  await store.abandon(doomed)
  t.match(await watcher.closed, { code: 4404 })
})

t.test('without a cell one sees every cell that is written', async t => {
  const running = begin('all-1')
  const all = raw('')
  const recent = raw(`?since=${encodeURIComponent(new Date(Date.now() - 3_600_000).toISOString())}`)
  await Promise.all([all, recent].map(({ socket }) => new Promise(resolve => socket.once('open', resolve))))
  const later = begin('all-2')
  running.append(file('/1'))
  later.append(file('/2'))
  await end(running)
  await end(later)
  const last = (messages: string[]): boolean => ['all-1/2', 'all-2/2'].every(id => messages.some(message => message.includes(`"${id}"`)))
  for (let i = 0; i < 500 && !(last(all.messages) && last(recent.messages)); i++) await new Promise(resolve => setTimeout(resolve, 10))
  const ids = (messages: string[]): string[] => messages.map(message => (JSON.parse(message) as { id: string }).id).filter(id => id.startsWith('all-')).sort()
  const expected = ['all-1/0', 'all-1/1', 'all-1/2', 'all-2/0', 'all-2/1', 'all-2/2']
  t.same(ids(all.messages), expected)
  t.same(ids(recent.messages), expected)
  t.ok(recent.messages.some(message => message.includes('"c1/0"')), 'since: what has ended meanwhile comes too')
  t.notOk(all.messages.some(message => message.includes('"c1/0"')))
  all.socket.close()
  recent.socket.close()
})

t.test('a subscriber that talks is shut out, and a large message is not even read', async t => {
  const log = begin('talk')
  const talker = raw('?cell=talk')
  await new Promise(resolve => talker.socket.once('open', resolve))
  talker.socket.send('hello')
  t.match(await talker.closed, { code: 1008 })
  const shouter = raw('?cell=talk')
  await new Promise(resolve => shouter.socket.once('open', resolve))
  shouter.socket.send('x'.repeat(100_000))
  t.match(await shouter.closed, { code: 1009 })
  await end(log)
})

t.test('when the daemon stops, subscribers are told and none is waited for', async t => {
  const third = await openFeed({ host: '127.0.0.1', port: 0, tokenFile, store, log: pino({ level: 'silent' }) })
  const log = begin('stop')
  const socket = new WebSocket(`ws://127.0.0.1:${third.port}/v1/feed?cell=stop`, { headers: { authorization: `Bearer ${token}` } })
  await new Promise(resolve => socket.once('message', resolve))
  const closed = new Promise(resolve => socket.once('close', code => resolve(code)))
  const idle = createConnection(third.port, '127.0.0.1')
  await new Promise<void>(resolve => idle.once('connect', () => resolve()))
  await third.close()
  t.equal(await closed, 1001)
  idle.destroy()
  await end(log)
})
