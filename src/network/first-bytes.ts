import { Readable } from 'node:stream'
import { getExtensionData, readTlsClientHello } from 'read-tls-client-hello'
import { readHead, type Asks } from './http-requests.ts'
import { canonicalName } from './policy.ts'

/** What the first bytes of a connection say of the server that is meant. */
export type FirstBytes =
  /** `sni` null: a ClientHello without a name. `ech`: it may hide another one. */
  | { kind: 'tls'; sni: string | null; ech: boolean }
  /** `host` null: HTTP/1.0 without a Host. */
  | { kind: 'http'; host: string | null; asks?: Asks }
  /** HTTP/2 in clear: its names are packed away. */
  | { kind: 'http2' }
  | { kind: 'other' }
  /** The greeting of SOCKS, whose servers lead on to any other. */
  | { kind: 'socks' }
  /** TLS or HTTP whose name cannot be told for sure; `tls`: no HTTP by any reading. */
  | { kind: 'unclear'; why: string; tls?: true }

/** As much as is read before a connection must have said which name it means. */
export const MAX_FIRST_BYTES = 16 * 1024

/**
 * Reads the first bytes of a connection, all that came so far. Null: more are needed. `ended`: no more will come.
 * Never throws, whatever the bytes are.
 */
export async function readFirstBytes(bytes: Buffer, ended: boolean): Promise<FirstBytes | null> {
  if (bytes.length === 0) return ended ? { kind: 'other' } : null
  const greeting = socks(bytes)
  const found = looksLikeTls(bytes) ? await tls(bytes) : greeting === undefined ? plain(bytes) : greeting
  if (found?.kind === 'unclear' && looksLikeTls(bytes)) return { ...found, tls: true }
  if (found !== null) return found
  if (ended && looksLikeTls(bytes)) return { kind: 'unclear', why: 'the connection ended inside its ClientHello', tls: true }
  // Half a word may be a whole message of another protocol; half a head is one that some servers answer.
  if (ended) return looksLikeHttp(bytes.toString('latin1').split('\n', 1)[0]!) ? { kind: 'unclear', why: 'the connection ended inside an HTTP head' } : { kind: 'other' }
  return bytes.length < MAX_FIRST_BYTES ? null : { kind: 'unclear', why: `its first message is longer than ${MAX_FIRST_BYTES} bytes` }
}

/**
 * A TLS record of any type (RFC 8446, 5.1). Servers put up with alerts before a ClientHello, so a connection that starts with
 * one is TLS too, and one whose name is not to be seen.
 */
function looksLikeTls(bytes: Buffer): boolean {
  return bytes[0]! >= 0x14 && bytes[0]! <= 0x18 && (bytes.length === 1 || bytes[1] === 3)
}

/** Real clients use one record, those that cut theirs up a few; servers give up on more too. */
const MAX_RECORDS = 32

/** A ClientHello may be cut into several records: put together before it is read, or the cut would hide the name. */
async function tls(bytes: Buffer): Promise<FirstBytes | null> {
  if (bytes[0] !== 0x16) return { kind: 'unclear', why: 'TLS that does not start with a ClientHello' }
  let message = Buffer.alloc(0)
  for (let at = 0, records = 0; ; records += 1) {
    if (message.length > 0 && message[0] !== 1) return { kind: 'unclear', why: 'TLS that does not start with a ClientHello' }
    if (message.length >= 4) {
      const length = 4 + message.readUIntBE(1, 3)
      if (length > MAX_FIRST_BYTES) return { kind: 'unclear', why: `its ClientHello is longer than ${MAX_FIRST_BYTES} bytes` }
      if (message.length > length) return { kind: 'unclear', why: 'bytes follow its ClientHello in the same record' }
      if (message.length === length) return hello(message)
    }
    if (bytes.length < at + 5) return null
    if (bytes[at] !== 0x16 || bytes[at + 1] !== 3 || records === MAX_RECORDS) return { kind: 'unclear', why: 'its ClientHello is cut up beyond what servers take' }
    const end = at + 5 + bytes.readUInt16BE(at + 3)
    if (bytes.length < end) return null
    message = Buffer.concat([message, bytes.subarray(at + 5, end)])
    at = end
  }
}

async function hello(message: Buffer): Promise<FirstBytes> {
  const record = Buffer.concat([Buffer.from([0x16, 3, 1, message.length >> 8, message.length & 255]), message])
  // The library reads a live stream: one that is only paused by lack of data would wait for ever, one that ends does not.
  const source = new Readable({ read() {} })
  source.push(record)
  try {
    const parsed = await readTlsClientHello(source)
    const names = parsed.extensions.filter(one => one.id === 0)
    if (names.length > 1) return { kind: 'unclear', why: 'its ClientHello has two server names' }
    const ech = parsed.extensions.some(one => one.id === 0xfe0d)
    if (names.length === 0) return { kind: 'tls', sni: null, ech }
    const name = getExtensionData(parsed, 'sni')?.serverName
    // The library reads it as 7-bit ASCII: a byte with its high bit set would pass for another letter than the server sees.
    const genuine = name !== undefined && name !== '' && message.includes(Buffer.from(name, 'latin1'))
    return !genuine ? { kind: 'unclear', why: 'the server name of its ClientHello is malformed' } : { kind: 'tls', sni: canonicalName(name), ech }
  } catch {
    return { kind: 'unclear', why: 'its ClientHello is malformed' }
  } finally {
    source.destroy()
  }
}

/** SOCKS 4 asks for CONNECT or BIND at once, 5 (RFC 1928) offers one way to authenticate or more, each once. Null: more bytes are needed. */
function socks(bytes: Buffer): FirstBytes | null | undefined {
  if (bytes[0] !== 4 && bytes[0] !== 5) return undefined
  if (bytes.length < (bytes[0] === 4 ? 2 : 3) && bytes[1] !== 0) return null
  const greets = bytes[0] === 4 ? bytes[1] === 1 || bytes[1] === 2 : bytes[0] === 5 && bytes.length > 2 && bytes[1]! > 0 && new Set(bytes.subarray(2, 2 + bytes[1]!)).size === Math.min(bytes[1]!, bytes.length - 2)
  return greets ? { kind: 'socks' } : undefined
}

/** Preambles that a server may take off before it reads on (haproxy.org, proxy-protocol.txt): nothing after them is where it seems. */
const PROXY_V2 = Buffer.from('\r\n\r\n\0\r\nQUIT\n', 'latin1')

/** What is not TLS as it is today: HTTP by the reading of any server, however lenient, must be HTTP by the strict one. */
function plain(bytes: Buffer): FirstBytes | null {
  // RFC 5246, E.2: an SSL 2.0 hello that asks for a later version, without a name.
  if (bytes[0]! >= 0x80 && (bytes.length < 3 || bytes[2] === 1)) {
    if (bytes.length < 5) return null
    if (bytes[3] === 3 || (bytes[3] === 0 && bytes[4] === 2)) return { kind: 'unclear', why: 'its hello is of SSL 2.0, which names no server' }
  }
  if (bytes.subarray(0, PROXY_V2.length).equals(PROXY_V2.subarray(0, bytes.length))) {
    return bytes.length < PROXY_V2.length ? null : { kind: 'unclear', why: 'it starts with a PROXY preamble' }
  }
  const text = bytes.toString('latin1')
  const blanks = /^[\t-\r\x1c- \x85\xa0]*/.exec(text)![0].length
  if (blanks === text.length) return null
  if (blanks > 0) return TCHAR.test(text[blanks]!) ? { kind: 'unclear', why: 'blanks come before its first word' } : { kind: 'other' }

  const newline = text.indexOf('\n')
  const line = newline < 0 ? text : text.slice(0, newline)
  const word = WORD.exec(line)![0].length
  if (word === line.length && newline < 0) return null
  // git's own protocol (gitprotocol-pack): "git-upload-pack /path", but in no way HTTP.
  if (word === line.length || !/[\t\v\f\r ]/.test(line[word]!) || /^[0-9a-f]{4}git-/.test(line)) return { kind: 'other' }
  if (line.startsWith('PROXY ')) return { kind: 'unclear', why: 'it starts with a PROXY preamble' }
  if (looksLikeHttp(line)) {
    if (newline >= 0 && line === 'PRI * HTTP/2.0\r') return { kind: 'http2' }
    const read = newline < 0 ? null : readHead(bytes)
    return read === null ? null : 'why' in read ? { kind: 'unclear', why: read.why } : { kind: 'http', host: read.head.host, ...(read.head.asks === undefined ? {} : { asks: read.head.asks }) }
  }
  return newline < 0 && /^[\t\v\f\r -\xff]*$/.test(line) ? null : { kind: 'other' }
}

const TCHAR = /[!#$%&'*+.^_`|~0-9A-Za-z-]/
const WORD = new RegExp(`^${TCHAR.source}*`)
/**
 * A line, maybe the start of one, that some server takes for a request: HTTP/0.9 has no version, old servers put up with any,
 * and nginx heeds the host of a target without one.
 */
const HTTP_LINES = [
  /[\t\v\f\r ]HTTP\//i,
  new RegExp(`^${TCHAR.source}+[\\t\\v\\f\\r ]+(?:/|[a-z][a-z0-9+.-]*://)`, 'i'),
  /^(?:GET|HEAD|POST|PUT|DELETE|PATCH|TRACE)[\t\v\f\r ]+[^\t\v\f\r ]/,
  /^(?:OPTIONS|PRI)[\t\v\f\r ]+\*/i,
  /^CONNECT[\t\v\f\r ]+[^\t\v\f\r {]+:\d/i,
]

function looksLikeHttp(line: string): boolean {
  return HTTP_LINES.some(one => one.test(line))
}
