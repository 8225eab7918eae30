import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { decode, DecodeError, FIXED, FLAG, KIND, LAYOUT, type RawEvent } from '../../src/evidence/decode.ts'

const objects = join(import.meta.dirname, '../../build/Release/bpf')

type BtfType = { id: number; kind: string; name: string; size?: number; members?: { name: string; bits_offset: number }[]; values?: { name: string; val: number }[] }
function typesOf(object: string): BtfType[] {
  return (JSON.parse(execFileSync('bpftool', ['-j', 'btf', 'dump', 'file', join(objects, object), 'format', 'raw'], { encoding: 'utf8', maxBuffer: 64 << 20 })) as { types: BtfType[] }).types
}

t.test('offsets and sizes are those of the built objects', async t => {
  const where = { ambit_header: 'syscalls', ambit_refused: 'syscalls', ambit_exec: 'process', ambit_fork: 'process', ambit_exit: 'process', ambit_file: 'files', ambit_connect: 'network', ambit_tls: 'tls' } as const
  const cache = new Map<string, BtfType[]>()
  for (const [struct, object] of Object.entries(where) as [keyof typeof LAYOUT, string][]) {
    if (!cache.has(object)) cache.set(object, typesOf(`${object}.bpf.o`))
    const type = cache.get(object)!.find(type => type.kind === 'STRUCT' && type.name === struct)
    if (type === undefined) { t.fail(`${object}.bpf.o knows no ${struct}`); continue }
    t.same(Object.fromEntries(type.members!.map(member => [member.name, member.bits_offset / 8])), LAYOUT[struct], struct)
    // A struct with room for data of a fixed size is as long as that.
    if (struct !== 'ambit_tls') t.equal(type.size, FIXED[struct], `size of ${struct}`)
  }
})

const HEADER = { cell: 77n, time: 5_000_000_000n, start: 4_000_000_000n, pid: 42, tid: 43, ppid: 41, comm: 'make' }
function record(kind: number, flags: number, fixed: number, fill: (record: Buffer) => void, data: Buffer = Buffer.alloc(0)): Buffer {
  const bytes = Buffer.alloc(Math.ceil((fixed + data.length) / 8) * 8)
  const L = LAYOUT.ambit_header
  bytes.writeUInt32LE(bytes.length, L.size)
  bytes.writeUInt16LE(kind, L.kind)
  bytes.writeUInt16LE(flags, L.flags)
  bytes.writeBigUInt64LE(HEADER.cell, L.cell)
  bytes.writeBigUInt64LE(HEADER.time, L.time)
  bytes.writeBigUInt64LE(HEADER.start, L.start)
  bytes.writeUInt32LE(HEADER.pid, L.pid)
  bytes.writeUInt32LE(HEADER.tid, L.tid)
  bytes.writeUInt32LE(HEADER.ppid, L.ppid)
  bytes.write(HEADER.comm, L.comm)
  fill(bytes)
  data.copy(bytes, fixed)
  return bytes
}
const common = { cell: 77n, time: 5_000_000_000n, tid: 43, ppid: 41, setup: false, process: { pid: 42, start: '4000000000', comm: 'make' } }

function exec(path: string, script: string, base: string, argv: string, flags = 0): Buffer {
  return record(KIND.exec, flags, FIXED.ambit_exec, bytes => {
    const L = LAYOUT.ambit_exec
    bytes.writeBigUInt64LE(9_007_199_254_740_993n, L.ino)
    bytes.writeUInt32LE(254 << 20 | 3, L.dev)
    bytes.writeUInt16LE(path.length, L.path_length)
    bytes.writeUInt16LE(script.length, L.script_length)
    bytes.writeUInt16LE(base.length, L.base_length)
    bytes.writeUInt16LE(argv.length, L.argv_length)
  }, Buffer.from(path + script + base + argv))
}
function file(kind: number, path: Buffer | string, base: string, options: { ino?: bigint; access?: number; source?: number; error?: number; flags?: number; created?: number } = {}): Buffer {
  const name = Buffer.from(path as string)
  return record(kind, options.flags ?? 0, FIXED.ambit_file, bytes => {
    const L = LAYOUT.ambit_file
    bytes.writeBigUInt64LE(options.ino ?? 0n, L.ino)
    bytes.writeInt32LE(options.error ?? 0, L.error)
    bytes.writeUInt8(options.access ?? 1, L.access)
    bytes.writeUInt8(options.source ?? 1, L.source)
    bytes.writeUInt8(options.created ?? 0, L.created)
    bytes.writeUInt16LE(name.length, L.path_length)
    bytes.writeUInt16LE(base.length, L.base_length)
  }, Buffer.concat([name, Buffer.from(base)]))
}
const connect = (address: number[], port: number, family: number, protocol: number): Buffer => record(KIND.connect, 0, FIXED.ambit_connect, bytes => {
  Buffer.from(address).copy(bytes, LAYOUT.ambit_connect.address)
  bytes.writeUInt16LE(port, LAYOUT.ambit_connect.port)
  bytes.writeUInt8(family, LAYOUT.ambit_connect.family)
  bytes.writeUInt8(protocol, LAYOUT.ambit_connect.protocol)
})
const exit = (status: number): Buffer => record(KIND.exit, 0, FIXED.ambit_exit, bytes => bytes.writeUInt32LE(status, LAYOUT.ambit_exit.status))
const tls = (data: Buffer, captured = data.length): Buffer => record(KIND.tls, 0, FIXED.ambit_tls, bytes => {
  const L = LAYOUT.ambit_tls
  bytes.writeBigUInt64LE(0xffff888012345678n, L.session)
  bytes.writeBigUInt64LE(5000n, L.length)
  bytes.writeUInt32LE(captured, L.captured)
  bytes.writeUInt8(1, L.direction)
  bytes.writeUInt8(2, L.flavour)
}, data)
const one = (batch: Buffer): RawEvent => [...decode(batch)][0]!

t.test('each kind of event is read with all its fields', async t => {
  t.same(one(exec('/usr/bin/dash', 'build.sh', '/workspace', 'sh\0build.sh\0\0', 128)), {
    ...common, kind: 'exec', path: '/usr/bin/dash', script: '/workspace/build.sh', argv: ['sh', 'build.sh', ''], argvTruncated: true,
    dev: '254:3', ino: '9007199254740993', unlinked: false,
  })
  t.match(one(exec('/usr/bin/true', '', '', 'true\0')), { script: null, argv: ['true'], argvTruncated: false })
  t.match(one(exec('/a', '', '', 'cut off here')), { argv: ['cut off here'] })
  t.same(one(file(KIND.file, '/etc/passwd', '', { ino: 7n, access: 3, created: 1 })), { ...common, kind: 'file', path: '/etc/passwd', access: 'readwrite', created: true, dev: '0:0', ino: '7', source: 'descriptor' })
  t.same(one(file(KIND.fileFailed, '../x', '/a/b', { access: 2, error: 13, source: 2 })), { ...common, kind: 'file.failed', path: '/a/x', access: 'write', errno: 13 })
  t.same(one(file(KIND.execFailed, '/no', '', { error: 2, flags: 64 })), { ...common, setup: true, kind: 'exec.failed', path: '/no', errno: 2, byLsm: false })
  t.match(one(file(KIND.execFailed, '/no', '', { error: 13, flags: 512 })), { byLsm: true })
  t.match(one(file(KIND.file, '/a', '', { access: 1, ino: 1n, source: 4 })), { source: 'lsm' })
  t.same(one(record(KIND.fork, 0, FIXED.ambit_fork, bytes => { bytes.writeUInt32LE(50, LAYOUT.ambit_fork.child); bytes.writeBigUInt64LE(6n, LAYOUT.ambit_fork.child_start) })), { ...common, kind: 'fork', child: 50, childStart: 6n })
  t.same(one(exit(7 << 8)), { ...common, kind: 'exit', code: 7, signal: null, oom: false })
  t.same(one(exit(9)), { ...common, kind: 'exit', code: null, signal: 9, oom: false })
  t.match(one(record(KIND.exit, FLAG.oom, FIXED.ambit_exit, bytes => bytes.writeUInt32LE(9, LAYOUT.ambit_exit.status))), { signal: 9, oom: true })
  t.same(one(record(KIND.forkFailed, 0, FIXED.ambit_refused, bytes => bytes.writeInt32LE(11, LAYOUT.ambit_refused.error))), { ...common, kind: 'fork.failed', errno: 11 })
  t.match(one(exit(11 | 0x80)), { code: null, signal: 11 }, 'with a core dumped')
  t.same(one(connect([192, 0, 2, 1], 443, 4, 1)), { ...common, kind: 'connect', address: '192.0.2.1', port: 443, protocol: 'tcp' })
  t.match(one(connect([0x20, 1, 0xd, 0xb8, ...Array(11).fill(0), 1], 53, 6, 2)), { address: '2001:db8::1', protocol: 'udp' })
  t.match(one(connect([...Array(10).fill(0), 255, 255, 192, 0, 2, 1], 80, 6, 0)), { address: '192.0.2.1', protocol: 'other' })
  t.match(one(connect(Array(16).fill(0), 80, 6, 1)), { address: '::' })
  t.match(one(connect([0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 4], 80, 6, 1)), { address: '1:0:2::3:4' })
  t.same(one(record(KIND.syscallRefused, 0, FIXED.ambit_refused, bytes => { bytes.writeUInt32LE(1, LAYOUT.ambit_refused.arch); bytes.writeUInt32LE(310, LAYOUT.ambit_refused.nr); bytes.writeInt32LE(1, LAYOUT.ambit_refused.error) })), { ...common, kind: 'syscall.refused', arch: 1, nr: 310, errno: 1 })
  t.same(one(tls(Buffer.from('GET / HTTP/1.1\r\n'))), { ...common, kind: 'tls', session: 'ffff888012345678', direction: 'write', flavour: 'gnutls', length: 5000, data: Buffer.from('GET / HTTP/1.1\r\n') })
})

t.test('a path that could not be followed never looks like one that could', async t => {
  const path = (batch: Buffer): string => (one(batch) as { path: string }).path
  t.equal(path(file(KIND.file, '/memfd:x', '', { ino: 1n, flags: 1 })), '(unreachable)/memfd:x')
  t.equal(path(file(KIND.file, '/deep', '', { ino: 1n, flags: 2 })), '(truncated)/deep')
  t.equal(path(file(KIND.fileFailed, 'x', '/tail', { flags: 8 })), '(truncated)/tail/x')
  t.equal(path(file(KIND.fileFailed, 'x', '/out', { flags: 4 })), '(unreachable)/out/x')
  t.equal(path(file(KIND.fileFailed, 'x', '', { flags: 16 })), '(unknown)/x')
  t.equal(path(file(KIND.fileFailed, '', '', { flags: 32 })), '(unreadable)')
  t.equal(path(file(KIND.fileFailed, '', '/dir')), '/dir', 'an empty argument is the descriptor itself')
  t.equal(path(file(KIND.fileFailed, '/a//b/./../../../c', '')), '/c')
  t.equal(path(file(KIND.file, Buffer.from([0x2f, 0xff, 0x61, 0xfe]), '', { ino: 1n })), '/\\xffa\\xfe', 'bytes that are no UTF-8')
})

t.test('a batch of many is read in order, and what is before a defect is not lost', async t => {
  const batch = Buffer.concat([exit(0), connect([1, 2, 3, 4], 1, 4, 1), exec('/a', '', '', 'a\0')])
  t.same([...decode(batch)].map(event => event.kind), ['exit', 'connect', 'exec'])
  const broken = Buffer.concat([exit(0), Buffer.from('not a record at all, but long enough to be taken for a header......')])
  const seen: string[] = []
  t.throws(() => { for (const event of decode(broken)) seen.push(event.kind) }, DecodeError)
  t.same(seen, ['exit'])
})

t.test('a length that leads out of its record is refused, also where the next record would fill it', async t => {
  const grown = (batch: Buffer, offset: number, value: number, bytes: 2 | 4): Buffer => { const copy = Buffer.from(batch); copy.writeUIntLE(value, offset, bytes); return Buffer.concat([copy, exit(0)]) }
  t.throws(() => one(grown(exec('/a', '', '', 'a\0'), LAYOUT.ambit_exec.argv_length, 40, 2)), DecodeError)
  t.throws(() => one(grown(file(KIND.file, '/a', '', { ino: 1n }), LAYOUT.ambit_file.path_length, 65_535, 2)), DecodeError)
  t.throws(() => one(grown(tls(Buffer.from('GET /')), LAYOUT.ambit_tls.captured, 0xffffffff, 4)), DecodeError)
  t.throws(() => one(grown(exit(0), LAYOUT.ambit_header.size, 72 + 8, 4).subarray(0, 76)), DecodeError)
  t.throws(() => one(grown(exit(0), LAYOUT.ambit_header.size, 0, 4)), DecodeError, 'no progress, no endless loop')
  t.throws(() => one(grown(exit(0), LAYOUT.ambit_header.kind, 10, 2)), DecodeError, 'a kind that is none')
  t.throws(() => one(grown(exit(0), LAYOUT.ambit_header.kind, KIND.connect, 2)), DecodeError, 'a kind that takes more')
  t.throws(() => one(file(KIND.file, '/a', '', { ino: 1n, access: 9 })), DecodeError)
})

t.test('whatever the bytes are, decoding ends with events or with DecodeError', async t => {
  const good = Buffer.concat([exec('/usr/bin/dash', 's', '/w', 'sh\0x\0'), file(KIND.file, '/etc', '', { ino: 1n }), tls(Buffer.from('GET')), connect([1, 2, 3, 4], 1, 4, 1)])
  const survive = (batch: Buffer): void => {
    try {
      for (const event of decode(batch)) if (event.kind === 'tls' && event.data.length > batch.length) throw new Error('more data than there is')
    } catch (error) {
      if (!(error instanceof DecodeError)) throw error
    }
  }
  t.doesNotThrow(() => fc.assert(fc.property(fc.uint8Array({ maxLength: 600 }), bytes => survive(Buffer.from(bytes))), { numRuns: 1000 }))
  t.doesNotThrow(() => fc.assert(fc.property(fc.integer({ min: 0, max: good.length }), fc.array(fc.tuple(fc.nat(good.length - 1), fc.integer({ min: 0, max: 255 })), { maxLength: 6 }), (end, changes) => {
    const bytes = Buffer.from(good.subarray(0, end))
    for (const [at, value] of changes) if (at < end) bytes[at] = value
    survive(bytes)
  }), { numRuns: 2000 }))
})
