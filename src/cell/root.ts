import { lstatSync, readdirSync, readlinkSync, realpathSync, statSync, type Stats } from 'node:fs'
import { dirname, join, posix } from 'node:path'
import { inside } from '../authority/paths.ts'
import { AmbitError } from '../errors.ts'
import type { Mount } from '../native.ts'
import { maySearch } from './see.ts'

/** Never part of a cell's view of the host, even when the contract grants "/": they are the cell's own, or doors to the host's services. */
const OWN = new Set(['/proc', '/sys', '/dev', '/run', '/tmp', '/boot', '/workspace', '/lost+found', '/var/run'])
/**
 * Where links are followed: folders that the host's packages fill. Elsewhere a job that once could write there may have
 * left a link, and would choose what a later cell gets to see.
 */
const LINKS_FOLLOWED = ['/usr', '/etc', '/nix', '/snap']
/** Among them, but filled by people: jobs may be let write there. */
const NOT_FOLLOWED = ['/usr/local', '/usr/src']

/** A link at this path is of the host's packages. */
export function linksFollowed(path: string): boolean {
  return LINKS_FOLLOWED.some(folder => inside(path, folder)) && !NOT_FOLLOWED.some(folder => inside(path, folder))
}

/** Files of /etc that a cell gets as its own. */
const OWN_ETC = new Set(['resolv.conf', 'hosts', 'hostname', 'mtab'])

/**
 * A cell's root, built by adding: what is not exposed is not there. Symbolic links are rebuilt as links,
 * so that a path in the cell leads where the same path leads on the host, and nothing is followed by the kernel
 * while mounting.
 */
export type RootBuilder = {
  /** Shows a host path, read-only, with the links that lead to it, and tells where they lead. A path that does not exist is skipped: null. */
  expose(path: string): string | null
  /** Shows every top-level directory of the host but those that are the cell's own. */
  exposeHost(): void
  /** Links in the given directories that lead to a path for which `wanted` holds ("sh" for "dash"). */
  exposeLinks(directories: Iterable<string>, wanted: (real: string) => boolean): void
  /** Links of the top folder that lead to a folder that holds something shown ("/bin" for "/usr/bin"). */
  exposeTopLinks(): void
  /** Whether a path of the host, without links in it, is shown, itself or through a directory above it. */
  shows(path: string): boolean
  mounts(): Mount[]
}

/**
 * `asUser`: whose rights decide what can be shown; without it root's. `writable`: granted trees that jobs may write.
 * A path that leads through a link where none is followed throws CELL_FAILED.
 */
export function rootBuilder(writable: readonly string[], asUser?: { uid: number; gid: number }): RootBuilder {
  const binds = new Map<string, Mount>()
  const links = new Map<string, Mount>()

  const covered = (path: string): boolean => {
    for (let at = path; ; at = dirname(at)) {
      if (binds.has(at)) return true
      if (at === '/') return false
    }
  }

  const bind = (path: string): void => {
    if (covered(path)) return
    binds.set(path, { type: 'bind', source: path, target: path, readonly: true, recursive: true, optional: true, ...(asUser ? { asUser } : {}) })
  }

  const link = (path: string, to: string): void => {
    if (!covered(dirname(path))) links.set(path, { type: 'symlink', target: path, to })
  }

  const exposeEtc = (): void => {
    for (const entry of readdirSync('/etc', { withFileTypes: true })) {
      if (OWN_ETC.has(entry.name)) continue
      const path = join('/etc', entry.name)
      if (entry.isSymbolicLink()) link(path, readlinkSync(path))
      else if (entry.isFile() || entry.isDirectory()) bind(path)
    }
  }

  const lead = (path: string, depth = 0): string | null => {
    if (depth > 40) return null
    const parts = posix.normalize(path).split('/').filter(Boolean)
    let at = ''
    for (const [index, part] of parts.entries()) {
      at = `${at}/${part}`
      if (OWN.has(at)) return null
      const stat = lstatOrNull(at)
      if (stat === null) return null
      if (stat.isDirectory() && asUser !== undefined && !maySearch(stat, asUser)) return null
      if (stat.isSymbolicLink()) {
        const trusted = dirname(at) === '/' || (linksFollowed(at) && !writable.some(tree => inside(at, tree)))
        if (!trusted) throw linkRefused(path, at)
        const to = readlinkSync(at)
        link(at, to)
        return lead(posix.resolve(dirname(at), to, ...parts.slice(index + 1)), depth + 1)
      }
    }
    return dirname(at) === '/etc' && OWN_ETC.has(parts.at(-1)!) ? null : at === '' ? '/' : at
  }

  const expose = (path: string): string | null => {
    const real = lead(path)
    if (real === '/') exposeHost()
    else if (real === '/etc') exposeEtc()
    else if (real !== null) bind(real)
    return real
  }

  const exposeHost = (): void => {
    for (const entry of readdirSync('/', { withFileTypes: true })) {
      const path = `/${entry.name}`
      if (entry.isSymbolicLink()) link(path, readlinkSync(path))
      else if (entry.isDirectory()) expose(path)
    }
  }

  return {
    expose,
    exposeHost,
    exposeLinks(directories, wanted) {
      for (const directory of directories) {
        if (covered(directory)) continue
        for (const { path, real } of linksOf(directory)) {
          // What is remembered only saves the look at the many that are not wanted.
          if (wanted(real) && linksFollowed(path) && realpathOrNull(path) === real) expose(path)
        }
      }
    },
    exposeTopLinks() {
      const shown = [...binds.keys(), ...links.keys()]
      for (const { path, to } of topLinks()) {
        const folder = posix.resolve('/', to)
        if (covered(folder) || shown.some(one => one.startsWith(`${folder}/`))) link(path, to)
      }
    },
    shows: covered,
    mounts: () => [...[...binds.values()].sort(byDepth), ...[...links.values()].filter(({ target }) => !covered(dirname(target)))],
  }
}

const remembered = new Map<string, { mtime: number; links: { path: string; real: string }[] }>()
const REMEMBERED_DIRECTORIES = 64

/** The links of a directory and where they led when it last changed: following the thousand of /usr/bin takes longer than building a cell. */
function linksOf(directory: string): { path: string; real: string }[] {
  const { mtimeMs } = statSync(directory)
  const known = remembered.get(directory)
  if (known?.mtime === mtimeMs) return known.links
  const links = readdirSync(directory, { withFileTypes: true })
    .filter(entry => entry.isSymbolicLink())
    .map(entry => ({ path: join(directory, entry.name), real: realpathOrNull(join(directory, entry.name)) }))
    .filter((one): one is { path: string; real: string } => one.real !== null)
  if (remembered.size >= REMEMBERED_DIRECTORIES) remembered.delete(remembered.keys().next().value!)
  remembered.set(directory, { mtime: mtimeMs, links })
  return links
}

let top: { mtime: number; links: { path: string; to: string }[] } | undefined

/** The links of the top folder, which only root can change. */
function topLinks(): { path: string; to: string }[] {
  const { mtimeMs } = statSync('/')
  if (top?.mtime !== mtimeMs) {
    const links = readdirSync('/', { withFileTypes: true }).filter(entry => entry.isSymbolicLink()).map(({ name }) => ({ path: `/${name}`, to: readlinkSync(`/${name}`) }))
    top = { mtime: mtimeMs, links }
  }
  return top.links
}

function linkRefused(path: string, at: string): AmbitError {
  return new AmbitError('CELL_FAILED', {
    attempted: `show ${path} in the cell`, why: `${at} is a link, and jobs may have made it: links are followed in ${LINKS_FOLLOWED.join(', ')} only`,
    remedy: 'name the path where the link leads in the contract',
  })
}

/** A directory before what lies in it. */
function byDepth(a: Mount, b: Mount): number {
  return a.target.split('/').length - b.target.split('/').length || a.target.localeCompare(b.target)
}

/** Null for what is missing, also below something that is no directory. */
function lstatOrNull(path: string): Stats | null {
  try {
    return lstatSync(path)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ENOTDIR' || code === 'ENAMETOOLONG') return null
    throw error
  }
}

export function realpathOrNull(path: string): string | null {
  try {
    return realpathSync.native(path)
  } catch {
    return null
  }
}

export const ELF_INTERPRETERS: readonly string[] = ['/lib64/ld-linux-x86-64.so.2', '/lib/ld-linux-aarch64.so.1', '/lib/ld-musl-x86_64.so.1', '/lib/ld-musl-aarch64.so.1']

/** The ELF interpreters that the host's programs ask the kernel for: part of every cell that may execute at all. */
export function elfInterpreters(): string[] {
  return interpreters ??= ELF_INTERPRETERS.filter(path => realpathOrNull(path) !== null)
}

/** They come and go with a distribution, not with a package. */
let interpreters: string[] | undefined
