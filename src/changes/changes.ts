import { constants, lstatSync, readdirSync, readFileSync, readlinkSync, closeSync, fstatSync, openSync, readSync, type Stats } from 'node:fs'
import { z } from 'zod'
import { AmbitError } from '../errors.ts'
import type { NativeAddon } from '../native.ts'

/** Where what jobs wrote in overlay workspaces waits: CELL/workspace/upper, CELL/changes.json. Each CELL belongs to its caller. */
export const CHANGES_DIR = '/var/lib/ambit-changes'
export const CHANGES_FILE = 'changes.json'

const changesFile = z.strictObject({
  cell: z.string(),
  contract: z.string().describe('its name'),
  started: z.iso.datetime(),
  ended: z.iso.datetime(),
  workspace: z.strictObject({ path: z.string(), dev: z.string(), ino: z.string() }).describe('the directory that the job saw as /workspace'),
})
/** What a kept set of changes says of itself. */
export type ChangesFile = z.infer<typeof changesFile>

export type Change = {
  /** Below the workspace; bytes that are no UTF-8 are replaced. */
  path: string
  change: 'added' | 'changed' | 'deleted'
  /** Of what is there now; of what was there, if it is deleted. Others (sockets, pipes, devices) are never applied. */
  type: 'file' | 'directory' | 'link' | 'other'
  /** Permission bits, without set-id bits. */
  mode: number | null
  /** What is in the workspace was changed after the job had started: applying would lose that. */
  conflict: boolean
}

/** Levels of directories that are shown or applied: each takes descriptors and stack. A job can make more than any path can name. */
const DEPTH_MAX = 256

/** Throws FILE_UNREADABLE for a directory, known by its path below the workspace, that lies too deep. */
export function refuseDepth(path: string): void {
  if (path.split('/').length <= DEPTH_MAX) return
  throw new AmbitError('FILE_UNREADABLE', {
    attempted: 'go through the changes', why: `they hold directories nested more than ${DEPTH_MAX} deep, below ${path.slice(0, 60)}…`, remedy: 'discard them with --discard, or take from the directory that ambit run named what you need by hand',
  })
}

/** A directory that is read by descriptor, entry by entry: no link in it is ever followed. */
export type Folder = { readonly fd: number }

/** Reads what a set of changes says of itself. Throws FILE_UNREADABLE. */
export function readChangesFile(home: Folder): ChangesFile {
  try {
    const fd = openSync(at(home, Buffer.from(CHANGES_FILE)), constants.O_RDONLY | constants.O_NOFOLLOW)
    try {
      return changesFile.parse(JSON.parse(readFileSync(fd, 'utf8')))
    } finally {
      closeSync(fd)
    }
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
    throw new AmbitError('FILE_UNREADABLE', {
      attempted: 'read the changes', why: missing ? `there is no ${CHANGES_FILE}: the cell still runs, or its daemon died before it ended` : `${CHANGES_FILE}: ${(cause as Error).message.split('\n')[0]}`,
      remedy: missing ? 'wait for the end of the cell' : 'name a directory that ambit run told', cause,
    })
  }
}

/** The entry of a folder, as a path that no rename can turn elsewhere: the descriptor's link in /proc and one name. */
export function at(folder: Folder, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`/proc/self/fd/${folder.fd}/`), name])
}

export function entries(folder: Folder): Buffer[] {
  return readdirSync(`/proc/self/fd/${folder.fd}`, { encoding: 'buffer' }).sort(Buffer.compare)
}

export function look(folder: Folder | null, name: Buffer): Stats | null {
  return folder === null ? null : lstatSync(at(folder, name), { throwIfNoEntry: false }) ?? null
}

/** Runs `act` with a directory of a folder, which must be one and no link. */
export function within<T>(folder: Folder, name: Buffer, act: (below: Folder) => T): T {
  const fd = openSync(at(folder, name), constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  try {
    return act({ fd })
  } finally {
    closeSync(fd)
  }
}

/** An overlay's mark of what was deleted: a character device 0:0 (Documentation/filesystems/overlayfs.rst). */
export function isWhiteout(about: Stats): boolean {
  return about.isCharacterDevice() && about.rdev === 0
}

/** The directory hides all that lay below it before. */
export function isOpaque(native: NativeAddon, folder: Folder): boolean {
  return native.attributeOf(folder.fd, 'user.overlay.opaque') === 'y'
}

export function typeOf(about: Stats): Change['type'] {
  return about.isFile() ? 'file' : about.isDirectory() ? 'directory' : about.isSymbolicLink() ? 'link' : 'other'
}

/**
 * What applying `upper` to `workspace` would change, in the order of names. What the job touched and left as it was is no change.
 * `since`: milliseconds of the epoch.
 */
export function changesOf(native: NativeAddon, upper: Folder, workspace: Folder | null, since: number): Change[] {
  const changes: Change[] = []
  const tell = (path: string, change: Change['change'], about: Stats, before: Stats | null): void => {
    const type = typeOf(about)
    changes.push({ path, change, type, mode: type === 'link' || change === 'deleted' ? null : about.mode & 0o777, conflict: before !== null && !before.isDirectory() && before.ctimeMs > since })
  }
  const walk = (above: Folder, below: Folder | null, prefix: string): void => {
    const names = entries(above)
    if (below !== null && isOpaque(native, above)) {
      const kept = new Set(names.map(String))
      for (const name of entries(below)) if (!kept.has(String(name))) tell(prefix + String(name), 'deleted', look(below, name)!, look(below, name))
    }
    for (const name of names) {
      const path = prefix + String(name)
      const now = look(above, name)
      if (now === null) continue
      const before = look(below, name)
      if (isWhiteout(now)) {
        if (before !== null) tell(path, 'deleted', before, before)
        continue
      }
      if (before === null) tell(path, 'added', now, null)
      else if (!same(above, below!, name, now, before)) tell(path, 'changed', now, before)
      if (!now.isDirectory()) continue
      refuseDepth(path)
      within(above, name, deeper => {
        if (before?.isDirectory() === true) within(below!, name, known => walk(deeper, known, `${path}/`))
        else walk(deeper, null, `${path}/`)
      })
    }
  }
  walk(upper, workspace, '')
  return changes
}

/** The same type, permissions and content. */
export function same(above: Folder, below: Folder, name: Buffer, now: Stats, before: Stats): boolean {
  if (typeOf(now) !== typeOf(before)) return false
  if (now.isSymbolicLink()) return readlinkSync(at(above, name), { encoding: 'buffer' }).equals(readlinkSync(at(below, name), { encoding: 'buffer' }))
  if ((now.mode & 0o777) !== (before.mode & 0o777)) return false
  if (now.isDirectory()) return true
  return now.isFile() && now.size === before.size && sameContent(at(above, name), at(below, name))
}

const CHUNK = 256 * 1024

function sameContent(one: Buffer, other: Buffer): boolean {
  const fds: number[] = []
  try {
    for (const path of [one, other]) fds.push(openFile(path))
    const [a, b] = [Buffer.alloc(CHUNK), Buffer.alloc(CHUNK)]
    for (;;) {
      const [got, had] = [readSync(fds[0]!, a), readSync(fds[1]!, b)]
      if (got !== had || a.compare(b, 0, had, 0, got) !== 0) return false
      if (got === 0) return true
    }
  } catch (error) {
    // What cannot be read is not known to be the same.
    if ((error as NodeJS.ErrnoException).code === 'EACCES') return false
    throw error
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}

/** A regular file for reading: a pipe that took its place must not make us wait. */
export function openFile(path: Buffer): number {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  if (fstatSync(fd).isFile()) return fd
  closeSync(fd)
  throw Object.assign(new Error('it is no file any more'), { code: 'ESTALE' })
}
