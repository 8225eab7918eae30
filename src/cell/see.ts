import { closeSync, constants, fstatSync, lstatSync, openSync, readlinkSync, type Stats } from 'node:fs'
import { join } from 'node:path'

export type Ids = { uid: number; gid: number }

/** Linux's; Node names it nowhere (include/uapi/asm-generic/fcntl.h). */
export const O_PATH = 0o10_000_000
/** As many links in one path as the kernel follows (path_resolution(7)). */
const LINKS_MAX = 40

/**
 * Where a path leads in the tree whose root is `root`, by links that never leave it; null if it leads nowhere or through a
 * directory that the caller may not search. Each step is taken from an open directory: a name that is exchanged
 * meanwhile shows nothing that it should not.
 */
export function leadsTo(path: string, caller: Ids, root = '/'): string | null {
  return walk(path, caller, root, (_, real) => real)
}

/** The same, with what lies there as a descriptor (O_PATH). */
export function openWhereLeads(path: string, caller: Ids): { real: string; fd: number } | null {
  return walk(path, caller, '/', (at, real) => ({ real, fd: openSync(at, O_PATH | constants.O_NOFOLLOW) }))
}

/** `end` gets the end of the way, by a directory that is open until it returns, and its name in the tree. */
function walk<T>(path: string, caller: Ids, root: string, end: (at: string, real: string) => T): T | null {
  const opened: { name: string; fd: number }[] = []
  const enter = (from: string, name: string): boolean => {
    const fd = openSync(from, O_PATH | constants.O_DIRECTORY | constants.O_NOFOLLOW)
    opened.push({ name, fd })
    return caller.uid === 0 || maySearch(fstatSync(fd), caller)
  }
  try {
    if (!enter(root, '')) return null
    const parts = path.split('/').filter(part => part !== '')
    for (let links = 0; parts.length > 0;) {
      const part = parts.shift()!
      if (part === '.') continue
      if (part === '..') {
        if (opened.length > 1) closeSync(opened.pop()!.fd)
        continue
      }
      const here = `/proc/self/fd/${opened.at(-1)!.fd}/${part}`
      const about = lstatSync(here)
      if (about.isSymbolicLink()) {
        if (++links > LINKS_MAX) return null
        const to = readlinkSync(here)
        if (to.startsWith('/')) for (const { fd } of opened.splice(1)) closeSync(fd)
        parts.unshift(...to.split('/').filter(one => one !== ''))
      } else if (parts.length === 0) {
        return end(here, join('/', ...opened.map(({ name }) => name), part))
      } else if (!enter(here, part)) {
        return null
      }
    }
    return end(`/proc/self/fd/${opened.at(-1)!.fd}/.`, join('/', ...opened.map(({ name }) => name)))
  } catch (error) {
    // EINVAL: what was a link is none any more.
    if (['ENOENT', 'ENOTDIR', 'ELOOP', 'ENAMETOOLONG', 'EACCES', 'EINVAL'].includes((error as NodeJS.ErrnoException).code ?? '')) return null
    throw error
  } finally {
    for (const { fd } of opened) closeSync(fd)
  }
}

/** A hint of permissions(7) without groups: what a caller may not look up is to them as if it were not there. The spawner asks the kernel. */
export function maySearch(stat: Stats, user: Ids): boolean {
  const bit = stat.uid === user.uid ? 0o100 : stat.gid === user.gid ? 0o010 : 0o001
  return (stat.mode & bit) !== 0
}
