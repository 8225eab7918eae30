import fc from 'fast-check'
import t from 'tap'
import { clientMessage, encodeDaemonMessage, type RunMessage } from '../../src/daemon/protocol.ts'
import { AmbitError } from '../../src/errors.ts'

const good = { op: 'run', contract: { text: 'kind: Cell', file: 'c.yaml' }, argv: ['true'], env: { A: '1' }, evidence: false }
const packet = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
const refused = (t: Tap, value: unknown, why: RegExp): void => {
  try {
    clientMessage(Buffer.isBuffer(value) ? value : packet(value))
    t.fail(`taken: ${String(why)}`)
  } catch (error) {
    t.ok(error instanceof AmbitError && error.code === 'USAGE')
    t.match((error as Error).message, why)
  }
}
type Tap = { fail(text: string): void; ok(value: unknown): void; match(a: unknown, b: RegExp): void }

t.test('requests are read as they were written', t => {
  t.same({ ...clientMessage(packet(good)) }, good)
  t.same(clientMessage(packet({ op: 'signal', signal: 15 })), { op: 'signal', signal: 15 })
  t.same(clientMessage(packet({ op: 'status' })), { op: 'status' })
  t.same(clientMessage(packet({ op: 'stop' })), { op: 'stop' })
  const { env } = clientMessage(Buffer.from('{"op":"run","contract":{"text":"","file":"f"},"argv":["x"],"env":{"A":"1"},"evidence":true}')) as RunMessage
  t.equal(env['constructor' as never], undefined, 'a name that every object has is no variable')
  t.equal(env['A'], '1')
  t.end()
})

t.test('what is not a request is refused with its place', t => {
  refused(t, Buffer.from([0xff]), /it is not UTF-8/)
  refused(t, Buffer.from('{'), /it is not JSON/)
  refused(t, Buffer.alloc(256 * 1024 + 1, ' '), /262144 is the most/)
  refused(t, [], /the request: /)
  refused(t, { op: 'dance' }, /op: /)
  refused(t, { ...good, more: 1 }, /the request: .*more/)
  refused(t, { ...good, argv: [] }, /argv: /)
  refused(t, { ...good, argv: [''] }, /argv: the command must not be empty/)
  refused(t, { ...good, argv: ['a\0b'] }, /argv\.0: must not hold a zero byte/)
  refused(t, { ...good, argv: Array(8193).fill('') }, /argv: /)
  refused(t, { ...good, argv: ['x'.repeat(128 * 1024 + 1)] }, /argv\.0: /)
  refused(t, { ...good, env: { 'A=B': '' } }, /env/)
  refused(t, { ...good, env: { A: 1 } }, /env\.A: /)
  refused(t, { ...good, env: Object.fromEntries(Array.from({ length: 4097 }, (_, index) => [`V${index}`, ''])) }, /4096 variables/)
  for (const signal of [0, 65, 1.5, '9']) refused(t, { op: 'signal', signal }, /signal: /)
  t.end()
})

t.test('no packet does more than be refused', t => {
  fc.assert(fc.property(fc.oneof(fc.uint8Array({ maxLength: 300 }).map(bytes => Buffer.from(bytes)), fc.jsonValue().map(packet), fc.record({ op: fc.constant('run'), argv: fc.jsonValue(), env: fc.jsonValue(), contract: fc.jsonValue() }).map(packet)), bytes => {
    try {
      return clientMessage(bytes).op !== undefined
    } catch (error) {
      return error instanceof AmbitError && error.code === 'USAGE'
    }
  }), { numRuns: 500 })
  t.end()
})

t.test('answers are fields that hold whatever text they must', t => {
  t.equal(encodeDaemonMessage({ type: 'started', cell: 'c1' }).toString(), 'type=started\0cell=c1\0')
  t.equal(encodeDaemonMessage({ type: 'ended', cell: 'c1', code: null, signal: 9, reason: 'memory', evidence: '/e', notice: null }).toString(), 'type=ended\0cell=c1\0signal=9\0reason=memory\0evidence=/e\0')
  const error = new AmbitError('CONTRACT_INVALID', { attempted: 'read it', why: 'a=b\0c\nd', remedy: 'r', where: { file: 'f', line: 1 } })
  t.equal(encodeDaemonMessage({ type: 'error', error: error.toJSON() as never, exitCode: 2 }).toString(), 'type=error\0code=CONTRACT_INVALID\0exitCode=2\0text=f:1: could not read it: a=b\ufffdc\nd\n  r\0')
  t.ok(encodeDaemonMessage({ type: 'error', error: { code: 'INTERNAL', attempted: 'x', why: 'y'.repeat(1_000_000), remedy: '' }, exitCode: 70 }).length < 20_000, 'an answer always fits a packet')
  t.end()
})
