import fc from 'fast-check'
import t from 'tap'
import { ApiReader } from '../../src/evidence/api.ts'
import type { RawTls } from '../../src/evidence/decode.ts'
import { evidenceBody, type EvidenceBody } from '../../src/evidence/records.ts'
import { parseAuthority, parseRequest, parseResponse, PATH_MAX, safePath } from '../../src/evidence/http.ts'

const CAPTURE = 1024
const process = { pid: 7, start: '1000', comm: 'curl' }

/** As the probes tell it: no more than the first 1024 bytes. */
function event(direction: 'write' | 'read', text: string | Buffer, over: Partial<RawTls> = {}): RawTls {
  const bytes = typeof text === 'string' ? Buffer.from(text, 'latin1') : text
  return { process, session: '55d0', direction, flavour: 'openssl', length: bytes.length, data: bytes.subarray(0, CAPTURE), ...over }
}
const write = (text: string | Buffer, over?: Partial<RawTls>): RawTls => event('write', text, over)
const read = (text: string | Buffer, over?: Partial<RawTls>): RawTls => event('read', text, over)
/** A write that the probes only count. */
const counted = (length: number): RawTls => write('', { length })
const freed: RawTls = write('', { length: 0 })

function run(events: RawTls[], hosts = ['api.github.com']): string[] {
  const reader = new ApiReader(hosts)
  return [...events.flatMap(each => reader.read(each)), ...reader.end()].map(show)
}
function show(body: EvidenceBody): string {
  evidenceBody.parse(body)
  if (body.type === 'api.request') return `${body.connection} ${body.method} ${body.host}${body.path}`
  if (body.type === 'api.response') return `${body.connection} ${body.status}`
  if (body.type === 'api.unreadable') return `${body.connection} unreadable: ${body.reason}`
  throw new Error(body.type)
}
const get = (path: string, host = 'api.github.com', more = ''): string => `GET ${path} HTTP/1.1\r\nHost: ${host}\r\n${more}\r\n`
const ok = (body = ''): string => `HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`

t.test('acts and what they become', async t => {
  const table: [string, RawTls[], string[]][] = [
    ['a request and its response', [write(get('/user')), read(ok('{}'))], ['7/55d0#1 GET api.github.com/user', '7/55d0#1 200']],
    ['another host vanishes, with its response', [write(get('/x', 'example.org')), read(ok())], []],
    ['two requests on one connection', [write(get('/a')), read(ok('1')), write('POST /b HTTP/1.1\r\nhost: API.github.com\r\n\r\n'), read('HTTP/1.1 403 Forbidden\r\n\r\n')],
      ['7/55d0#1 GET api.github.com/a', '7/55d0#1 200', '7/55d0#1 POST api.github.com/b', '7/55d0#1 403']],
    ['a body by itself, its text looking like a request', [write('POST /b HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 61\r\n\r\n'), write(get('/not/a/request').slice(0, 61)), read(ok())],
      ['7/55d0#1 POST api.github.com/b', '7/55d0#1 200']],
    ['a body that is only counted, then a request', [write('PUT /b HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 5000\r\n\r\n'), counted(4000), counted(1000), read(ok()), write(get('/c'))],
      ['7/55d0#1 PUT api.github.com/b', '7/55d0#1 200', '7/55d0#1 GET api.github.com/c']],
    ['head and body in one write, larger than what is captured', [write(`PUT /b HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 5000\r\n\r\n${'x'.repeat(5000)}`), read(ok()), write(get('/c'))],
      ['7/55d0#1 PUT api.github.com/b', '7/55d0#1 200', '7/55d0#1 GET api.github.com/c']],
    ['a chunked body, then a request', [write('POST /git HTTP/1.1\r\nHost: api.github.com\r\nTransfer-Encoding: chunked\r\n\r\n'), counted(300), counted(5), read(ok()), write(get('/c'))],
      ['7/55d0#1 POST api.github.com/git', '7/55d0#1 200', '7/55d0#1 GET api.github.com/c']],
    ['an answer before the body was sent', [write('PUT /b HTTP/1.1\r\nHost: api.github.com\r\nExpect: 100-continue\r\nContent-Length: 5000\r\n\r\n'), read('HTTP/1.1 401 No\r\n\r\n'), write(get('/c'))],
      ['7/55d0#1 PUT api.github.com/b', '7/55d0#1 401', '7/55d0#1 GET api.github.com/c']],
    ['interim answers are none', [write(get('/a')), read('HTTP/1.1 100 Continue\r\n\r\n'), read('HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n')], ['7/55d0#1 GET api.github.com/a', '7/55d0#1 204']],
    ['a head in pieces', [write('GE'), write('T /a HTTP/1.1\r\nHo'), write('st: api.github.com\r\n'), write('\r\n'), read('HT'), read('TP/1.1 2'), read('00 OK\r\n\r\n')], ['7/55d0#1 GET api.github.com/a', '7/55d0#1 200']],
    ['pipelined in one write', [write(get('/a') + get('/x', 'example.org') + get('/b')), read(ok('1') + ok('22') + ok())],
      ['7/55d0#1 GET api.github.com/a', '7/55d0#1 GET api.github.com/b', '7/55d0#1 200', '7/55d0#1 200']],
    ['pipelined responses that cannot be told apart', [write(get('/a') + get('/b')), read('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 500 No\r\n\r\n')],
      ['7/55d0#1 GET api.github.com/a', '7/55d0#1 GET api.github.com/b', '7/55d0#1 200', '7/55d0#1 unreadable: responses to pipelined requests cannot be told apart']],
    ['a request behind what is captured', [write(`PUT /b HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 2000\r\n\r\n${'x'.repeat(2000)}${get('/hidden')}`), read(ok()), write(get('/c'))],
      ['7/55d0#1 PUT api.github.com/b', '7/55d0#1 unreadable: a request may begin behind the captured start of a write', '7/55d0#1 200', '7/55d0#1 GET api.github.com/c']],
    ['a response to a request that nobody saw', [write('POST /b HTTP/1.1\r\nHost: api.github.com\r\nTransfer-Encoding: chunked\r\n\r\n'), counted(900), read(ok()), read(ok())],
      ['7/55d0#1 POST api.github.com/b', '7/55d0#1 200', '7/55d0#1 unreadable: a response to no request that was seen']],
    ['a chunked body and no response', [write('POST /b HTTP/1.1\r\nHost: api.github.com\r\nTransfer-Encoding: chunked\r\n\r\n'), counted(900)],
      ['7/55d0#1 POST api.github.com/b', '7/55d0#1 unreadable: a body whose end cannot be told, and no response to it']],
    ['a server that gives up on an idle connection', [write(get('/a')), read(ok()), read('HTTP/1.1 408 Request Timeout\r\n\r\n')], ['7/55d0#1 GET api.github.com/a', '7/55d0#1 200']],
    ['HTTP/2', [write('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12'), counted(40)], ['7/55d0#1 unreadable: HTTP/2, whose compressed heads are not decoded']],
    ['something else, once', [write('\x16\x03\x01 hello'), write('more'), counted(3)], ['7/55d0#1 unreadable: not HTTP']],
    ['a server in the cell', [write(ok('hello')), read(get('/x'))], []],
    ['a head longer than what is captured, with its Host', [write(get('/a', 'api.github.com', `Cookie: ${'c'.repeat(2000)}\r\n`)), read(ok()), write(get('/b'))],
      ['7/55d0#1 GET api.github.com/a', '7/55d0#1 200', '7/55d0#1 GET api.github.com/b']],
    ['a head longer than what is captured, without', [write(`GET /a HTTP/1.1\r\nCookie: ${'c'.repeat(2000)}\r\nHost: api.github.com\r\n\r\n`), read(ok())],
      ['7/55d0#1 unreadable: a request head longer than what is captured, without a Host in its start']],
    ['a request line longer than what is captured', [write(get(`/${'a'.repeat(2000)}`))], ['7/55d0#1 unreadable: a request line longer than what is captured']],
    ['no Host', [write('GET /a HTTP/1.0\r\n\r\n')], ['7/55d0#1 unreadable: a request without a Host']],
    ['no Host, after a request elsewhere', [write(get('/x', 'example.org')), read(ok()), write('GET /a HTTP/1.0\r\n\r\n')], ['7/55d0#1 unreadable: a request without a Host']],
    ['two Hosts', [write('GET /a HTTP/1.1\r\nHost: example.org\r\nHost: api.github.com\r\n\r\n')], ['7/55d0#1 unreadable: several Host headers']],
    ['absolute form outranks Host', [write('GET https://u:p@API.github.com:443/a?b=1 HTTP/1.1\r\nHost: example.org\r\n\r\n')], ['7/55d0#1 GET api.github.com:443/a?b=1']],
    ['a tunnel to the API inside TLS', [write('CONNECT api.github.com:443 HTTP/1.1\r\nHost: api.github.com:443\r\n\r\n'), read(ok()), write('\x16\x03')], ['7/55d0#1 unreadable: a tunnel inside a TLS connection']],
    ['a tunnel elsewhere', [write('CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n'), read(ok()), write('\x16\x03')], []],
    ['a web socket', [write(get('/a')), read('HTTP/1.1 101 Switching Protocols\r\n\r\n'), write('\x81\x02hi'), read(ok())], ['7/55d0#1 GET api.github.com/a', '7/55d0#1 101', '7/55d0#1 unreadable: it switched to another protocol']],
    ['a first write that was lost', [counted(300), read(ok()), write(get('/b'))], ['7/55d0#1 unreadable: its beginning was not captured', '7/55d0#1 unreadable: a response to no request that was seen', '7/55d0#1 GET api.github.com/b']],
    ['an address that is used again', [write(get('/a')), read(ok()), freed, write(get('/b')), read(ok())], ['7/55d0#1 GET api.github.com/a', '7/55d0#1 200', '7/55d0#2 GET api.github.com/b', '7/55d0#2 200']],
    ['a body cut short by the end is not the next connection\'s', [write('PUT /b HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: 5000\r\n\r\n'), freed, write(get('/c'))], ['7/55d0#1 PUT api.github.com/b', '7/55d0#2 GET api.github.com/c']],
    ['the end within a head', [write('GET /a HTTP/1.1\r\nHost: api.gi'), freed], ['7/55d0#1 unreadable: it ended in the middle of a request head']],
    ['the cell\'s end within a head', [write('GET /a HTT')], ['7/55d0#1 unreadable: it ended in the middle of a request head']],
    ['the same address in two processes', [write(get('/a')), write(get('/b'), { process: { ...process, start: '2000' } }), read(ok()), read('HTTP/1.1 404 No\r\n\r\n', { process: { ...process, start: '2000' } })],
      ['7/55d0#1 GET api.github.com/a', '7/55d0#2 GET api.github.com/b', '7/55d0#1 200', '7/55d0#2 404']],
    ['a read on a connection that wrote nothing', [read(ok())], []],
  ]
  for (const [name, events, expected] of table) t.strictSame(run(events), expected, name)
})

t.test('which hosts are the API', async t => {
  const seen = (declared: string, host: string): boolean => run([write(get('/', host))], [declared]).length === 1
  t.ok(seen('api.github.com', 'api.github.com:443'))
  t.ok(seen('api.github.com', 'API.GitHub.com.'))
  t.ok(seen('api.github.com:443', 'api.github.com'))
  t.ok(seen('localhost', 'localhost:8443'), 'without a port: any')
  t.ok(seen('[::1]:8443', '[::1]:8443'))
  t.notOk(seen('localhost:8443', 'localhost:8444'))
  t.notOk(seen('localhost:8443', 'localhost'))
  t.notOk(seen('api.github.com', 'api.github.com.evil.org'))
  t.notOk(seen('api.github.com', 'xapi.github.com'))
  t.throws(() => new ApiReader(['https://api.github.com']), RangeError)
  t.throws(() => new ApiReader(['']), RangeError)
  t.equal(parseAuthority('host:99999'), null)
})

t.test('a path holds no secret and nothing that cannot be shown', async t => {
  t.equal(safePath('/a?access_token=abc&b=1;X-Amz-Signature=q&acc%65ss_Token=z&token'), '/a?access_token=REDACTED&b=1;X-Amz-Signature=REDACTED&acc%65ss_Token=REDACTED&token')
  t.equal(safePath('/x/ghp_0123456789abcdefghijklmnop/y?q=eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.abc'), '/x/REDACTED/y?q=REDACTED')
  t.equal(safePath('/a\x1b[31m\x00\xff'), '/a%1B[31m%00%FF')
  t.equal(safePath('/' + 'a'.repeat(5000)).length, PATH_MAX)
  t.strictSame(run([write(get('/repos/o/r?client_secret=hunter2'))]), ['7/55d0#1 GET api.github.com/repos/o/r?client_secret=REDACTED'])
})

t.test('any bytes: nothing is thrown, what comes out is bounded, printable and valid', async () => {
  const fragment = fc.oneof(
    fc.uint8Array({ maxLength: 64 }).map(bytes => Buffer.from(bytes)),
    fc.constantFrom('GET ', 'POST /', ' HTTP/1.1\r\n', 'Host: api.github.com\r\n', 'Host:', '\r\n', '\r\n\r\n', 'Content-Length: 5\r\n', 'Content-Length: -1\r\n', 'Transfer-Encoding: chunked\r\n', 'PRI * HTTP/2.0', 'HTTP/1.1 200', 'HTTP/1.1 1', get('/x'), ok('abc'), 'CONNECT api.github.com:1 ').map(text => Buffer.from(text)),
  )
  const any = fc.record({
    direction: fc.constantFrom('write', 'read' as const), data: fc.array(fragment, { maxLength: 8 }).map(list => Buffer.concat(list).subarray(0, CAPTURE)),
    more: fc.oneof(fc.constant(0), fc.nat(5000)), session: fc.constantFrom('a', 'b'), flavour: fc.constantFrom('openssl', 'gnutls' as const),
  })
  fc.assert(fc.property(fc.array(any, { maxLength: 30 }), events => {
    const reader = new ApiReader(['api.github.com'])
    for (const { more, ...rest } of events) {
      const out = reader.read({ process, ...rest, length: rest.data.length + more })
      if (out.length > 3 + rest.data.length / 12) return false
      for (const body of out) {
        evidenceBody.parse(body)
        const text = JSON.stringify(body)
        if (text.length > PATH_MAX + 700 || /[^\x20-\x7e]/.test(text)) return false
      }
    }
    return reader.end().length <= 4
  }), { numRuns: 1000 })
  fc.assert(fc.property(fc.uint8Array({ maxLength: 1024 }), fc.boolean(), (bytes, cut) => {
    parseRequest(Buffer.from(bytes), cut)
    parseResponse(Buffer.from(bytes))
  }))
})

/** A conversation and, byte for byte, what was really asked and answered. */
const exchange = fc.record({
  method: fc.constantFrom('GET', 'POST', 'PATCH', 'DELETE'), path: fc.constantFrom('/user', '/repos/o/r', '/a?b=c'), host: fc.constantFrom('api.github.com', 'example.org'),
  body: fc.oneof(fc.constant(''), fc.constant(get('/forged')), fc.constant(`x\r\n\r\n${get('/forged')}`), fc.string({ maxLength: 300 }), fc.constant('y'.repeat(900))), status: fc.constantFrom(200, 404, 403),
})
const cuts = fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 12 })

function pieces(text: string, sizes: readonly number[]): Buffer[] {
  const bytes = Buffer.from(text, 'latin1')
  const out: Buffer[] = []
  for (let at = 0, i = 0; at < bytes.length; i++) {
    const size = sizes[i % sizes.length]!
    out.push(bytes.subarray(at, at + size))
    at += size
  }
  return out
}

t.test('however writes and reads are split, the requests are the same', async () => {
  fc.assert(fc.property(fc.array(exchange, { minLength: 1, maxLength: 6 }), cuts, cuts, (exchanges, writeSizes, readSizes) => {
    const reader = new ApiReader(['api.github.com'])
    const out: string[] = []
    const expected: string[] = []
    for (const { method, path, host, body, status } of exchanges) {
      const request = `${method} ${path} HTTP/1.1\r\nHost: ${host}\r\nContent-Length: ${Buffer.byteLength(body, 'latin1')}\r\n\r\n${body}`
      for (const piece of pieces(request, writeSizes)) out.push(...reader.read(write(piece)).map(show))
      for (const piece of pieces(`HTTP/1.1 ${status} X\r\nContent-Length: 3\r\n\r\nabc`, readSizes)) out.push(...reader.read(read(piece)).map(show))
      if (host === 'api.github.com') expected.push(`7/55d0#1 ${method} ${host}${path}`, `7/55d0#1 ${status}`)
    }
    out.push(...reader.end().map(show))
    return JSON.stringify(out) === JSON.stringify(expected)
  }), { numRuns: 500 })
})

t.test('however a pipelined stream is split, no request is invented and none is lost unsaid', async t => {
  let lost = 0
  fc.assert(fc.property(fc.array(exchange, { minLength: 1, maxLength: 6 }), fc.array(fc.integer({ min: 1, max: 3000 }), { minLength: 1, maxLength: 12 }), (exchanges, sizes) => {
    const stream = exchanges.map(({ method, path, body }) => `${method} ${path} HTTP/1.1\r\nHost: api.github.com\r\nContent-Length: ${Buffer.byteLength(body, 'latin1')}\r\n\r\n${body}`).join('')
    const reader = new ApiReader(['api.github.com'])
    const out = [...pieces(stream, sizes).flatMap(piece => reader.read(write(piece))), ...reader.end()].map(show)
    const asked = out.filter(line => !line.includes('unreadable'))
    const expected = exchanges.map(({ method, path }) => `7/55d0#1 ${method} api.github.com${path}`)
    if (asked.length < expected.length) lost++
    return JSON.stringify(expected.slice(0, asked.length)) === JSON.stringify(asked) && (asked.length === expected.length || out.length > asked.length)
  }), { numRuns: 500 })
  t.ok(lost > 0, 'some were cut off')
})

t.test('no number of connections makes it forget unsaid or grow', async t => {
  const reader = new ApiReader(['api.github.com'])
  let told = 0
  for (let i = 0; i < 10_000; i++) told += reader.read(write('GET /a HTTP/1.1\r\n', { session: i.toString(16) })).length
  t.equal(told, 10_000 - 4096, 'each that is forgotten in the middle of a head is told')
  t.equal(reader.end().length, 4096)
  t.equal(reader.end().length, 0)
})
