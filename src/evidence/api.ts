import type { RawTls } from './decode.ts'
import { parseAuthority, parseRequest, parseResponse, type Authority, type RequestHead } from './http.ts'
import type { EvidenceBody, ProcessRef } from './records.ts'

type Connection = {
  name: string
  process: ProcessRef
  library: string
  /** What the next written byte is: the start or middle of a head, of a body, or of something that is not HTTP/1. */
  at: 'head' | 'body' | 'opaque'
  /** Of a head that has not ended. */
  head: Buffer
  /** Bytes of the body that are still to come; null: nobody knows. */
  left: number | null
  /** Something was written where nobody knows whether the body goes on. */
  skipped: boolean
  /** Requests without a final response, in order. */
  pending: { api: boolean }[]
  /** Start of a status line that came in pieces. */
  status: Buffer
  /** Responses can no longer be given to requests. */
  unmatched: boolean
  /** Whether the last request was for a declared API; null: there was none. */
  api: boolean | null
}

/** Beyond these, what goes on is told as unreadable: a job decides how much there is to remember. */
const CONNECTIONS_MAX = 4096
/** Bytes of one head that are kept while it comes in pieces. */
const HEAD_MAX = 4096
const PENDING_MAX = 64

/**
 * Calls to declared APIs, from the plain text of one cell's TLS connections. Requests to other hosts vanish. What
 * could have been a call to a declared API and cannot be read becomes `api.unreadable`, once for each place.
 *
 * A connection is `PID/SESSION#N`: N counts connections of this cell, so that an address that was freed and used again is
 * another one. What is returned for one event is bounded by its length.
 */
export class ApiReader {
  readonly #apis: readonly Authority[]
  readonly #connections = new Map<string, Connection>()
  #count = 0

  /** Hosts as `name` (any port) or `name:port`; of an IPv6 address with brackets. Throws a RangeError on anything else. */
  constructor(apiHosts: readonly string[]) {
    this.#apis = apiHosts.map(host => {
      const parsed = parseAuthority(host)
      if (parsed === null) throw new RangeError(`not a host name with an optional port: ${JSON.stringify(host)}`)
      return parsed
    })
  }

  read(event: RawTls): EvidenceBody[] {
    const out: EvidenceBody[] = []
    const key = `${event.process.pid}/${event.process.start}/${event.flavour}/${event.session}`
    const known = this.#connections.get(key)
    if (event.length === 0) {
      if (known !== undefined) this.#finish(known, out)
      this.#connections.delete(key)
    } else if (event.direction === 'read') {
      if (known !== undefined) this.#responses(known, event, out)
    } else {
      const connection = known ?? this.#open(event, out)
      // The map keeps the order of use, so that the one that is forgotten has been silent for longest.
      this.#connections.delete(key)
      this.#connections.set(key, connection)
      this.#written(connection, event, out)
    }
    return out
  }

  /** At the cell's end: what was still in the middle of a head. */
  end(): EvidenceBody[] {
    const out: EvidenceBody[] = []
    for (const connection of this.#connections.values()) this.#finish(connection, out)
    this.#connections.clear()
    return out
  }

  #open(event: RawTls, out: EvidenceBody[]): Connection {
    if (this.#connections.size >= CONNECTIONS_MAX) {
      const [oldest, forgotten] = this.#connections.entries().next().value!
      this.#finish(forgotten, out)
      this.#connections.delete(oldest)
    }
    return {
      name: `${event.process.pid}/${event.session}#${++this.#count}`, process: event.process, library: event.flavour,
      at: 'head', head: Buffer.alloc(0), left: 0, skipped: false, pending: [], status: Buffer.alloc(0), unmatched: false, api: null,
    }
  }

  #finish(connection: Connection, out: EvidenceBody[]): void {
    if (connection.at === 'head' && connection.head.length > 0) this.#unreadable(connection, 'it ended in the middle of a request head', out)
    // One answer would have shown that there was one request.
    if (connection.at === 'body' && connection.skipped && connection.pending.length > 0) this.#unreadable(connection, 'a body whose end cannot be told, and no response to it', out)
  }

  #written(connection: Connection, event: RawTls, out: EvidenceBody[]): void {
    if (connection.at === 'opaque') return
    let bytes = event.data
    const beyond = event.length - bytes.length
    // After the answer a body of unknown or wrong length is over as soon as a whole request line says so.
    if (connection.at === 'body' && this.#answered(connection) && bytes.includes('\n') && parseRequest(bytes, true).kind === 'request') {
      connection.at = 'head'
      connection.head = Buffer.alloc(0)
    }
    if (connection.at === 'body' && connection.left === null) connection.skipped = true
    while (bytes.length > 0 || (beyond > 0 && connection.at === 'head')) {
      if (connection.at === 'body') {
        if (connection.left === null) return
        const taken = Math.min(connection.left, bytes.length)
        connection.left -= taken
        bytes = bytes.subarray(taken)
        if (connection.left > 0) break
        connection.at = 'head'
        continue
      }
      const rest = this.#headPart(connection, bytes, beyond > 0, out)
      if (rest === null) return
      bytes = rest
    }
    if (beyond > 0 && connection.at === 'body' && connection.left !== null) {
      if (beyond <= connection.left) connection.left -= beyond
      else this.#lose(connection, 'a request may begin behind the captured start of a write', out)
      if (connection.left === 0) connection.at = 'head'
    }
  }

  /** Takes bytes where a head is due. Returns what is left for the body, null if nothing of this write can be read further. */
  #headPart(connection: Connection, bytes: Buffer, cut: boolean, out: EvidenceBody[]): Buffer | null {
    const before = connection.head.length
    if (before === 0 && bytes.length === 0) return this.#lose(connection, connection.api === null ? 'its beginning was not captured' : 'a write where a request was due was not captured', out)
    const whole = before === 0 ? bytes : Buffer.concat([connection.head, bytes])
    const head = parseRequest(whole, cut)
    connection.head = Buffer.alloc(0)
    switch (head.kind) {
      case 'unfinished':
        if (cut || whole.length > HEAD_MAX) return this.#lose(connection, 'a request head longer than what is captured', out)
        connection.head = Buffer.from(whole)
        return Buffer.alloc(0)
      case 'http2':
        return this.#close(connection, 'HTTP/2, whose compressed heads are not decoded', out)
      case 'response':
        connection.at = 'opaque'
        return null
      case 'other':
        return this.#close(connection, head.reason, out)
      case 'request':
        this.#request(connection, head, out)
        return head.end === null || connection.at === 'opaque' ? null : whole.subarray(head.end)
    }
  }

  #request(connection: Connection, head: RequestHead, out: EvidenceBody[]): void {
    connection.left = head.bodyLength
    connection.skipped = head.end === null
    connection.at = connection.left === 0 ? 'head' : 'body'
    connection.api = head.host === null ? null : this.#isApi(head.host)
    if (head.host === null) this.#unreadable(connection, head.end === null ? 'a request head longer than what is captured, without a Host in its start' : 'a request without a Host', out)
    if (head.method === 'CONNECT') {
      connection.at = 'opaque'
      if (connection.api === true) this.#unreadable(connection, 'a tunnel inside a TLS connection', out)
      return
    }
    if (connection.api === true) {
      const { name, process, library } = connection
      out.push({ type: 'api.request', process, library, connection: name, method: head.method, path: head.path, host: head.host! })
    }
    if (connection.unmatched) return
    connection.pending.push({ api: connection.api === true })
    if (connection.pending.length > PENDING_MAX) this.#unmatch(connection, `more than ${PENDING_MAX} requests without a response`, out)
  }

  #responses(connection: Connection, event: RawTls, out: EvidenceBody[]): void {
    if (connection.at === 'opaque' || connection.unmatched || event.data.length === 0) return
    let bytes = connection.status.length === 0 ? event.data : Buffer.concat([connection.status, event.data])
    const missing = event.length - event.data.length
    connection.status = Buffer.alloc(0)
    while (bytes.length > 0) {
      const response = parseResponse(bytes)
      if (response === null) return
      if (response === 'unfinished') {
        if (missing === 0 && connection.pending.length > 0) connection.status = Buffer.from(bytes)
        return
      }
      const interim = response.status < 200 && response.status !== 101
      if (interim) {
        if (response.end === null) return
        bytes = bytes.subarray(response.end)
        continue
      }
      const request = connection.pending.shift()
      if (request === undefined) {
        // A server may say 408 to a connection that idles (RFC 9110 15.5.9).
        if (response.status !== 408) this.#unmatch(connection, 'a response to no request that was seen', out)
        return
      }
      const { name, process, library } = connection
      if (request.api) out.push({ type: 'api.response', process, library, connection: name, status: response.status })
      if (response.status === 101) {
        if (request.api) this.#close(connection, 'it switched to another protocol', out)
        connection.at = 'opaque'
        return
      }
      if (connection.pending.length === 0) return
      // Pipelined: the next response is found only if this one ends within what is there, or exactly with the read.
      const end = response.end === null || response.bodyLength === null ? null : response.end + response.bodyLength
      if (end === null || (end > bytes.length && end !== bytes.length + missing)) {
        this.#unmatch(connection, 'responses to pipelined requests cannot be told apart', out)
        return
      }
      bytes = bytes.subarray(end)
    }
  }

  #answered(connection: Connection): boolean {
    return connection.unmatched || connection.pending.length === 0
  }

  #unmatch(connection: Connection, reason: string, out: EvidenceBody[]): void {
    const elsewhere = connection.api === false && !connection.pending.some(request => request.api)
    connection.unmatched = true
    connection.pending = []
    if (!elsewhere) this.#tell(connection, reason, out)
  }

  /** Something went by unread; the next request may be seen again once this one was answered. */
  #lose(connection: Connection, reason: string, out: EvidenceBody[]): null {
    connection.at = 'body'
    connection.left = null
    this.#unreadable(connection, reason, out)
    return null
  }

  /** Nothing on this connection will be read any more. */
  #close(connection: Connection, reason: string, out: EvidenceBody[]): null {
    connection.at = 'opaque'
    connection.pending = []
    this.#unreadable(connection, reason, out)
    return null
  }

  /** Told unless the connection is known to lead elsewhere. */
  #unreadable(connection: Connection, reason: string, out: EvidenceBody[]): void {
    if (connection.api !== false) this.#tell(connection, reason, out)
  }

  #tell(connection: Connection, reason: string, out: EvidenceBody[]): void {
    const { name, process, library } = connection
    out.push({ type: 'api.unreadable', process, library, connection: name, reason })
  }

  #isApi(host: string): boolean {
    const { name, port } = parseAuthority(host)!
    return this.#apis.some(api => api.name === name && (api.port === null || api.port === (port ?? 443)))
  }
}
