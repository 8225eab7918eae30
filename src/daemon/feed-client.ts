import { setTimeout as sleep } from 'node:timers/promises'
import { WebSocket } from 'ws'
import { AmbitError, type ErrorCode } from '../errors.ts'
import { digest } from '../evidence/chain.ts'
import type { EvidenceRecord } from '../evidence/records.ts'
import { CLOSE } from './feed.ts'
import { readFeedEvent } from './feed-event.ts'

export type SubscribeOptions = {
  /** ws://HOST:PORT/v1/feed */
  url: string
  token: string
  cell: string
  /** The first record wanted. */
  from: number
  /** Attempts in a row that bring nothing before it is given up. Default: 6, within about 6 s. */
  retries?: number
}

/** What may wait for a reader that is slow; then the socket is not read, and the server's cursor waits. */
const MAX_WAITING = 256
const MAX_MESSAGE_BYTES = 8 * 1024 * 1024
const FIRST_DELAY_MS = 100
const MAX_DELAY_MS = 3000

/**
 * A cell's evidence, record by record, until its log is sealed. A connection that breaks is made again at the cursor, so nothing is missed and
 * nothing comes twice; each record must follow the one before. Throws DAEMON_UNREACHABLE after too many attempts, FORBIDDEN for a wrong
 * token, EVIDENCE_UNREADABLE if there is no such log or it was never sealed, EVIDENCE_INVALID for records that are not a chain.
 */
export async function* subscribe(options: SubscribeOptions): AsyncGenerator<EvidenceRecord, void> {
  const retries = options.retries ?? 6
  let next = options.from
  let head: string | null = null
  for (let failures = 0; ;) {
    const connection = connect(options, next)
    let end: End
    try {
      for (;;) {
        const message = await connection.next()
        if (typeof message !== 'string') {
          end = message
          break
        }
        const { cell, record, line } = accept(options, message)
        if (cell !== options.cell || record.seq !== next) throw broken(options, `record ${next} of cell ${options.cell} was due, and ${record.seq} of ${cell} came`)
        if (head !== null && record.prev !== head) throw broken(options, `record ${next} does not follow the one before it`)
        head = digest(line)
        next++
        failures = 0
        yield record
      }
    } finally {
      connection.close()
    }
    if (end.kind === 'sealed') return
    if (end.kind === 'refused') throw end.error
    if (++failures > retries) {
      throw new AmbitError('DAEMON_UNREACHABLE', { attempted: `follow cell ${options.cell}`, why: `${options.url}: ${end.why}, ${failures} times in a row`, remedy: 'check that the daemon runs and that this is its feed; the same command goes on with --from' })
    }
    await sleep(Math.min(FIRST_DELAY_MS * 2 ** (failures - 1), MAX_DELAY_MS))
  }
}

type End = { kind: 'sealed' } | { kind: 'refused'; error: AmbitError } | { kind: 'broken'; why: string }

function accept(options: SubscribeOptions, message: string): ReturnType<typeof readFeedEvent> {
  try {
    return readFeedEvent(message)
  } catch (cause) {
    throw broken(options, `the feed sent what is not an event of ambit's: ${(cause as Error).message}`, cause)
  }
}

function broken(options: SubscribeOptions, why: string, cause?: unknown): AmbitError {
  return new AmbitError('EVIDENCE_INVALID', { attempted: `follow cell ${options.cell}`, why, remedy: 'check that the URL is that of the daemon\'s feed, and that both are of the same version', cause })
}

/** One connection as a queue of messages with an end. */
function connect(options: SubscribeOptions, from: number): { next(): Promise<string | End>; close(): void } {
  const url = new URL(options.url)
  url.searchParams.set('cell', options.cell)
  url.searchParams.set('from', String(from))
  const socket = new WebSocket(url, { headers: { authorization: `Bearer ${options.token}` }, maxPayload: MAX_MESSAGE_BYTES, perMessageDeflate: false, handshakeTimeout: 10_000 })
  const waiting: string[] = []
  let end: End | null = null
  let wake: (() => void) | null = null
  const finish = (how: End): void => {
    end ??= how
    wake?.()
  }
  socket.on('message', (data, binary) => {
    waiting.push(binary ? '' : String(data))
    if (waiting.length >= MAX_WAITING) socket.pause()
    wake?.()
  })
  socket.on('unexpected-response', (request, response) => {
    let reason = ''
    response.on('data', (chunk: Buffer) => { reason = (reason + chunk.toString()).slice(0, 500) })
    response.on('close', () => {
      request.destroy()
      finish(refusal(options, response.statusCode ?? 0, reason.trim()))
    })
  })
  socket.on('error', error => finish({ kind: 'broken', why: (error as NodeJS.ErrnoException).code ?? error.message }))
  socket.on('close', (code, reason) => {
    const said = reason.toString()
    if (code === 1000) finish({ kind: 'sealed' })
    else if (code === CLOSE.unsealed || code === CLOSE.gone || code === CLOSE.beyond) finish({ kind: 'refused', error: failure(options, 'EVIDENCE_UNREADABLE', said, 'what came until here is all that there is; nothing vouches for it') })
    else finish({ kind: 'broken', why: said === '' ? `the connection ended (${code})` : said })
  })
  return {
    async next() {
      while (waiting.length === 0 && end === null) {
        await new Promise<void>(resolve => { wake = resolve })
        wake = null
      }
      const message = waiting.shift()
      if (message === undefined) return end!
      if (socket.isPaused && waiting.length < MAX_WAITING / 2) socket.resume()
      return message
    },
    close() {
      socket.terminate()
    },
  }
}

function refusal(options: SubscribeOptions, status: number, reason: string): End {
  if (status === 401 || status === 403) return { kind: 'refused', error: failure(options, 'FORBIDDEN', reason, 'the token is in the daemon\'s state directory: DIR/feed-token') }
  if (status === 400 || status === 404) return { kind: 'refused', error: failure(options, 'EVIDENCE_UNREADABLE', reason, '`ambit run --json` tells the cell\'s id') }
  return { kind: 'broken', why: `the server answered ${status}${reason === '' ? '' : `: ${reason}`}` }
}

function failure(options: SubscribeOptions, code: ErrorCode, why: string, remedy: string): AmbitError {
  return new AmbitError(code, { attempted: `follow cell ${options.cell}`, why: why === '' ? 'the feed refused it' : why, remedy })
}
