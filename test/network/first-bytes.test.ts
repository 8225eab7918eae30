import fc from 'fast-check'
import { Duplex } from 'node:stream'
import { connect } from 'node:tls'
import t from 'tap'
import { MAX_FIRST_BYTES, readFirstBytes, type FirstBytes } from '../../src/network/first-bytes.ts'

/** The ClientHello that Node's OpenSSL really sends, as one record. */
function helloFor(servername: string | undefined, options: object = {}): Promise<Buffer> {
  return new Promise(resolve => {
    const wire = new Duplex({ read() {}, write(chunk: Buffer) { resolve(chunk) } })
    connect({ socket: wire, ...(servername === undefined ? {} : { servername }), ...options }).on('error', () => {})
  })
}

/** The same message in records of `size` bytes. */
function cut(record: Buffer, size: number): Buffer {
  const message = record.subarray(5)
  const parts: Buffer[] = []
  for (let at = 0; at < message.length; at += size) {
    const part = message.subarray(at, at + size)
    parts.push(Buffer.from([0x16, 3, 1, part.length >> 8, part.length & 255]), part)
  }
  return Buffer.concat(parts)
}

/** With one more extension, lengths mended. */
function extended(record: Buffer, id: number, data: Buffer): Buffer {
  const hello = record.subarray(5)
  let at = 38
  at += 1 + hello[at]!
  at += 2 + hello.readUInt16BE(at)
  at += 1 + hello[at]!
  const head = Buffer.alloc(4)
  head.writeUInt16BE(id, 0)
  head.writeUInt16BE(data.length, 2)
  const out = Buffer.concat([Buffer.from([0x16, 3, 1, 0, 0]), hello, head, data])
  const grown = head.length + data.length
  out.writeUInt16BE(hello.length + grown, 3)
  out.writeUIntBE(hello.length - 4 + grown, 6, 3)
  out.writeUInt16BE(hello.readUInt16BE(at) + grown, 5 + at)
  return out
}

/** Fed as a socket would, in chunks; the answer must be the same however they fall. */
async function fed(bytes: Buffer, size = bytes.length): Promise<FirstBytes> {
  for (let end = size; end < bytes.length + size; end += size) {
    const found = await readFirstBytes(bytes.subarray(0, end), false)
    if (found !== null) return found
  }
  return (await readFirstBytes(bytes, true))!
}
const text = (head: string): Buffer => Buffer.from(head, 'latin1')

t.test('the name of a real ClientHello is read, whole, in drops and cut into records', async t => {
  const hello = await helloFor('API.Example.com')
  const named = { kind: 'tls', sni: 'api.example.com', ech: false }
  t.strictSame(await fed(hello), named)
  t.strictSame(await fed(hello, 7), named)
  for (const size of [1 + Math.floor(hello.length / 30), 50, 100]) t.strictSame(await fed(cut(hello, size), 11), named, `records of ${size} bytes`)
  t.strictSame(await fed(Buffer.concat([hello, text('early data')])), named)
  t.strictSame(await fed(await helloFor('old.example.com', { maxVersion: 'TLSv1.2' })), { kind: 'tls', sni: 'old.example.com', ech: false })
  t.strictSame(await fed(await helloFor(undefined)), { kind: 'tls', sni: null, ech: false })
  t.equal(await readFirstBytes(hello.subarray(0, 100), false), null, 'half of it is not enough')
})

t.test('TLS that hides its name, or could, is never taken for something else', async t => {
  const hello = await helloFor('api.example.com')
  t.strictSame(await fed(extended(hello, 0xfe0d, Buffer.alloc(40))), { kind: 'tls', sni: 'api.example.com', ech: true })
  const second = text('evil.example')
  const name = Buffer.concat([Buffer.from([0, second.length + 3, 0, 0, second.length]), second])
  t.match(await fed(extended(hello, 0, name)), { kind: 'unclear', why: /two server names/ })
  t.match(await fed(Buffer.concat([Buffer.from([0x15, 3, 1, 0, 2, 1, 0]), hello])), { kind: 'unclear' }, 'a warning alert first')
  t.match(await fed(Buffer.concat([Buffer.from([0x14, 3, 3, 0, 1, 1]), hello])), { kind: 'unclear' }, 'a change of cipher first')
  t.match(await fed(cut(hello, 2)), { kind: 'unclear' }, 'more records than servers take')
  t.match(await fed(Buffer.from([0x16, 3, 1, 0, 4, 2, 0, 0, 0])), { kind: 'unclear' }, 'a handshake message, but no ClientHello')
  const huge = Buffer.alloc(MAX_FIRST_BYTES + 100, 0x41)
  Buffer.from([0x16, 3, 1, 0x40, 0, 1, 0, 0x7f, 0xff]).copy(huge)
  t.match(await fed(huge), { kind: 'unclear' })
  t.match(await fed(hello.subarray(0, 60)), { kind: 'unclear', why: /ended inside/ })
})

t.test('HTTP names its host once, or is unclear', async t => {
  t.strictSame(await fed(text('GET / HTTP/1.1\r\nHost: A.Example:8080\r\n\r\n'), 3), { kind: 'http', host: 'a.example' })
  t.strictSame(await fed(text('POST /x HTTP/1.1\r\nAccept: */*\r\nhost:a.example.\r\nContent-Length: 6\r\n\r\na\n\nb\n\n')), { kind: 'http', host: 'a.example' })
  t.strictSame(await fed(text('GET http://a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n')), { kind: 'http', host: 'a.example', asks: { host: 'a.example', port: 80, tunnel: false } })
  t.strictSame(await fed(text('GET https://[::1]:8443?x HTTP/1.1\r\nHost: [::1]:8443\r\n\r\n')), { kind: 'http', host: '[::1]', asks: { host: '[::1]', port: 8443, tunnel: false } })
  t.strictSame(await fed(text('CONNECT A.example:22 HTTP/1.1\r\nHost: a.example:22\r\n\r\n'), 5), { kind: 'http', host: 'a.example', asks: { host: 'a.example', port: 22, tunnel: true } })
  for (const greeting of [[5, 1, 0], [5, 2, 0, 2], [5, 1, 2], [4, 1, 0, 80, 93, 184, 216, 34, 0]]) t.strictSame(await fed(Buffer.from(greeting), 1), { kind: 'socks' }, greeting.join())
  t.strictSame(await fed(text('GET / HTTP/1.0\r\n\r\n')), { kind: 'http', host: null })
  t.strictSame(await fed(text('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')), { kind: 'http2' })
  t.strictSame(await fed(text('GET / HTTP/1.1\r\nHost: [2606:4700::1]:80\r\n\r\n')), { kind: 'http', host: '[2606:4700::1]' })
  t.strictSame(await fed(text(`${'A'.repeat(80)} / HTTP/1.1\r\nHost: evil.example\r\n\r\n`), 3), { kind: 'http', host: 'evil.example' }, 'by any method')
  for (const [what, head] of Object.entries({
    'two hosts': 'GET / HTTP/1.1\r\nHost: a.example\r\nHost: evil.example\r\n\r\n',
    'a target of another host': 'GET http://evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a relayed CONNECT': 'CONNECT evil.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a CONNECT to no port': 'CONNECT a.example HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a CONNECT to a port that is none': 'CONNECT a.example:65536 HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a CONNECT with a path': 'CONNECT a.example:443/x HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a CONNECT with a body': 'CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc',
    'a CONNECT without a version': 'CONNECT evil.example:443\r\n\r\n',
    'an empty line first': '\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'lines that end with LF only': 'GET / HTTP/1.1\nHost: a.example\n\n',
    'a space first': ' GET / HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a tab first': '\tGET / HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a no-break space first': '\xa0GET / HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'two spaces': 'GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a NUL in the request line': 'GET / HTTP/1.1\0\r\nHost: evil.example\r\n\r\n',
    'a version that is none': 'GET / FOO\r\nHost: evil.example\r\n\r\n',
    'HTTP/0.9': 'GET http://evil.example/\r\n',
    'HTTP/0.9 without a slash': 'GET x\r\n',
    'half a head, and the end': 'GET http://evil.example/',
    'the same host twice': 'GET / HTTP/1.1\r\nHost: a.example\r\nHost: a.example\r\n\r\n',
    'two ends': 'POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n',
    'PROXY, version 1': 'PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\nGET / HTTP/1.1\r\nHost: evil.example\r\n\r\n',
    'PROXY, version 2': '\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n',
    'a hello of SSL 2.0': '\x80\x2e\x01\x03\x01\0\x15\0\0\0\x10',
    'its first version': '\x80\x2e\x01\0\x02\0\x15\0\0\0\x10',
    'a folded field': 'GET / HTTP/1.1\r\nHost: a.example\r\n evil.example\r\n\r\n',
    'a space before the colon': 'GET / HTTP/1.1\r\nHost : evil.example\r\nHost: a.example\r\n\r\n',
    'a bare CR': 'GET / HTTP/1.1\r\nX: y\rHost: evil.example\r\nHost: a.example\r\n\r\n',
    'tabs in the request line': 'GET\thttp://evil.example/\tHTTP/1.1\r\nHost: a.example\r\n\r\n',
    'a user before the host': 'GET / HTTP/1.1\r\nHost: a.example@evil.example\r\n\r\n',
    'a head without end': `GET / HTTP/1.1\r\nHost: a.example\r\nX: ${'x'.repeat(MAX_FIRST_BYTES)}`,
  })) for (const size of [1, 2, 7, head.length]) t.match(await fed(text(head), size), { kind: 'unclear' }, `${what}, ${size} at a time`)
})

t.test('other protocols are let be after their first bytes', async t => {
  for (const [what, bytes] of Object.entries({
    ssh: text('SSH-2.0-OpenSSH_9.2\r\n'), smtp: text('EHLO client\r\n'), redis: text('*1\r\n$4\r\nPING\r\n'), git: text('0032git-upload-pack /p.git\0host=a\0'),
    postgres: Buffer.from([0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f]), mongo: Buffer.from([0x3f, 0, 0, 0]), 'mongo with a length that is a blank': Buffer.from([0x20, 1, 0, 0]),
    'mysql, 128 bytes': Buffer.from([0x80, 0, 0, 1]), imap: text('a1 LOGIN me secret\r\n'), nats: text('CONNECT {"verbose":false}\r\n'), stomp: text('CONNECT\nhost:a\n'), memcached: text('get key\r\n'), ftp: text('USER me\r\n'), rsync: text('@RSYNCD: 31.0\n'),
    svn: text('( 2 ( edit'), irc: text('NICK me\r\n'), inline: text('PING\r\n'), gopher: text('/x\r\n'), amqp: text('AMQP\0\0\x09\x01'), 'DCE/RPC': Buffer.from([5, 0, 0x0b, 3, 16, 0, 0, 0]), 'no method twice': Buffer.from([5, 2, 0, 0]),
  })) t.strictSame(await readFirstBytes(bytes, false), { kind: 'other' }, what)
  t.equal(await readFirstBytes(text('GE'), false), null, 'what may become HTTP waits')
  t.strictSame(await readFirstBytes(text('GE'), true), { kind: 'other' }, 'what ended before it became HTTP is none')
  t.strictSame(await readFirstBytes(Buffer.alloc(0), true), { kind: 'other' })
})

t.test('no bytes throw, none wait beyond the bound, and a damaged ClientHello never shows a name it does not hold', async () => {
  const hello = await helloFor('api.example.com')
  await fc.assert(fc.asyncProperty(fc.uint8Array({ maxLength: 400 }), fc.constantFrom(text(''), Buffer.from([0x16, 3, 1]), text('GET / HTTP/1.1\r\n')), async (bytes, start) => {
    return await readFirstBytes(Buffer.concat([start, bytes]), true) !== null
  }), { numRuns: 500 })
  await fc.assert(fc.asyncProperty(fc.nat(hello.length - 1), fc.nat(255), async (at, value) => {
    const damaged = Buffer.from(hello)
    damaged[at] = value
    const found = (await readFirstBytes(damaged, true))!
    return found.kind !== 'tls' || found.sni === null || damaged.toString('latin1').toLowerCase().includes(found.sni)
  }), { numRuns: 500 })
  await fc.assert(fc.asyncProperty(fc.uint8Array({ minLength: MAX_FIRST_BYTES, maxLength: MAX_FIRST_BYTES + 10 }), async bytes => await readFirstBytes(Buffer.from(bytes), false) !== null), { numRuns: 20 })
})
