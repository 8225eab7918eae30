import { randomBytes } from 'node:crypto'
import { createServer, STATUS_CODES, type IncomingMessage } from 'node:http'
import type { AddressInfo } from 'node:net'
import { hostname } from 'node:os'
import type { Duplex } from 'node:stream'
import type { Logger } from 'pino'
import { WebSocketServer, type WebSocket } from 'ws'
import { AmbitError } from '../errors.ts'
import { follow, type FollowEnd } from '../evidence/follow.ts'
import { readOrCreatePrivate } from '../evidence/private-file.ts'
import type { EvidenceStore } from '../evidence/store.ts'
import { feedEvent } from './feed-event.ts'
import { FEED_PATH, feedRequest, type FeedRequest } from './feed-request.ts'

export type FeedOptions = {
  /** A loopback address: the feed is plain HTTP. */
  host: string
  /** 0 takes a free one. */
  port: number
  /** Holds the bearer token; made with mode 0600 if it is not there. */
  tokenFile: string
  store: EvidenceStore
  log: Logger
}

export type Feed = {
  port: number
  /** Closes every subscription with 1001 and resolves when none is left. */
  close(): Promise<void>
}

const MAX_SUBSCRIBERS = 64
/** Subscribers, and those who have not said yet that they are. */
const MAX_CONNECTIONS = 256
/** A subscriber has nothing to say. */
const MAX_INBOUND_BYTES = 1024
/** What may wait for one subscriber in memory; the rest waits in the log on disk. */
const MAX_BUFFERED_BYTES = 1024 * 1024
const HEARTBEAT_MS = 30_000

/** Close codes, beyond RFC 6455's 1000 for a sealed log and 1001 for a daemon that stops. */
export const CLOSE = { internal: 1011, policy: 1008, unsealed: 4410, gone: 4404, beyond: 4416 } as const

const ENDS: Record<FollowEnd, [code: number, reason: string]> = {
  sealed: [1000, 'the log is sealed'],
  unsealed: [CLOSE.unsealed, 'the log ends here and was never sealed'],
  gone: [CLOSE.gone, 'the cell never started'],
  beyond: [CLOSE.beyond, 'the log ends before the record that was asked for'],
}

/** Serves the evidence as it is written: each subscriber is a cursor on the logs on disk, and costs nobody else anything. */
export async function openFeed(options: FeedOptions): Promise<Feed> {
  const { store, log } = options
  if (!['127.0.0.1', '::1', 'localhost'].includes(options.host)) throw new Error(`${options.host} is not a loopback address`)
  const token = readOrCreatePrivate(options.tokenFile, 'the feed\'s token', () => `${randomBytes(32).toString('hex')}\n`).trim()
  if (token.length < 32) throw new AmbitError('FILE_UNREADABLE', { attempted: 'read the feed\'s token', why: `${options.tokenFile}: it is too short to be one`, remedy: 'take it away, and a new one is made' })

  const sockets = new WebSocketServer({ noServer: true, maxPayload: MAX_INBOUND_BYTES, perMessageDeflate: false, clientTracking: true })
  const server = createServer({ maxHeaderSize: 8192, headersTimeout: 10_000, requestTimeout: 10_000 }, (_, response) => {
    response.writeHead(426, { 'content-type': 'text/plain', connection: 'close', upgrade: 'websocket' }).end(`this is a WebSocket feed at ${FEED_PATH}\n`)
  })
  server.maxConnections = MAX_CONNECTIONS
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => socket.destroy())
    const asked = feedRequest(request, token)
    const refusal = 'status' in asked ? asked
      : asked.cell !== null && store.view(asked.cell) === null ? { status: 404 as const, reason: 'there is no evidence of such a cell' }
        : sockets.clients.size >= MAX_SUBSCRIBERS ? { status: 503 as const, reason: `${MAX_SUBSCRIBERS} subscribers are connected already` }
          : null
    if (refusal !== null) refuse(socket, refusal)
    else sockets.handleUpgrade(request, socket, head, client => serve(client, asked as FeedRequest, store, log))
  })
  const heartbeat = setInterval(() => {
    for (const client of sockets.clients) beat(client)
  }, HEARTBEAT_MS)
  heartbeat.unref()

  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => reject(new AmbitError('USAGE', {
      attempted: 'open the evidence feed', why: `${options.host}:${options.port}: ${cause.code}`, remedy: 'another daemon may run already; or take another port (`ambit daemon --feed-port N`)', cause,
    })))
    server.listen(options.port, options.host, resolve)
  })
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      clearInterval(heartbeat)
      const ended = new Promise(resolve => server.close(resolve))
      for (const client of sockets.clients) client.close(1001, 'the daemon stops')
      // Who does not answer the close is not waited for.
      const late = setTimeout(() => { for (const client of sockets.clients) client.terminate() }, 1000)
      // Who has not asked for anything yet neither.
      server.closeAllConnections()
      await ended
      clearTimeout(late)
    },
  }
}

function refuse(socket: Duplex, { status, reason }: { status: number; reason: string }): void {
  const body = `${reason}\n`
  const challenge = status === 401 ? 'WWW-Authenticate: Bearer\r\n' : ''
  socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${challenge}Content-Type: text/plain; charset=utf-8\r\nContent-Length: ${Buffer.byteLength(body)}\r\nConnection: close\r\n\r\n${body}`)
}

/** Whether a client answered, or took anything, since the last beat. */
const alive = new WeakMap<WebSocket, { answered: boolean; buffered: number }>()

function beat(client: WebSocket): void {
  const last = alive.get(client)
  // A slow client's pong waits behind what it has not read yet: that it reads at all is enough.
  if (last !== undefined && !last.answered && client.bufferedAmount >= last.buffered) {
    client.terminate()
    return
  }
  alive.set(client, { answered: false, buffered: client.bufferedAmount })
  client.ping()
}

function serve(client: WebSocket, asked: FeedRequest, store: EvidenceStore, log: Logger): void {
  const stop = new AbortController()
  client.on('error', error => log.debug({ err: error }, 'feed subscriber'))
  client.on('close', () => stop.abort())
  client.on('pong', () => { alive.set(client, { answered: true, buffered: client.bufferedAmount }) })
  client.on('message', () => client.close(CLOSE.policy, 'a subscriber has nothing to say'))
  const failed = (error: unknown): void => {
    if (stop.signal.aborted) return
    log.error({ err: error }, 'feed failed')
    client.close(CLOSE.internal, 'the log could not be read')
  }
  if (asked.cell === null) {
    everyCell(client, asked.since, store, stop.signal, failed)
    return
  }
  oneCell(client, asked.cell, asked.from, store, stop.signal).then(end => {
    if (!stop.signal.aborted) client.close(...ENDS[end])
  }, failed)
}

function everyCell(client: WebSocket, since: number | null, store: EvidenceStore, stop: AbortSignal, failed: (error: unknown) => void): void {
  const followed = new Set<string>()
  const begin = (id: string): void => {
    if (followed.has(id) || stop.aborted) return
    followed.add(id)
    oneCell(client, id, 0, store, stop).catch(failed)
  }
  // A store keeps telling of a cell after its end: only one that is written now is new.
  const unwatch = store.watch(id => { if (store.view(id)?.state === 'open') begin(id) })
  stop.addEventListener('abort', unwatch)
  for (const id of store.ids()) {
    const view = store.view(id)
    if (view !== null && (view.state === 'open' || (since !== null && view.changed >= since))) begin(id)
  }
}

async function oneCell(client: WebSocket, cell: string, from: number, store: EvidenceStore, stop: AbortSignal): Promise<FollowEnd> {
  const host = hostname()
  const lines = follow(store, cell, from, stop)
  let sent: Promise<void> | undefined
  for (;;) {
    const next = await lines.next()
    if (next.done === true) {
      // A close that waits behind data would run into ws's own time limit for it.
      await sent
      return next.value
    }
    sent = new Promise(resolve => { client.send(feedEvent(host, cell, next.value), () => resolve()) })
    if (client.bufferedAmount > MAX_BUFFERED_BYTES) await sent
  }
}
