import { canonicalName } from './policy.ts'

/** What is kept of a connection at most: a head, or a line of trailers. Node's servers take no longer head either. */
export const MAX_HEAD_BYTES = 16 * 1024

/** What the head of one request says. `host` null: it names none. */
export type RequestHead = {
  host: string | null
  /** What a proxy is asked for: absent where the request is for the server that it is sent to. */
  asks?: Asks
  /** Bytes that follow it. */
  body: number | 'chunked'
  /** It asks to leave HTTP/1; `hidden`: for a protocol that names a server where it is not to be seen. */
  upgrade: 'none' | 'open' | 'hidden'
}
export type Malformed = { why: string }
/** A server that a proxy is to reach. `tunnel`: by CONNECT, and what follows is not HTTP any more. */
export type Asks = { host: string; port: number; tunnel: boolean }

const TCHAR = '[!#$%&\'*+.^_`|~0-9A-Za-z-]'
const REQUEST_LINE = new RegExp(`^(${TCHAR}+) ([!-~\\x80-\\xff]+) HTTP/1\\.([01])$`)
/** Blanks around the value are its own: a pattern that could share them out in several ways would try all of them. */
const FIELD = new RegExp(`^(${TCHAR}+):([\\t -~\\x80-\\xff]*)$`)
const HEAD_BEGINS = new RegExp(`^${TCHAR}+(?: [!-~\\x80-\\xff]|$| $)`)
/** HTTP/2 has its own names (RFC 9113), TLS (RFC 2817) its own as well, and connect-udp and its like (RFC 9298) lead on to any. */
const HIDES_NAMES = /(?:^|[\s,])(?:h2c|http\/|tls|connect-)/i

/**
 * The request head at the start of the bytes. Null: more are needed. As strict as RFC 9112 lets senders be, and not as lenient
 * as it lets servers be: a head that two servers may read in two ways is malformed here.
 * `fresh`: where the bytes that were not looked at before begin.
 */
export function readHead(bytes: Buffer, fresh = 0): { head: RequestHead; length: number } | Malformed | null {
  if (fresh < 256 && !HEAD_BEGINS.test(bytes.toString('latin1', 0, 256).replace(/[\r\n][^]*/, '\r'))) return malformed
  const end = bytes.indexOf('\r\n\r\n', Math.max(0, fresh - 3))
  const bound = Math.min(end < 0 ? bytes.length : end + 4, MAX_HEAD_BYTES)
  for (let at = bytes.indexOf(10, fresh); at >= 0 && at < bound; at = bytes.indexOf(10, at + 1)) if (bytes[at - 1] !== 13) return malformed
  const line = bytes.indexOf(10)
  // At once: a client that speaks otherwise sends no more before it is answered.
  if (line >= fresh && line < bound && !REQUEST_LINE.test(bytes.toString('latin1', 0, line - 1))) return malformed
  if (end < 0 ? bytes.length >= MAX_HEAD_BYTES : end + 4 > MAX_HEAD_BYTES) return { why: `its HTTP head is longer than ${MAX_HEAD_BYTES} bytes` }
  if (end < 0) return null
  const head = parseHead(bytes.toString('latin1', 0, end).split('\r\n'))
  return 'why' in head ? head : { head, length: end + 4 }
}

const malformed: Malformed = { why: 'its HTTP head is malformed' }

function parseHead(lines: string[]): RequestHead | Malformed {
  const request = REQUEST_LINE.exec(lines[0]!)
  if (request === null) return malformed
  const [, method, target, minor] = request as unknown as [string, string, string, '0' | '1']
  const tunnel = /^connect$/i.test(method)
  const fields = new Map<string, string[]>()
  for (const line of lines.slice(1)) {
    const field = FIELD.exec(line)
    if (field === null) return malformed
    const name = field[1]!.toLowerCase()
    fields.set(name, [...fields.get(name) ?? [], withoutBlanks(field[2]!)])
  }
  const hosts = (fields.get('host') ?? []).map(authority)
  const asks = asked(target, tunnel)
  if (asks !== undefined) hosts.push(asks?.host ?? null)
  if (hosts.includes(null) || new Set(hosts).size > 1 || (fields.get('host')?.length ?? 0) > 1) return { why: 'its HTTP head names no host, or several' }
  const body = bodyOf(fields.get('content-length'), fields.get('transfer-encoding'), minor)
  if (typeof body === 'object') return body
  if (tunnel && (fields.has('content-length') || fields.has('transfer-encoding'))) return { why: 'where its HTTP request ends is unclear' }
  const upgrade = fields.get('upgrade')?.join(',')
  return { host: hosts[0] ?? null, ...(asks ? { asks } : {}), body, upgrade: upgrade === undefined ? 'none' : HIDES_NAMES.test(upgrade) ? 'hidden' : 'open' }
}

/** RFC 9112, 3.2: the absolute and the authority form. Null: neither, and no origin form either. */
function asked(target: string, tunnel: boolean): Asks | null | undefined {
  if (!tunnel && (target.startsWith('/') || target === '*')) return undefined
  const [, scheme, place] = (tunnel ? /^()([^/?#]+)$/ : /^(https?):\/\/([^/?#]+)(?:[/?]|$)/i).exec(target) ?? []
  const host = authority(place ?? '')
  const port = /:(\d{1,5})$/.exec(place ?? '')?.[1] ?? { '': 0, http: 80, https: 443 }[scheme?.toLowerCase() ?? '']
  return host === null || !(Number(port) >= 1 && Number(port) <= 65535) ? null : { host, port: Number(port), tunnel }
}

/** RFC 9110, 5.6.3: blanks are space and tab alone. */
function withoutBlanks(value: string): string {
  let from = 0
  let to = value.length
  const blank = (at: number): boolean => value[at] === ' ' || value[at] === '\t'
  while (from < to && blank(from)) from += 1
  while (to > from && blank(to - 1)) to -= 1
  return value.slice(from, to)
}

/** RFC 9112, 6.3, without what it only tolerates: where two servers could see two ends, there is none. */
function bodyOf(lengths: string[] | undefined, codings: string[] | undefined, minor: '0' | '1'): number | 'chunked' | Malformed {
  const unclear = { why: 'where its HTTP request ends is unclear' }
  if (lengths === undefined && codings === undefined) return 0
  if (lengths === undefined) return codings!.length === 1 && /^chunked$/i.test(codings![0]!) && minor === '1' ? 'chunked' : unclear
  return codings === undefined && lengths.length === 1 && /^\d{1,15}$/.test(lengths[0]!) ? Number(lengths[0]) : unclear
}

/** The host of `host:port`; null if it is none. */
function authority(text: string): string | null {
  const found = /^(\[[0-9a-f:.]+\]|[^:@[\]\s]+)(?::\d*)?$/i.exec(text)
  return found === null ? null : canonicalName(found[1]!)
}

/** Servers add trailers to the head's fields: none may say again what the head was read for. */
function isTrailer(line: string): boolean {
  const name = FIELD.exec(line)?.[1]
  return name !== undefined && !/^(?:host|content-length|transfer-encoding)$/i.test(name)
}

/** Why the bytes may not go on; `host`: the one that a request named instead, `port`: the one that it asked a proxy for. */
export type Objection = { why: string; host: string | null; port?: number }

export type Requests = {
  /** The bytes that may go on, of these and of those that were kept. After an objection none are taken but by `letBy`. */
  take(bytes: Buffer): { pass: Buffer; objection: Objection | null }
  /** The server's answer to a first request that asked to leave HTTP: what is kept may then be taken on. */
  answered(left: boolean): void
  /** A first request asked to leave HTTP, and what comes after it waits for `answered`. */
  waits(): boolean
  /** No more bytes come. */
  ended(): Objection | null
  /** Everything goes on from here, unread. */
  letBy(): void
}

/**
 * Follows the requests that one client sends on one connection. `admit` sees each head before a byte of it goes on, and says
 * whether the connection may leave HTTP for it. Only the first request's wish to leave waits for the answer, since only its
 * answer is found without reading bodies: bytes after another one must be HTTP still.
 */
export function readRequests(admit: (head: RequestHead) => { objection: Objection | null; leave: boolean }): Requests {
  let state: 'head' | 'body' | 'size' | 'data' | 'data end' | 'trailer' | 'wait' | 'raw' = 'head'
  let left = 0
  let kept: Buffer = Buffer.alloc(0)
  let looked = 0
  let first = true
  let leaving = false
  const next = (): void => { state = leaving ? 'wait' : 'head' }
  const plain = (why: string): Objection => ({ why, host: null })

  /** Bytes read off the start; 0: more are needed. */
  const step = (bytes: Buffer, fresh: number): number | Objection => {
    if (state === 'raw') return bytes.length
    if (state === 'wait') return 0
    if (state === 'head') {
      const read = readHead(bytes, fresh)
      if (read === null) return 0
      if ('why' in read) return plain(read.why)
      const { asks } = read.head
      if (asks?.tunnel === true) return { why: 'CONNECT asks for a tunnel, whose end is not to be seen', host: asks.host, port: asks.port }
      const { objection, leave } = admit(read.head)
      if (objection !== null) return objection
      leaving = first && leave
      first = false
      left = read.head.body === 'chunked' ? 0 : read.head.body
      if (read.head.body === 'chunked') state = 'size'
      else if (left > 0) state = 'body'
      else next()
      return read.length
    }
    if (state === 'body' || state === 'data') {
      const used = Math.min(left, bytes.length)
      left -= used
      if (left === 0 && state === 'data') state = 'data end'
      else if (left === 0) next()
      return used
    }
    const line = bytes.indexOf(10, fresh)
    const text = bytes.toString('latin1', 0, line < 0 ? Math.min(bytes.length, MAX_HEAD_BYTES) : line + 1)
    const begins = { size: /^[0-9a-f]{0,13}(?:$|\r$|\r\n$)/i, 'data end': /^\r?\n?$/, trailer: /^/ }[state]
    if (!begins.test(text) || text.length >= MAX_HEAD_BYTES) return plain('its chunked HTTP body is malformed')
    if (line < 0) return 0
    const content = text.slice(0, -2)
    if (!text.endsWith('\r\n') || (state === 'size' && content === '')) return plain('its chunked HTTP body is malformed')
    if (state === 'size') {
      left = Number.parseInt(content, 16)
      state = left > 0 ? 'data' : 'trailer'
    } else if (state === 'data end') state = 'size'
    else if (content === '') next()
    else if (!isTrailer(content)) return plain('its chunked HTTP body is malformed')
    return line + 1
  }

  return {
    take(chunk) {
      const bytes = kept.length === 0 ? chunk : Buffer.concat([kept, chunk])
      let fresh = looked
      let at = 0
      let objection: Objection | null = null
      while (at < bytes.length) {
        const used = step(bytes.subarray(at), fresh)
        fresh = 0
        if (typeof used === 'object') objection = used
        else at += used
        if (used === 0 || objection !== null) break
      }
      // Copied: a slice would hold on to all that it was read with.
      kept = Buffer.from(bytes.subarray(at))
      looked = state === 'wait' ? 0 : kept.length
      return { pass: bytes.subarray(0, at), objection }
    },
    answered(done) {
      leaving = false
      if (done) state = 'raw'
      else if (state === 'wait') state = 'head'
    },
    waits: () => state === 'wait',
    ended: () => (kept.length > 0 && state === 'head' ? plain('the connection ended inside an HTTP head') : null),
    letBy() { state = 'raw' },
  }
}
