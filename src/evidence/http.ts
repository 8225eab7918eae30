/**
 * HTTP/1 heads (RFC 9112) as a process in a cell wrote them: every byte may be hostile. Parsing is strict where
 * two readers could differ, because a head that the server reads otherwise is a call that nobody recorded.
 * All functions are linear in their input.
 */

export type RequestHead = {
  kind: 'request'
  method: string
  /** Printable ASCII, without what looks like a secret; at most `PATH_MAX` characters. */
  path: string
  /** Lower case, with the port if one was given; null: none was found in what is there of the head. */
  host: string | null
  /** Bytes of the body; null: it cannot be known from the head alone (chunked, contradictory, or the head is cut). */
  bodyLength: number | null
  /** Bytes of the head with its empty line; null: the head goes on behind what was captured. */
  end: number | null
}
export type Head =
  | RequestHead
  /** So far this could be the start of a head. */
  | { kind: 'unfinished' }
  | { kind: 'http2' }
  /** The start of a response: the process is a server. */
  | { kind: 'response' }
  | { kind: 'other'; reason: string }

export const PATH_MAX = 2048
const METHOD_MAX = 32
const HOST_MAX = 262
const PREFACE = Buffer.from('PRI * HTTP/2.0\r\n')
/** What cannot stand in a request target: controls and the space; bytes above 0x7f are sent by some and taken by many. */
const NO_TARGET = /[^\x21-\x7e\x80-\xff]/
const LF = 10
const CR = 13

/**
 * Reads a request head from the start of `bytes`. `cut`: more bytes belong to it, which nobody has; what is there
 * is then read as far as it goes.
 */
export function parseRequest(bytes: Buffer, cut: boolean): Head {
  if (startsLike(bytes, PREFACE)) return bytes.length >= PREFACE.length ? { kind: 'http2' } : { kind: 'unfinished' }
  if (bytes.subarray(0, 5).equals(Buffer.from('HTTP/'))) return { kind: 'response' }

  // A server ignores an empty line before the request line (RFC 9112 2.2).
  let at = 0
  while (bytes[at] === CR || bytes[at] === LF) at++
  const lineEnd = bytes.indexOf(LF, at)
  if (lineEnd < 0) {
    if (!couldBeRequestLine(bytes.subarray(at))) return { kind: 'other', reason: 'not HTTP' }
    return cut ? { kind: 'other', reason: 'a request line longer than what is captured' } : { kind: 'unfinished' }
  }
  const line = parseRequestLine(text(bytes, at, lineEnd))
  if (line === null) return { kind: 'other', reason: 'not HTTP' }

  const hosts = new Set<string>()
  const lengths = new Set<string>()
  let transferEncoding = false
  let end: number | null = null
  at = lineEnd + 1
  for (;;) {
    const next = bytes.indexOf(LF, at)
    if (next < 0) break
    const header = text(bytes, at, next)
    at = next + 1
    if (header === '') {
      end = at
      break
    }
    const colon = header.indexOf(':')
    const name = header.slice(0, colon).toLowerCase()
    if (colon < 1 || !isToken(name)) return { kind: 'other', reason: 'a malformed header line' }
    const value = header.slice(colon + 1).trim()
    if (name === 'host') hosts.add(value.toLowerCase())
    if (name === 'content-length') lengths.add(value)
    if (name === 'transfer-encoding') transferEncoding = true
  }
  if (end === null && !cut) return { kind: 'unfinished' }
  if (hosts.size > 1) return { kind: 'other', reason: 'several Host headers' }

  const target = splitTarget(line.method, line.target)
  const named = target.authority ?? [...hosts][0] ?? null
  const host = named === null ? null : parseAuthority(named)
  if (named !== null && host === null) return { kind: 'other', reason: 'a malformed host' }
  const [length = '0', ...more] = lengths
  const known = end !== null && !transferEncoding && more.length === 0 && /^\d{1,15}$/.test(length)
  return { kind: 'request', method: line.method, path: safePath(target.path), host: host === null ? null : authority(host), bodyLength: known ? Number(length) : null, end }
}

export type StatusLine = {
  status: number
  /** Bytes of the head with its empty line; null: it goes on behind what was captured. */
  end: number | null
  /** From Content-Length alone; null: told otherwise, or by the end of the connection. */
  bodyLength: number | null
}

const STATUS_LINE = 'HTTP/1.x ddd'

/** Reads a response head from the start of `bytes`; 'unfinished': so far this could be one; null: it is none. */
export function parseResponse(bytes: Buffer): StatusLine | 'unfinished' | null {
  const start = bytes.toString('latin1', 0, STATUS_LINE.length)
  const fits = [...start].every((character, at) => {
    const expected = STATUS_LINE[at]
    return expected === 'd' ? /\d/.test(character) : expected === 'x' ? /[01]/.test(character) : character === expected
  })
  if (!fits) return null
  if (start.length < STATUS_LINE.length) return 'unfinished'
  const status = Number(start.slice(9))
  const empty = bytes.indexOf('\r\n\r\n')
  if (empty < 0) return { status, end: null, bodyLength: null }
  const headers = bytes.toString('latin1', 0, empty).toLowerCase().split('\r\n').slice(1)
  const lengths = headers.filter(header => header.startsWith('content-length:')).map(header => header.slice(15).trim())
  const known = lengths.length === 1 && /^\d{1,15}$/.test(lengths[0]!) && !headers.some(header => header.startsWith('transfer-encoding:'))
  return { status, end: empty + 4, bodyLength: known ? Number(lengths[0]) : null }
}

export type Authority = { name: string; port: number | null }

/** A host name, IPv4 or bracketed IPv6 address with an optional port, in lower case; a last dot is the same name. Null if it is none of them. */
export function parseAuthority(input: string): Authority | null {
  if (input.length === 0 || input.length > HOST_MAX) return null
  const match = /^(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]+)(?::(\d{1,5}))?$/.exec(input.toLowerCase())
  if (match === null) return null
  const name = match[1]!.endsWith('.') ? match[1]!.slice(0, -1) : match[1]!
  const port = match[2] === undefined ? null : Number(match[2])
  if (name === '' || (port !== null && port > 65535)) return null
  return { name, port }
}

/** Names of query parameters whose values are credentials, in lower case; also anything that ends like one. */
const SECRET_NAMES = new Set(['code', 'key', 'sig', 'auth', 'authorization', 'jwt', 'assertion', 'client_assertion', 'samlresponse', 'pwd', 'passwd', 'passphrase', 'awsaccesskeyid', 'sas'])
const SECRET_ENDINGS = ['token', 'secret', 'password', 'signature', 'credential', 'credentials', 'apikey', 'api_key', 'api-key', 'accesskey', 'access_key', 'private_key', 'session']
/** Tokens that give themselves away by their form, wherever they stand. */
const SECRET_FORMS = /(?:gh[a-z]_|github_pat_|glpat-|xox[a-z]-|npm_|eyJ)[\w.-]{16,}/g

/** A request target that can be stored and shown: printable ASCII, secrets replaced, bounded. */
export function safePath(target: string): string {
  const question = target.indexOf('?')
  const path = question < 0 ? target : target.slice(0, question)
  const query = question < 0 ? '' : '?' + target.slice(question + 1).split(/([&;])/).map(redactParameter).join('')
  const printable = (path + query).replace(SECRET_FORMS, 'REDACTED').replace(/[^\x21-\x7e]/g, character => [...Buffer.from(character, 'latin1')].map(byte => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join(''))
  return printable.length <= PATH_MAX ? printable : `${printable.slice(0, PATH_MAX - 3)}...`
}

function redactParameter(parameter: string): string {
  const equals = parameter.indexOf('=')
  if (equals < 0) return parameter
  const name = percentDecoded(parameter.slice(0, equals)).toLowerCase()
  return SECRET_NAMES.has(name) || SECRET_ENDINGS.some(ending => name.endsWith(ending)) ? `${parameter.slice(0, equals)}=REDACTED` : parameter
}

function percentDecoded(input: string): string {
  return input.replace(/%([0-9a-fA-F]{2})/g, (_, hex: string) => String.fromCharCode(parseInt(hex, 16)))
}

function parseRequestLine(line: string): { method: string; target: string } | null {
  const [method, target, version, ...more] = line.split(' ')
  if (more.length > 0 || !isToken(method!) || method!.length > METHOD_MAX) return null
  if (target === undefined || target === '' || NO_TARGET.test(target)) return null
  return version === 'HTTP/1.1' || version === 'HTTP/1.0' ? { method: method!, target } : null
}

/** Absolute form names the host itself and outranks the Host header (RFC 9112 3.2.2); CONNECT has nothing but the host. */
function splitTarget(method: string, target: string): { authority: string | null; path: string } {
  if (method === 'CONNECT') return { authority: target, path: target }
  const scheme = /^https?:\/\//i.exec(target)
  if (scheme === null) return { authority: null, path: target }
  const rest = target.slice(scheme[0].length)
  const slash = rest.search(/[/?]/)
  const before = slash < 0 ? rest : rest.slice(0, slash)
  const path = slash < 0 ? '/' : rest.slice(slash)
  return { authority: before.slice(before.lastIndexOf('@') + 1), path: path.startsWith('/') ? path : `/${path}` }
}

function authority(host: Authority): string {
  return host.port === null ? host.name : `${host.name}:${host.port}`
}

function couldBeRequestLine(bytes: Buffer): boolean {
  const [method = '', target] = bytes.toString('latin1').split(' ', 2)
  return method === '' ? bytes.length === 0 : method.length <= METHOD_MAX && isToken(method) && (target === undefined || !NO_TARGET.test(target.replace(/\r$/, '')))
}

/** RFC 9110 5.6.2. */
function isToken(input: string): boolean {
  return /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/.test(input)
}

function startsLike(bytes: Buffer, whole: Buffer): boolean {
  const size = Math.min(bytes.length, whole.length)
  return size >= 4 && bytes.subarray(0, size).equals(whole.subarray(0, size))
}

/** One line without its end: LF alone ends a line as well (RFC 9112 2.2). */
function text(bytes: Buffer, from: number, to: number): string {
  return bytes.toString('latin1', from, bytes[to - 1] === CR && to > from ? to - 1 : to)
}
