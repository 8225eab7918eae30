import { isUtf8 } from 'node:buffer'
import type { ProcessRef } from './records.ts'

/**
 * Reads what the eBPF programs wrote, by the offsets of bpf/events.h. A batch comes from the kernel, not from a job,
 * but every length in it is checked all the same: a reader that trusts its input is one defect away from reading another cell's data.
 */

export const KIND = { exec: 1, execFailed: 2, fork: 3, exit: 4, file: 5, fileFailed: 6, connect: 7, syscallRefused: 8, tls: 9, forkFailed: 11 } as const

/** Offsets in bytes; test/evidence/decode.test.ts compares them with the BTF of the built objects. */
export const LAYOUT = {
  ambit_header: { size: 0, kind: 4, flags: 6, cell: 8, time: 16, start: 24, pid: 32, tid: 36, ppid: 40, reserved: 44, comm: 48 },
  ambit_exec: { header: 0, ino: 64, dev: 72, path_length: 76, script_length: 78, base_length: 80, argv_length: 82, unlinked: 84, reserved: 85, data: 88 },
  ambit_file: { header: 0, ino: 64, dev: 72, error: 76, access: 80, source: 81, created: 82, reserved: 83, path_length: 84, base_length: 86, data: 88 },
  ambit_fork: { header: 0, child_start: 64, child: 72, reserved: 76 },
  ambit_exit: { header: 0, status: 64, reserved: 68 },
  ambit_connect: { header: 0, address: 64, port: 80, family: 82, protocol: 83, reserved: 84 },
  ambit_refused: { header: 0, arch: 64, nr: 68, error: 72, reserved: 76 },
  ambit_tls: { header: 0, session: 64, length: 72, captured: 80, direction: 84, flavour: 85, reserved: 86, data: 88 },
} as const

/** Bytes of each struct without its data. */
export const FIXED = { ambit_header: 64, ambit_exec: 88, ambit_file: 88, ambit_fork: 80, ambit_exit: 72, ambit_connect: 88, ambit_refused: 80, ambit_tls: 88 } as const

export const FLAG = { unreachable: 1, cut: 2, baseUnreachable: 4, baseCut: 8, baseUnknown: 16, unreadable: 32, setup: 64, argvCut: 128, oom: 256, byLsm: 512, spokenTo: 1024, ofCell: 2048, ofHost: 4096 } as const

export type RawHeader = { cell: bigint; /** nanoseconds since boot */ time: bigint; tid: number; ppid: number; process: ProcessRef
  /** By cell-init's child, before the command's first exec. */
  setup: boolean }
export type RawExec = RawHeader & { kind: 'exec'; path: string
  /** What the process named, where that was a script that an interpreter runs. */
  script: string | null; argv: string[]; argvTruncated: boolean; dev: string; ino: string; unlinked: boolean }
export type RawFile = RawHeader & { kind: 'file'; path: string; access: 'read' | 'write' | 'readwrite'; created: boolean; dev: string; ino: string; source: 'lsm' | 'descriptor' | 'argument' | 'name'
  /** A Unix socket that was connected or sent to. */
  spokenTo?: true
  /** Whose that socket is, where the kernel tells. */
  owner?: 'cell' | 'host' }
export type RawFileFailed = RawHeader & { kind: 'file.failed'; path: string; access: 'read' | 'write' | 'readwrite'; errno: number; spokenTo?: true }
export type RawExecFailed = RawHeader & { kind: 'exec.failed'; path: string; errno: number
  /** Refused by bpf/lsm.bpf.c. */
  byLsm: boolean }
export type RawFork = RawHeader & { kind: 'fork'; child: number; childStart: bigint }
export type RawExit = RawHeader & { kind: 'exit'; code: number | null; signal: number | null
  /** Chosen by the out-of-memory killer. */
  oom: boolean }
export type RawForkFailed = RawHeader & { kind: 'fork.failed'; errno: number }
export type RawConnect = RawHeader & { kind: 'connect'; address: string; port: number; protocol: 'tcp' | 'udp' | 'other' }
export type RawRefused = RawHeader & { kind: 'syscall.refused'; /** enum ambit_arch */ arch: number; nr: number
  /** 0: no errno came back: killed, trapped, or a filter that pretends success. */
  errno: number }
/** One TLS write or read that succeeded, as bpf/tls.bpf.c reports it. */
export type RawTls = {
  process: ProcessRef
  /** The session object's address, hexadecimal: names the connection within the process until it is freed. */
  session: string
  direction: 'write' | 'read'
  flavour: 'openssl' | 'gnutls'
  /** Bytes that the call moved; 0: the object was freed. */
  length: number
  /** Their beginning, no more than 1024; nothing at all of writes that the probes only count. */
  data: Buffer
}
export type RawTlsEvent = RawHeader & RawTls & { kind: 'tls' }
export type RawEvent = RawExec | RawExecFailed | RawFile | RawFileFailed | RawFork | RawForkFailed | RawExit | RawConnect | RawRefused | RawTlsEvent

/** A batch that does not follow bpf/events.h: a defect of ambit, or objects and addon of different versions. */
export class DecodeError extends Error {
  /** Bytes into the batch. */
  readonly offset: number

  constructor(offset: number, why: string) {
    super(`event at byte ${offset}: ${why}`)
    this.name = 'DecodeError'
    this.offset = offset
  }
}

/** The events of one batch, in order. Throws DecodeError at the first that is not well formed; those before it were yielded. */
export function* decode(batch: Buffer): Generator<RawEvent> {
  let at = 0
  while (at < batch.length) {
    if (batch.length - at < FIXED.ambit_header) throw new DecodeError(at, `${batch.length - at} bytes are left, a header takes ${FIXED.ambit_header}`)
    const size = batch.readUInt32LE(at)
    if (size < FIXED.ambit_header || size % 8 !== 0 || size > batch.length - at) throw new DecodeError(at, `its size is ${size}, with ${batch.length - at} bytes left`)
    yield decodeOne(batch.subarray(at, at + size), at)
    at += size
  }
}

function decodeOne(record: Buffer, offset: number): RawEvent {
  const kind = record.readUInt16LE(LAYOUT.ambit_header.kind)
  const flags = record.readUInt16LE(LAYOUT.ambit_header.flags)
  const need = (bytes: number): void => {
    if (record.length < bytes) throw new DecodeError(offset, `kind ${kind} takes ${bytes} bytes, the record has ${record.length}`)
  }
  const header: RawHeader = {
    cell: record.readBigUInt64LE(LAYOUT.ambit_header.cell),
    time: record.readBigUInt64LE(LAYOUT.ambit_header.time),
    tid: record.readUInt32LE(LAYOUT.ambit_header.tid),
    ppid: record.readUInt32LE(LAYOUT.ambit_header.ppid),
    setup: (flags & FLAG.setup) !== 0,
    process: {
      pid: record.readUInt32LE(LAYOUT.ambit_header.pid),
      start: record.readBigUInt64LE(LAYOUT.ambit_header.start).toString(),
      comm: text(untilNul(record.subarray(LAYOUT.ambit_header.comm, LAYOUT.ambit_header.comm + 16))),
    },
  }
  /** The strings behind the fixed part, each of a length that the record names. */
  const strings = (fixed: number, ...lengths: number[]): Buffer[] => {
    need(fixed + lengths.reduce((sum, length) => sum + length, 0))
    let at = fixed
    return lengths.map(length => record.subarray(at, at += length))
  }
  switch (kind) {
    case KIND.exec: {
      need(FIXED.ambit_exec)
      const L = LAYOUT.ambit_exec
      const [path, script, base, argv] = strings(L.data, record.readUInt16LE(L.path_length), record.readUInt16LE(L.script_length), record.readUInt16LE(L.base_length), record.readUInt16LE(L.argv_length)) as [Buffer, Buffer, Buffer, Buffer]
      return {
        ...header, kind: 'exec', path: walked(path, flags & FLAG.unreachable, flags & FLAG.cut),
        script: script.length === 0 ? null : joined(base, script, flags),
        argv: split(argv), argvTruncated: (flags & FLAG.argvCut) !== 0,
        dev: device(record.readUInt32LE(L.dev)), ino: record.readBigUInt64LE(L.ino).toString(), unlinked: record[L.unlinked] !== 0,
      }
    }
    case KIND.file:
    case KIND.fileFailed:
    case KIND.execFailed: {
      need(FIXED.ambit_file)
      const L = LAYOUT.ambit_file
      const [path, base] = strings(L.data, record.readUInt16LE(L.path_length), record.readUInt16LE(L.base_length)) as [Buffer, Buffer]
      const ino = record.readBigUInt64LE(L.ino)
      // Without an inode the path is an argument, to be joined to the directory that it starts from.
      const full = ino === 0n ? joined(base, path, flags) : walked(path, flags & FLAG.unreachable, flags & FLAG.cut)
      const errno = record.readInt32LE(L.error)
      if (kind === KIND.execFailed) return { ...header, kind: 'exec.failed', path: full, errno, byLsm: (flags & FLAG.byLsm) !== 0 }
      const access = accessOf(record[L.access]!, offset)
      const spoken = (flags & FLAG.spokenTo) !== 0 ? { spokenTo: true as const } : {}
      const owner = (flags & FLAG.ofCell) !== 0 ? { owner: 'cell' as const } : (flags & FLAG.ofHost) !== 0 ? { owner: 'host' as const } : {}
      if (kind === KIND.fileFailed) return { ...header, kind: 'file.failed', path: full, access, errno, ...spoken }
      return {
        ...header, kind: 'file', path: full, access, created: record[L.created] !== 0,
        dev: device(record.readUInt32LE(L.dev)), ino: ino.toString(), source: SOURCES[record[L.source]!] ?? 'argument', ...spoken, ...owner,
      }
    }
    case KIND.fork:
      need(FIXED.ambit_fork)
      return { ...header, kind: 'fork', child: record.readUInt32LE(LAYOUT.ambit_fork.child), childStart: record.readBigUInt64LE(LAYOUT.ambit_fork.child_start) }
    case KIND.exit: {
      need(FIXED.ambit_exit)
      const status = record.readUInt32LE(LAYOUT.ambit_exit.status)
      const signal = status & 0x7f
      return { ...header, kind: 'exit', code: signal === 0 ? (status >> 8) & 0xff : null, signal: signal === 0 ? null : signal, oom: (flags & FLAG.oom) !== 0 }
    }
    case KIND.connect: {
      need(FIXED.ambit_connect)
      const L = LAYOUT.ambit_connect
      const bytes = record.subarray(L.address, L.address + 16)
      return {
        ...header, kind: 'connect', address: record[L.family] === 4 ? ipv4(bytes) : ipv6(bytes), port: record.readUInt16LE(L.port),
        protocol: (['other', 'tcp', 'udp'] as const)[record[L.protocol]!] ?? 'other',
      }
    }
    case KIND.syscallRefused:
      need(FIXED.ambit_refused)
      return { ...header, kind: 'syscall.refused', arch: record.readUInt32LE(LAYOUT.ambit_refused.arch), nr: record.readUInt32LE(LAYOUT.ambit_refused.nr), errno: record.readInt32LE(LAYOUT.ambit_refused.error) }
    case KIND.forkFailed:
      need(FIXED.ambit_refused)
      return { ...header, kind: 'fork.failed', errno: record.readInt32LE(LAYOUT.ambit_refused.error) }
    case KIND.tls: {
      need(FIXED.ambit_tls)
      const L = LAYOUT.ambit_tls
      const [data] = strings(L.data, record.readUInt32LE(L.captured)) as [Buffer]
      return {
        ...header, kind: 'tls', session: record.readBigUInt64LE(L.session).toString(16), length: Number(record.readBigUInt64LE(L.length)),
        direction: record[L.direction] === 1 ? 'write' : 'read', flavour: record[L.flavour] === 1 ? 'openssl' : 'gnutls', data,
      }
    }
    default:
      throw new DecodeError(offset, `there is no kind ${kind}`)
  }
}

function accessOf(bits: number, offset: number): 'read' | 'write' | 'readwrite' {
  const access = ([undefined, 'read', 'write', 'readwrite'] as const)[bits]
  // Access mode 3 of open(2) opens for ioctl alone: neither right is used, and the narrower one is told.
  if (access === undefined && bits !== 0) throw new DecodeError(offset, `access ${bits} is neither read nor write`)
  return access ?? 'read'
}

/** As d_path(9) words it: a path that does not lead up to the process's root must not look like one that does. */
function walked(path: Buffer, unreachable: number, cut: number): string {
  return (cut !== 0 ? '(truncated)' : unreachable !== 0 ? '(unreachable)' : '') + text(path)
}

/** By the numbers of enum ambit_source. */
const SOURCES: readonly (RawFile['source'] | undefined)[] = [undefined, 'descriptor', 'argument', 'name', 'lsm']

/** The argument of a call, joined to the directory that it starts from, with "." and ".." taken out as text. */
function joined(base: Buffer, argument: Buffer, flags: number): string {
  if ((flags & FLAG.unreadable) !== 0) return '(unreadable)'
  const own = text(argument)
  if (own.startsWith('/')) return normal(own)
  if ((flags & FLAG.baseUnknown) !== 0) return `(unknown)/${own}`
  const from = text(base)
  const prefix = (flags & FLAG.baseCut) !== 0 ? '(truncated)' : (flags & FLAG.baseUnreachable) !== 0 ? '(unreachable)' : ''
  return prefix + normal(`${from}/${own}`)
}

function normal(path: string): string {
  const kept: string[] = []
  for (const part of path.split('/')) {
    if (part === '..') kept.pop()
    else if (part !== '' && part !== '.') kept.push(part)
  }
  return `/${kept.join('/')}`
}

/** Bytes that are no UTF-8 stay distinguishable: \xNN. */
function text(bytes: Buffer): string {
  if (isUtf8(bytes)) return bytes.toString('utf8')
  return [...bytes].map(byte => (byte < 0x80 ? String.fromCharCode(byte) : `\\x${byte.toString(16)}`)).join('')
}

function untilNul(bytes: Buffer): Buffer {
  const end = bytes.indexOf(0)
  return end === -1 ? bytes : bytes.subarray(0, end)
}

function split(argv: Buffer): string[] {
  const list: string[] = []
  for (let at = 0; at < argv.length;) {
    const end = argv.indexOf(0, at)
    list.push(text(argv.subarray(at, end === -1 ? argv.length : end)))
    at = end === -1 ? argv.length : end + 1
  }
  return list
}

/** "major:minor", as stat(1) and /proc/self/mountinfo have it. */
function device(dev: number): string {
  return `${dev >>> 20}:${dev & 0xfffff}`
}

function ipv4(bytes: Buffer): string {
  return bytes.subarray(0, 4).join('.')
}

/** RFC 5952; an IPv4 address in its mapped form is shown as what it is. */
function ipv6(bytes: Buffer): string {
  const words = Array.from({ length: 8 }, (_, i) => bytes.readUInt16BE(i * 2))
  if (words.slice(0, 5).every(word => word === 0) && words[5] === 0xffff) return ipv4(bytes.subarray(12))
  let best = { from: -1, length: 1 }
  for (let from = 0; from < 8; from++) {
    let length = 0
    while (from + length < 8 && words[from + length] === 0) length++
    if (length > best.length) best = { from, length }
  }
  const hex = words.map(word => word.toString(16))
  if (best.from === -1) return hex.join(':')
  return `${hex.slice(0, best.from).join(':')}::${hex.slice(best.from + best.length).join(':')}`
}
