import { Readable } from 'node:stream'
import { getExtensionData, readTlsClientHello } from 'read-tls-client-hello'
import { canonicalName } from './policy.ts'

/** What the first bytes of a connection say of the server that is meant. */
export type FirstBytes =
  /** `sni` null: a ClientHello without a name. `ech`: it may hide another one. */
  | { kind: 'tls'; sni: string | null; ech: boolean }
  /** `host` null: HTTP/1.0 without a Host. */
  | { kind: 'http'; host: string | null }
  /** HTTP/2 in clear: its names are packed away. */
  | { kind: 'http2' }
  | { kind: 'other' }
  /** TLS or HTTP whose name cannot be told for sure. */
  | { kind: 'unclear'; why: string }

/** As much as is read before a connection must have said which name it means. */
export const MAX_FIRST_BYTES = 16 * 1024

/**
 * Reads the first bytes of a connection, all that came so far. Null: more are needed. `ended`: no more will come.
 * Never throws, whatever the bytes are.
 */
export async function readFirstBytes(bytes: Buffer, ended: boolean): Promise<FirstBytes | null> {
  if (bytes.length === 0) return ended ? { kind: 'other' } : null
  const found = looksLikeTls(bytes) ? await tls(bytes) : http(bytes)
  if (found !== null) return found
  // No server answers half a head, and half a word may be a whole message of another protocol.
  if (ended) return looksLikeTls(bytes) ? { kind: 'unclear', why: 'the connection ended inside its ClientHello' } : { kind: 'other' }
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

/** No server knows a method as long as this. */
const MAX_METHOD = 64
const METHOD = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/

/** HTTP/1 (RFC 9112): every name in the head must be the same one, the target's too, or a server might heed the other. */
function http(bytes: Buffer): FirstBytes | null {
  let start = 0
  while (bytes[start] === 13 || bytes[start] === 10) start += 1
  if (start === bytes.length) return null
  const text = bytes.toString('latin1', start)
  const newline = text.indexOf('\n')
  const line = (newline < 0 ? text : text.slice(0, newline)).replace(/\r$/, '')
  const method = /^[^ \t\v\f\r]*/.exec(line)![0]
  if (method.length > MAX_METHOD || !METHOD.test(method) || /[^\s\x20-\xff]/.test(line)) return { kind: 'other' }
  if (newline < 0) return null
  if (line === 'PRI * HTTP/2.0') return { kind: 'http2' }
  const target = /^\S+\s+(\S+)\s+HTTP\/\S*\s*$/i.exec(line)?.[1]
  if (target === undefined) return { kind: 'other' }
  const end = /\n\r?\n/.exec(text)
  if (end === null) return null
  const head = text.slice(newline + 1, end.index + 1)
  // What is folded, oddly spaced or cut by a bare CR is read one way here and maybe another way by the server.
  if (/^[ \t]/m.test(head) || /^host[^:\n]*[\s\0]:/im.test(head) || /\0|\r(?!\n)/.test(head)) return { kind: 'unclear', why: 'its HTTP head is malformed' }
  const names = new Set([...head.matchAll(/^host:(.*)$/gim)].map(field => authority(field[1]!.trim())))
  if (/^connect$/i.test(method)) names.add(authority(target))
  else if (/^[a-z][a-z0-9+.-]*:\/\//i.test(target)) names.add(authority(target.replace(/^[^:]*:\/\//, '').replace(/[/?#].*$/, '')))
  if (names.size > 1 || names.has(null)) return { kind: 'unclear', why: 'its HTTP head names no host, or several' }
  return { kind: 'http', host: [...names][0] ?? null }
}

/** The host of `host:port`; null if it is none. */
function authority(text: string): string | null {
  const found = /^(\[[0-9a-f:.]+\]|[^:@[\]\s]+)(?::\d*)?$/i.exec(text)
  return found === null ? null : canonicalName(found[1]!)
}
