import { existsSync, fstatSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync, renameSync } from 'node:fs'
import { constants, open, rename, rmdir, unlink, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'
import type { Contract } from '../contract/schema.ts'
import { contractDigest, writeContract } from '../contract/write.ts'
import { AmbitError } from '../errors.ts'
import { CellLog } from './cell-log.ts'
import { digest } from './chain.ts'
import { reopenLog } from './resume.ts'
import type { EvidenceRecord } from './records.ts'
import { sealStatement, type SigningKey } from './sign.ts'
import { BUNDLE, PREDICATE_TYPE, type EvidenceStatement } from './statement.ts'

export type { CellLog } from './cell-log.ts'

/** A log's file and how far it can be read; `unsealed`: the daemon died, or the disk was full, before it was signed. `changed`: when it was last written, ms since the epoch. */
export type LogView = { file: string; bytes: number; changed: number; state: 'open' | 'sealed' | 'unsealed' }

const DEFAULT_LOG_BYTES = 64 * 1024 * 1024
/** Beside a log that was never sealed: says so, and why. */
const UNSEALED = 'unsealed.json'
/** Before the name of a bundle that is being removed. */
const LEAVING = '.leaving-'
const ID = /^[A-Za-z0-9][A-Za-z0-9-]{0,63}$/

/** The evidence on disk: one directory for each cell, which is its bundle once it is sealed. */
export class EvidenceStore {
  readonly #dir: string
  readonly #key: SigningKey
  readonly #limit: number
  readonly #open = new Map<string, CellLog>()
  readonly #watchers = new Set<(id: string) => void>()

  /** `maxLogBytes`: of one cell's log, without the few records that are kept beyond it. */
  constructor(dir: string, key: SigningKey, options: { maxLogBytes?: number } = {}) {
    this.#dir = dir
    this.#key = key
    this.#limit = options.maxLogBytes ?? DEFAULT_LOG_BYTES
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    for (const name of readdirSync(dir)) if (name.startsWith(LEAVING)) void removeBundle(join(dir, name)).catch(() => {})
    for (const id of this.ids()) {
      if (!existsSync(join(dir, id, BUNDLE.statement))) this.#mark(id, 'the daemon ended before this log was sealed')
    }
  }

  /** Every cell that the store knows, in no order. */
  ids(): string[] {
    return readdirSync(this.#dir, { withFileTypes: true }).filter(entry => entry.isDirectory() && ID.test(entry.name)).map(entry => entry.name)
  }

  /** Opens the log of a new cell. */
  begin(id: string): CellLog {
    if (!ID.test(id) || this.#open.has(id)) throw new Error(`"${id}" cannot name a new cell`)
    mkdirSync(this.pathOf(id), { mode: 0o700 })
    const log = new CellLog(id, join(this.pathOf(id), BUNDLE.log), this.#limit, () => this.#tell(id))
    this.#open.set(id, log)
    this.#tell(id)
    return log
  }

  /** Goes on with a log that a former daemon began and did not seal. Throws EVIDENCE_UNREADABLE if it was changed. */
  resume(id: string): { log: CellLog; records: EvidenceRecord[] } {
    const begun = reopenLog(id, join(this.pathOf(id), BUNDLE.log))
    const log = new CellLog(id, join(this.pathOf(id), BUNDLE.log), this.#limit, () => this.#tell(id), begun)
    this.#open.set(id, log)
    this.#tell(id)
    return { log, records: begun.records }
  }

  /**
   * Seals a log: contract, key and signed statement beside it. When this resolves, the bundle outlives the daemon; it is synced to
   * the disk soon after, so that no cell waits for one. Throws EVIDENCE_UNREADABLE if the disk is full; the log is then left unsealed, and marked.
   */
  async finish(log: CellLog, contract: Contract): Promise<void> {
    const dir = this.pathOf(log.id)
    try {
      const { sha256, ...facts } = log.close()
      const text = writeContract(contract)
      const statement: EvidenceStatement = {
        _type: 'https://in-toto.io/Statement/v1',
        subject: [{ name: BUNDLE.log, digest: { sha256 } }, { name: BUNDLE.contract, digest: { sha256: digest(text) } }],
        predicateType: PREDICATE_TYPE,
        predicate: { cell: log.id, ...facts, contractDigest: contractDigest(contract) },
      }
      writeFileSync(join(dir, BUNDLE.contract), text, { mode: 0o600 })
      writeFileSync(join(dir, BUNDLE.key), this.#key.publicPem, { mode: 0o600 })
      // The statement comes last and whole: where it is, everything is.
      const draft = join(dir, `${BUNDLE.statement}.draft`)
      writeFileSync(draft, sealStatement(this.#key, statement), { mode: 0o600 })
      renameSync(draft, join(dir, BUNDLE.statement))
      rmSync(join(dir, UNSEALED), { force: true })
    } catch (cause) {
      this.#mark(log.id, (cause as Error).message.split('\n')[0]!)
      if (cause instanceof AmbitError) throw cause
      throw new AmbitError('EVIDENCE_UNREADABLE', {
        attempted: `seal the evidence of cell ${log.id}`, why: (cause as Error).message, remedy: 'make room where the daemon keeps its state; this cell\'s log stays unsealed', cause,
      })
    } finally {
      this.#open.delete(log.id)
      this.#tell(log.id)
    }
    void sync([...Object.values(BUNDLE).map(name => join(dir, name)), dir])
  }

  /** Takes a log back whose cell never started. */
  async abandon(log: CellLog): Promise<void> {
    this.#open.delete(log.id)
    try {
      log.close()
    } finally {
      rmSync(this.pathOf(log.id), { recursive: true, force: true })
      this.#tell(log.id)
    }
  }

  /**
   * Copies a sealed bundle into a directory that `owner` holds, given as a descriptor; the files become the owner's. The root daemon writes
   * where a caller points, so: the directory must be the caller's own, names are single and fixed, nothing that exists is opened. What was
   * made is taken away again if not all of it could be. Throws FORBIDDEN or EVIDENCE_UNREADABLE.
   */
  async exportTo(id: string, dirfd: number, owner: { uid: number; gid: number }): Promise<void> {
    const attempted = 'write the evidence into the caller\'s directory'
    const target = fstatSync(dirfd)
    if (!target.isDirectory() || (owner.uid !== 0 && target.uid !== owner.uid)) {
      throw new AmbitError('FORBIDDEN', { attempted, why: target.isDirectory() ? `it belongs to user ${target.uid}, not ${owner.uid}` : 'it is not a directory', remedy: 'name a directory of your own with --evidence' })
    }
    const made: string[] = []
    try {
      for (const name of Object.values(BUNDLE)) {
        await using(open(join(this.pathOf(id), name), constants.O_RDONLY | constants.O_NOFOLLOW), async from => {
          const path = `/proc/self/fd/${dirfd}/${name}`
          await using(open(path, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600), async to => {
            made.push(path)
            await copy(from, to)
            await to.chown(owner.uid, owner.gid)
            await to.chmod(0o644)
          })
        })
      }
    } catch (cause) {
      for (const path of made) await unlink(path).catch(() => {})
      throw new AmbitError('EVIDENCE_UNREADABLE', { attempted, why: (cause as Error).message, remedy: 'name an empty directory with room for the bundle', cause })
    }
  }

  /** Where a cell's bundle is. */
  pathOf(id: string): string {
    if (!ID.test(id)) throw new Error(`"${id}" is not a cell's id`)
    return join(this.#dir, id)
  }

  /** How far a log can be read now; null: there is none of that name. */
  view(id: string): LogView | null {
    if (!ID.test(id)) return null
    const file = join(this.pathOf(id), BUNDLE.log)
    const log = this.#open.get(id)
    if (log !== undefined) return { file, bytes: log.written, changed: Date.now(), state: 'open' }
    try {
      const { size, mtimeMs } = statSync(file)
      return { file, bytes: size, changed: mtimeMs, state: existsSync(join(this.pathOf(id), BUNDLE.statement)) ? 'sealed' : 'unsealed' }
    } catch {
      return null
    }
  }

  /** When a cell's bundle was sealed, ms since the epoch, and how large it is; null: it is open, was never sealed, or is not there. */
  sealed(id: string): { sealedMs: number; bytes: number } | null {
    if (this.#open.has(id)) return null
    try {
      const { mtimeMs, size } = statSync(join(this.pathOf(id), BUNDLE.statement))
      return { sealedMs: mtimeMs, bytes: size + statSync(join(this.pathOf(id), BUNDLE.log)).size }
    } catch {
      return null
    }
  }

  /**
   * Takes a sealed bundle away: its own files by their names and the directory, never what else may lie there. Throws if it is not
   * sealed, or something is left.
   */
  async remove(id: string): Promise<void> {
    if (this.sealed(id) === null) throw new Error(`the evidence of cell ${id} is not sealed`)
    // No cell's name from here on: what a crash leaves of it is no unsealed log, and goes with the next start.
    const leaving = join(this.#dir, `${LEAVING}${id}`)
    await rename(this.pathOf(id), leaving)
    await removeBundle(leaving)
    this.#tell(id)
  }

  /** Calls `changed` whenever a log begins, grows, ends or is taken back; returns how to stop that. */
  watch(changed: (id: string) => void): () => void {
    this.#watchers.add(changed)
    return () => this.#watchers.delete(changed)
  }

  /** Ends writing; logs that are still open stay unsealed, and say so. */
  close(): void {
    for (const [id, log] of this.#open) {
      this.#open.delete(id)
      try {
        log.close()
      } catch {
        // What the disk refused is missing, and the mark says that nothing vouches for this log.
      }
      this.#mark(id, 'the daemon stopped before this log was sealed')
      this.#tell(id)
    }
  }

  #mark(id: string, reason: string): void {
    try {
      writeFileSync(join(this.#dir, id, UNSEALED), `${JSON.stringify({ cell: id, reason, noticed: new Date().toISOString() })}\n`, { mode: 0o600, flag: 'wx' })
    } catch {
      // It is marked already, or the disk is full: a log without a statement counts as unsealed either way.
    }
  }

  #tell(id: string): void {
    for (const changed of this.#watchers) changed(id)
  }
}

async function using(opening: Promise<FileHandle>, use: (file: FileHandle) => Promise<void>): Promise<void> {
  const file = await opening
  try {
    await use(file)
  } finally {
    await file.close()
  }
}

async function copy(from: FileHandle, to: FileHandle): Promise<void> {
  const buffer = Buffer.allocUnsafe(256 * 1024)
  for (let at = 0; ;) {
    const { bytesRead } = await from.read(buffer, 0, buffer.length, at)
    if (bytesRead === 0) return
    for (let done = 0; done < bytesRead;) done += (await to.write(buffer, done, bytesRead - done, at + done)).bytesWritten
    at += bytesRead
  }
}

async function removeBundle(dir: string): Promise<void> {
  for (const name of [...Object.values(BUNDLE), UNSEALED]) {
    await unlink(join(dir, name)).catch((error: NodeJS.ErrnoException) => { if (error.code !== 'ENOENT') throw error })
  }
  await rmdir(dir)
}

/** Asks the disk for what the kernel holds. Failure is not told: the bundle verifies or it does not. */
async function sync(paths: string[]): Promise<void> {
  for (const path of paths) await open(path, constants.O_RDONLY).then(async file => { await file.sync().finally(() => file.close()) }).catch(() => {})
}
