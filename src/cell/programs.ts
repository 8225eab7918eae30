import { createHash } from 'node:crypto'
import { closeSync, constants, createReadStream, fstatSync, openSync, readSync, type BigIntStats } from 'node:fs'
import { execPins, type ExecPin } from '../authority/exec.ts'
import { covers } from '../authority/paths.ts'
import { placeIn } from '../contract/read.ts'
import type { Contract } from '../contract/schema.ts'
import { AmbitError } from '../errors.ts'
import { identity } from '../evidence/programs.ts'
import { leadsTo, O_PATH, openWhereLeads, type Ids } from './see.ts'

/** A program whose content was checked: `fd` is the file that was read, which nothing can exchange. The caller closes it. */
export type Program = { path: string; real: string; fd: number; sha256: string; dev: string; ino: string }

/** Whoever asks decides how long it takes to read, so there is an end to it. */
const BYTES_MAX = 1024 ** 3
const CHUNK = 1024 * 1024

/**
 * Opens the programs whose content a contract names, with the rights of whoever asks, and compares it. In enforce, throws
 * CONTRACT_INVALID with the line for one that is another or could change after the check; in observe such a one runs like any
 * other, and what is told is what was found. A file that only root can write is as it was read for as long as root leaves it.
 */
export async function openPrograms({ spec }: Contract, caller: Ids, source: { text: string; file: string }): Promise<Program[]> {
  const opened: Program[] = []
  try {
    for (const [index, grant] of spec.authority.exec.entries()) {
      if (typeof grant === 'string') continue
      const found = await open(grant, caller, spec.authority.filesystem.write)
      if (typeof found !== 'string') opened.push(found)
      if (spec.mode !== 'enforce' || (found === ABSENT && spec.missingPaths === 'skip')) continue
      const why = typeof found === 'string' ? found : found.sha256 === grant.sha256 ? undefined : `its sha256 is ${found.sha256}, and the contract names ${grant.sha256}`
      if (why === undefined) continue
      throw new AmbitError('CONTRACT_INVALID', {
        attempted: 'build the cell', why: `exec: ${grant.path}: ${why}`, remedy: 'find out why the program is another one; name its content (sha256sum) in the contract if it is the right one, or leave the digest out',
        where: { file: source.file, ...placeIn(source.text, ['spec', 'authority', 'exec', index]) },
      })
    }
    return opened
  } catch (error) {
    closePrograms(opened)
    throw error
  }
}

export function closePrograms(programs: readonly Program[]): void {
  for (const { fd } of programs) closeSync(fd)
}

export function namesContent({ spec }: Contract): boolean {
  return execPins(spec.authority.exec).length > 0
}

const ABSENT = 'it does not exist, or is not yours to see'

/** The program, or why there is no checking it. */
async function open({ path }: ExecPin, caller: Ids, write: readonly string[]): Promise<Program | string> {
  const found = openWhereLeads(path, caller)
  if (found === null) return ABSENT
  const { real, fd: place } = found
  try {
    const stat = fstatSync(place, { bigint: true })
    if (!stat.isFile()) return 'it is no file'
    if (covers(write.map(tree => leadsTo(tree, caller) ?? tree), real)) return `it is ${real}, where the job may write`
    // The digest is told: nobody learns that of a file which they may not read. Of the caller's groups the first alone is known.
    if (caller.uid !== 0 && (stat.mode & (stat.uid === BigInt(caller.uid) ? 0o400n : stat.gid === BigInt(caller.gid) ? 0o040n : 0o004n)) === 0n) return 'it is not yours to read'
    // An access control list is in the group's bits (acl(5)).
    if (stat.uid !== 0n || (stat.mode & 0o022n) !== 0n) return 'others than root may write it, so it can be another one after the check'
    if (stat.size > BigInt(BYTES_MAX)) return `it is larger than the ${BYTES_MAX / 1024 ** 3} GiB that are read`
    const fd = openSync(`/proc/self/fd/${place}`, constants.O_RDONLY)
    try {
      const [device, inode] = identity(fd)
      return { path, real, fd, sha256: await digestOf(fd, stat), dev: `${device >> 20n}:${device & 0xfffffn}`, ino: String(inode) }
    } catch (error) {
      closeSync(fd)
      throw error
    }
  } finally {
    closeSync(place)
  }
}

const digests = new Map<string, string>()
const KEPT = 256
/** A file that was changed a moment ago could be again without its time telling: the kernel's clock for files has ticks. */
const SETTLED_NS = 1_000_000_000n

/** Jobs come back with the same programs: what did not change is read once. */
async function digestOf(fd: number, { dev, ino, size, mtimeNs, ctimeNs }: BigIntStats): Promise<string> {
  const key = [dev, ino, size, mtimeNs, ctimeNs].join(' ')
  const known = digests.get(key)
  if (known !== undefined) return known
  const settled = BigInt(Date.now()) * 1_000_000n - ctimeNs > SETTLED_NS
  const hash = createHash('sha256')
  for await (const chunk of createReadStream('', { fd, autoClose: false, start: 0, highWaterMark: CHUNK })) hash.update(chunk as Buffer)
  const sha256 = hash.digest('hex')
  const after = fstatSync(fd, { bigint: true })
  if (settled && after.ctimeNs === ctimeNs && after.size === size) {
    if (digests.size >= KEPT) digests.delete(digests.keys().next().value!)
    digests.set(key, sha256)
  }
  return sha256
}

const loaders = new Map<string, boolean>()

/** Of programs of the host, those that run without a loader (elf(5), PT_INTERP): static programs, loaders, libraries. */
export function loadersAmong(paths: readonly string[]): string[] {
  return paths.filter(path => {
    if (path === '*' || covers(['/workspace', '/tmp'], path)) return false
    let place: number | undefined
    try {
      place = openSync(path, O_PATH)
      const stat = fstatSync(place, { bigint: true })
      if (!stat.isFile()) return false
      const key = `${stat.dev} ${stat.ino} ${stat.mtimeNs}`
      const known = loaders.get(key) ?? needsNoLoader(`/proc/self/fd/${place}`)
      if (loaders.size >= KEPT) loaders.delete(loaders.keys().next().value!)
      loaders.set(key, known)
      return known
    } catch {
      return false
    } finally {
      if (place !== undefined) closeSync(place)
    }
  })
}

const PT_INTERP = 3
/** More than programs have (elf(5), e_phnum). */
const SEGMENTS_MAX = 128

function needsNoLoader(path: string): boolean {
  const fd = openSync(path, constants.O_RDONLY)
  try {
    const header = Buffer.alloc(64)
    if (readSync(fd, header, 0, 64, 0) < 64 || header.readUInt32BE(0) !== 0x7f45_4c46) return false
    // Of other classes and byte orders nothing runs here but 32-bit programs, which no cell may start.
    if (header[4] !== 2 || header[5] !== 1) return true
    const [size, count] = [header.readUInt16LE(54), Math.min(header.readUInt16LE(56), SEGMENTS_MAX)]
    const table = Buffer.alloc(size * count)
    readSync(fd, table, 0, table.length, Number(header.readBigUInt64LE(32)))
    return !Array.from({ length: count }, (_, index) => table.readUInt32LE(index * size)).includes(PT_INTERP)
  } finally {
    closeSync(fd)
  }
}
