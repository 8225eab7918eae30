import { createHash, type Hash } from 'node:crypto'
import { closeSync, constants, ftruncateSync, openSync, writeSync } from 'node:fs'
import { AmbitError } from '../errors.ts'
import { appendLine, emptyChain, type Chain } from './chain.ts'
import { wallMicroseconds } from './clock.ts'
import { MAX_LINE } from './lines.ts'
import type { BegunLog } from './resume.ts'
import type { EvidenceBody, EvidenceType, Family } from './records.ts'

/** Written to disk at once when so much waits; otherwise at the end of the event loop's turn. */
const FLUSH_BYTES = 256 * 1024
/** What may wait in memory while the disk refuses. */
const MAX_WAITING_BYTES = 8 * 1024 * 1024
/** Beyond the limit there is room for the records that a verdict rests on: they are few, and the daemon's own. */
const RESERVE_BYTES = 8 * 1024 * 1024

/** Records of the job's making, whose number the job decides, with the family that a loss of them tears a hole into. */
const STREAM: Partial<Record<EvidenceType, Family>> = {
  'exec': 'exec', 'exec.failed': 'exec', 'fork': 'process', 'fork.failed': 'process', 'exit': 'process', 'file': 'file', 'file.failed': 'file', 'connect': 'network', 'flow': 'network',
  'dns': 'dns', 'api.request': 'api', 'api.response': 'api', 'api.unreadable': 'api', 'syscall.refused': 'syscall',
}
const RESERVED: Partial<Record<EvidenceType, Family>> = { 'syscalls': 'syscall', 'credential': 'credential', 'limit': 'process' }

/**
 * One cell's log while it is written. Order is the order of `append`. Records are in the kernel's hands when the turn of the event loop
 * that appended them ends: from then on they outlive the daemon's death, but a power cut only once the log was sealed and synced.
 * A log has a limit in bytes: what exceeds it is counted and told in `loss` records before the closing one.
 */
export class CellLog {
  readonly id: string
  readonly #file: string
  readonly #limit: number
  readonly #changed: () => void
  readonly #chain: Chain
  readonly #hash: Hash
  readonly #counts = new Map<EvidenceType, { produced: number; dropped: number }>()
  #fd: number | null
  #waiting: Buffer[] = []
  #waitingBytes = 0
  #written = 0
  #accepted = 0
  #scheduled = false
  #failure: unknown
  #last: EvidenceBody | null = null

  /** Makes the file, which must not exist, or goes on with one that was `begun`. `changed` is called when more can be read from it. */
  constructor(id: string, file: string, limit: number, changed: () => void, begun?: BegunLog) {
    this.id = id
    this.#file = file
    this.#limit = limit
    this.#changed = changed
    this.#chain = begun?.chain ?? emptyChain()
    this.#hash = begun?.hash ?? createHash('sha256')
    this.#written = this.#accepted = begun?.bytes ?? 0
    this.#fd = begun?.fd ?? openSync(file, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
  }

  /** No more of the job's own acts is taken in. */
  get full(): boolean {
    return this.#accepted >= this.#limit
  }

  /** Bytes that can be read from the file now; always whole lines. */
  get written(): number {
    return this.#written
  }

  /**
   * Adds a record. Never throws: what cannot be kept is counted. `cell.ended` is held until the log is closed, so that what is still on its
   * way gets its place before it. After that a record has no place any more.
   */
  append(body: EvidenceBody): void {
    if (this.#fd === null) return
    if (body.type === 'cell.ended') {
      this.#last ??= body
      return
    }
    const family = STREAM[body.type] ?? RESERVED[body.type]
    if (family === undefined) {
      this.#put(body)
      return
    }
    const counts = this.#counts.get(body.type) ?? { produced: 0, dropped: 0 }
    this.#counts.set(body.type, counts)
    counts.produced++
    const limit = this.#limit + (STREAM[body.type] === undefined ? RESERVE_BYTES : 0)
    if (this.#accepted >= limit || this.#waitingBytes >= MAX_WAITING_BYTES || !this.#put(body, limit - this.#accepted)) counts.dropped++
  }

  #put(body: EvidenceBody, room = Infinity): boolean {
    const before = { ...this.#chain }
    const bytes = Buffer.from(`${appendLine(this.#chain, body, wallMicroseconds())}\n`)
    if (bytes.length > room || bytes.length > MAX_LINE) {
      Object.assign(this.#chain, before)
      return false
    }
    this.#hash.update(bytes)
    this.#waiting.push(bytes)
    this.#waitingBytes += bytes.length
    this.#accepted += bytes.length
    if (this.#waitingBytes >= FLUSH_BYTES && this.#failure === undefined) this.#flush()
    else if (!this.#scheduled) {
      this.#scheduled = true
      setImmediate(() => {
        this.#scheduled = false
        this.#flush()
      })
    }
    return true
  }

  #tellLosses(): void {
    for (const [type, { produced, dropped }] of this.#counts) {
      if (dropped === 0) continue
      this.#put({ type: 'loss', event: `${type} (log at its limit)`, family: (STREAM[type] ?? RESERVED[type])!, produced, delivered: produced - dropped, dropped })
    }
  }

  #flush(): void {
    if (this.#fd === null || this.#waitingBytes === 0) return
    const bytes = Buffer.concat(this.#waiting)
    try {
      for (let at = 0; at < bytes.length;) at += writeSync(this.#fd, bytes, at, bytes.length - at, this.#written + at)
    } catch (error) {
      this.#failure = error
      // Half a line must not stay. What waits is tried again with the next record.
      try { ftruncateSync(this.#fd, this.#written) } catch { /* the next write begins at the same place */ }
      return
    }
    this.#failure = undefined
    this.#waiting = []
    this.#waitingBytes = 0
    this.#written += bytes.length
    this.#changed()
  }

  /** Ends writing. Returns what a statement says of the log. Throws EVIDENCE_UNREADABLE if the disk did not take all of it. */
  close(): { records: number; bytes: number; head: string; sha256: string; closed: boolean } {
    if (this.#fd !== null) {
      this.#tellLosses()
      if (this.#last !== null) this.#put(this.#last)
      this.#flush()
    }
    if (this.#fd !== null) closeSync(this.#fd)
    this.#fd = null
    if (this.#waitingBytes > 0) {
      throw new AmbitError('EVIDENCE_UNREADABLE', {
        attempted: `write the evidence of cell ${this.id}`, why: `${this.#file}: ${(this.#failure as NodeJS.ErrnoException).code ?? String(this.#failure)}`,
        remedy: 'make room where the daemon keeps its state; this cell\'s log stays unsealed', cause: this.#failure,
      })
    }
    return { records: this.#chain.next, bytes: this.#written, head: this.#chain.head, sha256: this.#hash.copy().digest('hex'), closed: this.#last !== null }
  }
}
