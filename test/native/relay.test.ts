import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { openSync, closeSync, readdirSync, readFileSync } from 'node:fs'
import { connect, createServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { native, type NativeRelay, type RelayCulprit } from '../../src/native.ts'

type End = { bytesOut: number; bytesIn: number; culprit: RelayCulprit; errno: number }
type Heard = { bytesIn: number; bytes: Buffer | null }
type Bench = {
  relay: NativeRelay
  ended(flow: number): Promise<End>
  /** What the relay would have dialled, and the server there. */
  middle(): Promise<[Socket, Socket]>
  /** A client and a server with the relay between them; what lies in the middle is in the relay's hands alone unless `kept`. */
  pair(options?: { group?: number; first?: Buffer | null }): Promise<{ client: Socket; server: Socket; flow: number; middle: [Socket, Socket]; ended(): Promise<End>; heard: Heard[] }>
}

const until = async (what: () => boolean): Promise<void> => {
  for (let i = 0; i < 2000 && !what(); i++) await sleep(5)
  if (!what()) throw new Error('what was waited for did not come')
}
const fd = (socket: Socket): number => (socket as Socket & { _handle: { fd: number } })._handle.fd
const descriptors = (): number => readdirSync('/proc/self/fd').length

async function listening(t: Test): Promise<{ server: Server; port: number; accept(): Promise<Socket> }> {
  const waiting: Socket[] = []
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, socket => void waiting.push(socket.on('error', () => {}))).listen(0, '127.0.0.1', 1024)
  await once(server, 'listening')
  t.teardown(() => server.close())
  return {
    server, port: (server.address() as AddressInfo).port,
    async accept() {
      await until(() => waiting.length > 0)
      return waiting.shift()!
    },
  }
}

async function bench(t: Test): Promise<Bench> {
  const ends = new Map<number, End>()
  const heards = new Map<number, Heard[]>()
  const relay = new (native().Relay)((flow, bytesOut, bytesIn, culprit, errno) => void ends.set(flow, { bytesOut, bytesIn, culprit, errno }),
    (flow, bytesIn, bytes) => void heards.get(flow)!.push({ bytesIn, bytes }))
  t.teardown(() => relay.close())
  const before = await listening(t)
  const behind = await listening(t)
  const dial = async (at: { port: number; accept(): Promise<Socket> }): Promise<[Socket, Socket]> => {
    const socket = connect({ port: at.port, host: '127.0.0.1', allowHalfOpen: true }).on('error', () => {})
    socket.pause()
    await once(socket, 'connect')
    return [socket, await at.accept()]
  }
  let turn: Promise<unknown> = Promise.resolve()
  const ended = async (flow: number): Promise<End> => {
    await until(() => ends.has(flow))
    return ends.get(flow)!
  }
  return {
    relay,
    ended,
    middle: () => dial(behind),
    async pair({ group = 0, first = Buffer.alloc(0) } = {}) {
      const made = turn.then(async () => [await dial(before), await dial(behind)] as const)
      turn = made
      const [[client, near], [far, server]] = await made
      const flow = relay.open(fd(near), fd(far), group)
      const heard: Heard[] = []
      heards.set(flow, heard)
      if (first !== null) {
        relay.send(flow, first)
        near.destroy()
        far.destroy()
      }
      return { client, server, flow, middle: [near, far], ended: () => ended(flow), heard }
    },
  }
}

/** All that one end hears, and how that ended. */
function hear(socket: Socket, slow = 0): Promise<{ hash: string; bytes: number; code: string | null }> {
  const hash = createHash('sha256')
  let bytes = 0
  let code: string | null = null
  return new Promise(resolve => {
    const done = (): void => resolve({ hash: hash.digest('hex'), bytes, code })
    socket.on('data', (data: Buffer) => {
      hash.update(data)
      bytes += data.length
      if (slow > 0 && bytes % slow < 4096) {
        socket.pause()
        setTimeout(() => socket.resume(), 2)
      }
    }).once('end', done).once('error', (error: NodeJS.ErrnoException) => {
      code = error.code!
      done()
    }).resume()
  })
}

let salt = 0
/** Says parts of these sizes, with a turn of the loop here and there; gives what was said. */
async function say(socket: Socket, sizes: number[], first: Buffer = Buffer.alloc(0)): Promise<string> {
  const hash = createHash('sha256').update(first)
  for (const size of sizes) {
    const part = Buffer.alloc(size, createHash('sha512').update(String(salt++)).digest())
    hash.update(part)
    if (!socket.write(part)) await once(socket, 'drain')
    if (size % 3 === 0) await sleep(size % 2)
  }
  return hash.digest('hex')
}

const sizes = fc.array(fc.oneof(fc.integer({ min: 1, max: 200 }), fc.constantFrom(16_383, 16_384, 16_385, 65_536), fc.integer({ min: 1, max: 700_000 })), { maxLength: 12 })
const conversation = fc.record({ out: sizes, in: sizes, first: fc.integer({ min: 0, max: 40_000 }), slow: fc.constantFrom(0, 0, 65_536, 300_000), inFirst: fc.boolean() })

t.test('whatever is said arrives whole and in order, both ways, and each half-close when it was made', async t => {
  const { pair } = await bench(t)
  const seen = { bytes: 0 }
  await fc.assert(fc.asyncProperty(fc.array(conversation, { minLength: 1, maxLength: 5 }), async conversations => {
    await Promise.all(conversations.map(async one => {
      const first = Buffer.alloc(one.first, 'first')
      const { client, server, ended } = await pair({ first })
      const [atServer, atClient] = [hear(server, one.slow), hear(client, one.slow)]
      const out = async (): Promise<string> => {
        const hash = await say(client, one.out, first)
        client.end()
        return hash
      }
      const back = async (): Promise<string> => {
        if (!one.inFirst) await atServer
        const hash = await say(server, one.in)
        server.end()
        return hash
      }
      const [said, answered] = await Promise.all([out(), back()])
      const [reached, returned] = [await atServer, await atClient]
      if (reached.hash !== said || returned.hash !== answered) throw new Error(`lost: ${reached.bytes} and ${returned.bytes}`)
      const end = await ended()
      if (end.culprit !== null || end.bytesOut !== reached.bytes || end.bytesIn !== returned.bytes) throw new Error(`told ${JSON.stringify(end)} of ${reached.bytes} and ${returned.bytes}`)
      seen.bytes += reached.bytes + returned.bytes
      client.destroy()
      server.destroy()
    }))
  }), { seed: 20_260_101, numRuns: 25 })
  t.ok(seen.bytes > 30_000_000, `${seen.bytes} bytes`)
})

t.test('many connections at once, of which none takes a descriptor with it', async t => {
  const { relay, pair } = await bench(t)
  const before = descriptors()
  const all = await Promise.all(Array.from({ length: 150 }, async (_, index) => {
    const { client, server, ended } = await pair({ group: index % 3 })
    const heard = [hear(server), hear(client)] as const
    const said = [say(client, [100, 100_000 + index]), say(server, [100_000, index])] as const
    const hashes = await Promise.all(said)
    client.end()
    server.end()
    const [out, back] = await Promise.all(heard)
    await ended()
    client.destroy()
    server.destroy()
    return out.hash === hashes[0] && back.hash === hashes[1]
  }))
  t.equal(all.filter(whole => whole).length, 150)
  await until(() => descriptors() <= before + 8)
  relay.close()
  await until(() => descriptors() <= before - 2)
  t.ok(descriptors() <= before - 2, 'with the thread\'s own two')
})

/** Bytes that the kernel still holds for the peer of the socket bound to a local port. */
const unsent = (port: number, remote: number): number => {
  const hex = (value: number): string => `0100007F:${value.toString(16).toUpperCase().padStart(4, '0')}`
  const row = readFileSync('/proc/net/tcp', 'utf8').split('\n').map(line => line.trim().split(/\s+/)).find(fields => fields[1] === hex(port) && fields[2] === hex(remote))
  return row === undefined ? 0 : Number.parseInt(row[4]!.split(':')[0]!, 16)
}

t.test('a reset goes on as a reset, after all that came before it', async t => {
  const { pair } = await bench(t)
  {
    const { client, server, ended } = await pair()
    const atServer = hear(server)
    client.write('x')
    await once(server, 'data')
    client.resetAndDestroy()
    t.match(await atServer, { code: 'ECONNRESET', bytes: 1 })
    t.match(await ended(), { culprit: 'client', errno: 104, bytesOut: 1 })
  }
  for (const size of [10, 1_500_000]) {
    const { client, server, ended } = await pair()
    const answer = Buffer.alloc(size, 'answer')
    const [port, remote] = [server.localPort!, server.remotePort!]
    server.write(answer)
    // All is with the relay, and most of it not yet with a client that does not read.
    await until(() => server.writableLength === 0 && unsent(port, remote) === 0)
    // Node takes a reset for an end if it comes with less than it can read at once (libuv, uv__stream_io): of the small one it reads first.
    const early = size === 10 ? hear(client) : null
    if (early !== null) await once(client, 'data')
    server.resetAndDestroy()
    const atClient = await (early ?? hear(client))
    t.match(atClient, { code: 'ECONNRESET', bytes: size, hash: createHash('sha256').update(answer).digest('hex') })
    t.match(await ended(), { culprit: 'server', errno: 104, bytesIn: size })
  }
  {
    const { client, server, ended } = await pair()
    server.end('all')
    t.match(await hear(client), { code: null, bytes: 3 }, 'an end is none')
    server.resetAndDestroy()
    t.match(await ended(), { culprit: 'server' })
    client.destroy()
  }
})

/** Clock ticks that the relay's thread has used. */
function ticks(): number {
  const thread = readdirSync('/proc/self/task').find(id => readFileSync(`/proc/self/task/${id}/comm`, 'utf8').trim() === 'ambit-relay')!
  const fields = readFileSync(`/proc/self/task/${thread}/stat`, 'utf8').split(') ')[1]!.split(' ')
  return Number(fields[11]) + Number(fields[12])
}

t.test('peers that never read hold back who writes, cost no time and no more than their share of pipes, and hold up nobody else', async t => {
  const { relay, pair } = await bench(t)
  const COUNT = 40
  const before = descriptors()
  const deaf = await Promise.all(Array.from({ length: COUNT }, () => pair({ group: 7 })))
  const flood = Buffer.alloc(48 * 1024 * 1024)
  for (const { client } of deaf) client.write(flood)
  let last = -1
  await until(() => {
    const now = deaf.reduce((sum, { client }) => sum + client.writableLength, 0)
    const still = now === last
    last = now
    return still
  })
  await sleep(200)
  t.ok(deaf.every(({ client }) => client.writableLength > 0), 'each writer is held back')
  // Two ends here and two with the relay for each, and two for each pipe.
  t.ok(descriptors() - before <= COUNT * 4 + 2 * 32, `${descriptors() - before} descriptors`)
  const idle = ticks()
  await sleep(1000)
  t.ok(ticks() - idle <= 20, `${ticks() - idle} ticks of a second in which nobody moved`)

  const other = await pair({ group: 8 })
  const heard = hear(other.server)
  const said = await say(other.client, [3_000_000])
  other.client.end()
  t.equal((await heard).hash, said)
  const [one] = deaf
  const broken = hear(one!.client)
  relay.cut(one!.flow)
  const end = await one!.ended()
  t.equal(end.culprit, 'cut')
  t.ok(end.bytesOut > 0 && end.bytesOut < flood.length)
  t.match(await broken, { code: 'ECONNRESET' })
  // Among the last ones are those without a pipe.
  const rest = deaf.slice(-5)
  const all = await Promise.all(rest.map(async ({ client, server, ended }) => {
    const heard = hear(server)
    client.end()
    const { bytes } = await heard
    server.end()
    return bytes === flood.length && (await ended()).culprit === null
  }))
  t.ok(all.every(whole => whole))
  for (const { client, server } of [other, ...deaf]) {
    client.destroy()
    server.destroy()
  }
})

t.test('the way to the server can be carried elsewhere, and the server be heard', async t => {
  const { relay, pair } = await bench(t)
  const { client, server, flow, middle, ended, heard } = await pair({ first: null })
  server.write('early')
  t.equal(String((await once(client.resume(), 'data'))[0]), 'early', 'the way back is open from the start')
  relay.watch(flow)
  await until(() => heard.length === 1)
  t.match(heard[0], { bytesIn: 5, bytes: Buffer.alloc(0) })
  server.write('seen')
  t.equal(String((await once(client, 'data'))[0]), 'seen')
  await until(() => heard.length === 2)
  t.equal(String(heard[1]!.bytes), 'seen')
  relay.unwatch(flow)
  middle[1].write('by hand')
  t.equal(String((await once(server.resume(), 'data'))[0]), 'by hand')
  relay.watch(flow)
  await until(() => heard.length === 3)
  server.end('more')
  await until(() => heard.at(-1)!.bytes === null)
  t.match(heard.map(one => one.bytes === null ? null : String(one.bytes)), ['', 'seen', '', 'more', null])
  middle[1].end()
  await once(middle[1], 'finish')
  relay.sent(flow, 0)
  t.match(await ended(), { culprit: null, bytesIn: 13, bytesOut: 0 })
  for (const socket of [client, server, ...middle]) socket.destroy()

  const cut = await pair({ first: null })
  const last = hear(cut.client)
  cut.server.write('last words')
  await once(cut.client, 'data')
  relay.sent(cut.flow, 32)
  t.match(await cut.ended(), { culprit: 'server', errno: 32, bytesIn: 10 })
  for (const socket of cut.middle) socket.destroy()
  t.match(await last, { bytes: 10, code: 'ECONNRESET' }, 'once nobody holds the sockets any more')
  for (const socket of [cut.client, cut.server]) socket.destroy()
})

t.test('an urgent byte keeps its place, and what follows it is not held up', async t => {
  const { relay, ended, middle } = await bench(t)
  const { port, accept } = await listening(t)
  const child = spawn('python3', ['-c', `
import socket
s = socket.create_connection(('127.0.0.1', ${port}))
for _ in range(40):
    s.sendall(b'a' * 70000)
    s.send(b'!', socket.MSG_OOB)
s.sendall(b'end')
s.shutdown(socket.SHUT_WR)
s.recv(1)`], { stdio: ['ignore', 'ignore', 'inherit'] })
  const near = await accept()
  const [far, server] = await middle()
  const flow = relay.open(fd(near), fd(far), 0)
  relay.send(flow, Buffer.alloc(0))
  for (const socket of [near, far]) socket.destroy()
  const expected = Buffer.concat([...Array.from({ length: 40 }, () => Buffer.from(`${'a'.repeat(70_000)}!`)), Buffer.from('end')])
  t.match(await hear(server), { bytes: expected.length, hash: createHash('sha256').update(expected).digest('hex') })
  server.end()
  t.match(await ended(flow), { culprit: null, bytesOut: expected.length })
  await once(child, 'exit')
})

t.test('close can be called twice, nothing after it, and nothing with what is no socket', async t => {
  const { relay, pair } = await bench(t)
  const { client, server, flow } = await pair()
  const file = openSync('/dev/null', 'r')
  for (const bad of [file, 9999, -1]) t.throws(() => relay.open(bad, bad, 0), { code: 'NATIVE' })
  closeSync(file)
  for (const bad of [undefined, 'x', null]) t.throws(() => relay.open(bad as never, bad as never, 0), /descriptor/)
  t.throws(() => relay.open(fd(client), fd(server), undefined as never), /three numbers/)
  t.throws(() => new (native().Relay)(undefined as never, undefined as never), /two functions/)
  t.throws(() => relay.send(flow, 'x' as never), /Buffer/)
  for (const act of [() => relay.cut(77), () => relay.send(77, Buffer.from('x')), () => relay.watch(77), () => relay.unwatch(77), () => relay.sent(77, 0)]) t.doesNotThrow(act, 'a flow that is gone')
  const atClient = hear(client)
  relay.close()
  relay.close()
  t.match(await atClient, { code: 'ECONNRESET' })
  for (const act of [() => relay.open(1, 1, 0), () => relay.cut(flow), () => relay.send(flow, Buffer.from('x')), () => relay.watch(flow), () => relay.unwatch(flow), () => relay.sent(flow, 0)]) t.throws(act, /the relay is closed/)
  server.destroy()
})

t.test('however the process ends, what was under way is reset, never ended as if it were whole', async t => {
  const { port, accept } = await listening(t)
  const script = `
    import { connect } from 'node:net'
    import { createRequire } from 'node:module'
    const { Relay } = createRequire(process.cwd() + '/')('./build/Release/ambit.node')
    const relay = new Relay(() => {}, () => {})
    const ends = await Promise.all([0, 1].map(() => new Promise(resolve => { const socket = connect(${port}, '127.0.0.1', () => resolve(socket)).pause() })))
    relay.open(ends[0]._handle.fd, ends[1]._handle.fd, 0)
    relay.send(1, Buffer.alloc(0))
    for (const one of ends) one.destroy()
    process.stdout.write('open')
    process.stdin.once('data', data => String(data) === 'exit' ? process.exit(0) : String(data) === 'throw' ? setTimeout(() => { throw new Error('on purpose') }) : null)`
  for (const [how, status] of [['exit', 0], ['throw', 1], ['kill', null]] as const) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', script], { cwd: join(import.meta.dirname, '../..'), stdio: ['pipe', 'pipe', 'ignore'], env: { ...process.env, NODE_OPTIONS: '' } })
    await once(child.stdout, 'data')
    const [one, two] = [await accept(), await accept()]
    one.write('through')
    t.equal(String((await once(two.resume(), 'data'))[0]), 'through', how)
    const codes = Promise.all([hear(one), hear(two)])
    if (how === 'kill') child.kill('SIGKILL')
    else child.stdin.write(how)
    t.equal((await once(child, 'exit'))[0], status, how)
    t.match(await codes, [{ code: 'ECONNRESET' }, { code: 'ECONNRESET' }], how)
  }
})
