import { posix } from 'node:path'
import { z } from 'zod'
import { compareText } from './words.ts'

/** `path` is `folder` or lies below it. */
export function inside(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder === '/' ? '/' : `${folder}/`)
}

export function covers(grants: readonly string[], path: string): boolean {
  return grants.some(grant => inside(path, grant))
}

/** PATH_MAX of the kernel, its final NUL left out. */
const PATH_BYTES_MAX = 4095

/**
 * Doors to the host's services and to the kernel: no part of a cell's root, whatever a contract says (src/cell/root.ts).
 * A grant of them would be a promise that nobody keeps.
 */
const NEVER = ['/proc', '/sys', '/dev', '/run', '/var/run', '/boot', '/lost+found']

/** Why no contract can name this path; null if it can. */
export function pathFault(path: string): string | null {
  if (path.includes('\0')) return 'a path cannot hold a NUL'
  if (!path.startsWith('/')) return 'must be an absolute path'
  if (path.split('/').includes('..')) return 'must not hold ".."'
  if (/\p{Surrogate}/u.test(path)) return 'is not well-formed Unicode'
  if (Buffer.byteLength(path) > PATH_BYTES_MAX) return `is longer than a path can be (${PATH_BYTES_MAX} bytes)`
  const normal = posix.normalize(path).replace(/(.)\/$/, '$1')
  if (path !== normal || path.startsWith('//')) return `must be in its shortest form: ${normal.replace(/^\/+/, '/')}`
  const never = NEVER.find(folder => inside(path, folder))
  return never === undefined ? null : `${never} is never part of a cell: it leads to the kernel or to the host's services`
}

/** A path as contracts name it. */
export const grantedPath = z.string().superRefine((path, context) => {
  const fault = pathFault(path)
  if (fault !== null) context.addIssue({ code: 'custom', message: fault, input: path })
})

/** Why no contract can name a socket by this path; null if it can. Sockets are shown one by one, so those of /run can be. */
function socketFault(path: string): string | null {
  const elsewhere = /^(\/var)?\/run\//.test(path) ? path.replace(/^(\/var)?\/run\//, '/x/') : path
  if (path === '/') return 'is no socket'
  if (inside(path, '/run/ambit') || inside(path, '/workspace')) return 'lies in what is the cell\'s own'
  // sun_path of unix(7), its final NUL left out.
  if (Buffer.byteLength(path) > 107) return 'is longer than the path of a socket can be (107 bytes)'
  return pathFault(elsewhere)
}

/** The path of a Unix socket as contracts name it. */
export const socketPath = z.string({ error: 'must be the path of a socket' }).superRefine((path, context) => {
  const fault = socketFault(path)
  if (fault !== null) context.addIssue({ code: 'custom', message: fault, input: path })
})

/** The cell makes these for itself and every process in it may use them: using them is no authority. */
const OWN_TREES = ['/proc', '/dev', '/run/ambit']
const OWN_FILES = new Set(['/', '/etc/resolv.conf', '/etc/hosts', '/etc/hostname', '/etc/ld.so.cache'])

export function cellsOwn(path: string): boolean {
  return OWN_FILES.has(path) || covers(OWN_TREES, path)
}

/** A path that a grant could name: what the probes tell of objects without one ("(unreachable)…") is not. */
export function grantable(path: string): boolean {
  return pathFault(path) === null
}

/** The probes could not read the whole path, so nobody knows which grant it belongs to (src/evidence/decode.ts). */
export function pathUnknown(path: string): boolean {
  return path.startsWith('(') && !path.startsWith('(unreachable)')
}

/**
 * Trees of installed software: a package's files change with its next version and some are opened only on some runs, so a
 * narrowed contract names the package's directory, not its files. Levels below the tree that are kept apart.
 */
const SYSTEM_TREES: readonly (readonly [tree: string, levels: number])[] = [
  ...['/usr/lib', '/usr/lib32', '/usr/lib64', '/usr/libx32', '/usr/libexec', '/usr/share', '/usr/local/lib', '/usr/local/lib64', '/usr/local/libexec', '/usr/local/share'].map(tree => [tree, 1] as const),
  ...['/lib', '/lib32', '/lib64', '/libx32'].map(tree => [tree, 1] as const),
  ...['/usr/include', '/usr/local/include'].map(tree => [tree, 0] as const),
]
/** The job's own: its files' names are different at each run. */
const OWN_WHOLE = ['/workspace', '/tmp']

export function ownWhole(path: string): boolean {
  return covers(OWN_WHOLE, path)
}

/** The directory that stands for a path in a narrowed contract; the path itself outside the known trees. */
export function generalised(path: string): string {
  const whole = OWN_WHOLE.find(folder => inside(path, folder))
  if (whole !== undefined) return whole
  for (const [tree, levels] of SYSTEM_TREES) {
    if (!inside(path, tree)) continue
    const below = path.slice(tree.length).split('/').filter(Boolean)
    return below.length <= levels ? path : [tree, ...below.slice(0, levels)].join('/')
  }
  return path
}

/** More entries of one directory than this become the directory. */
const ENTRIES_MAX = 8

/** Never the result of counting: top-level directories hold too much that has nothing to do with each other, and system trees have their own rule. */
function mayStandForMany(folder: string): boolean {
  return folder.split('/').length > 2 && !SYSTEM_TREES.some(([tree, levels]) => levels > 0 && tree === folder)
}

/** Directories instead of many of their entries, wherever `allowed` permits the directory; then nothing that another covers. */
export function gathered(paths: Iterable<string>, allowed: (folder: string) => boolean): string[] {
  let kept = outermost(paths)
  for (;;) {
    const entries = new Map<string, number>()
    for (const path of kept) {
      const folder = posix.dirname(path)
      entries.set(folder, (entries.get(folder) ?? 0) + 1)
    }
    const full = [...entries].filter(([folder, count]) => count > ENTRIES_MAX && mayStandForMany(folder) && allowed(folder)).map(([folder]) => folder)
    if (full.length === 0) return kept
    kept = outermost([...kept, ...full])
  }
}

/** Sorted, without paths that lie below others of the list. */
export function outermost(paths: Iterable<string>): string[] {
  const all = new Set(paths)
  const above = (path: string): boolean => {
    for (let at = path; at !== '/';) {
      at = posix.dirname(at)
      if (all.has(at)) return true
    }
    return false
  }
  return [...all].filter(path => !above(path)).sort(compareText)
}
