import { constants, lstatSync, realpathSync, statSync } from 'node:fs'
import { constants as system } from 'node:os'
import { dirname } from 'node:path'
import { isHostGrant } from '../authority/destination.ts'
import { execPaths } from '../authority/exec.ts'
import { inside, outermost } from '../authority/paths.ts'
import { seccompPlan } from '../authority/syscall.ts'
import { memoryBytes, type Contract } from '../contract/schema.ts'
import { AmbitError } from '../errors.ts'
import { programTriples } from '../evidence/programs.ts'
import type { LandlockAccess, LaunchPlan, Layer, Mount, NativeAddon } from '../native.ts'
import { ownFiles } from './own-files.ts'
import type { CellOverlays } from './overlays.ts'
import type { Program } from './programs.ts'
import { elfInterpreters, ELF_INTERPRETERS, linksFollowed, realpathOrNull, rootBuilder } from './root.ts'
import { O_PATH, type Ids } from './see.ts'

export const WORKSPACE = '/workspace'
/** Where a cell finds what ambit hands it: the job's driver and secrets delivered by file. */
export const HANDED = '/run/ambit'
const MIB = 1024 * 1024

/**
 * Host ids of cells: above the range that systemd-nspawn allots (524288 to 1879048191) and below 2^31, 65536 for each cell,
 * so that no two cells share an id and none is a person's.
 */
const ID_BASE = 1_879_048_192
const ID_COUNT = 65_536
export const CELL_SLOTS = 256

/** The id belongs to a cell: nobody who asks the daemon for anything may have it. */
export function isCellId(uid: number): boolean {
  return uid >= ID_BASE && uid < ID_BASE + CELL_SLOTS * ID_COUNT
}

/** The host ids of a slot's cells. */
export function idsOf(slot: number): { base: number; count: number } {
  return { base: ID_BASE + slot * ID_COUNT, count: ID_COUNT }
}

/** Where shared libraries are mapped from, and programs of packages: only root writes there. */
const LIBRARIES = ['/usr', '/lib', '/lib32', '/lib64', '/libx32', '/bin', '/sbin', '/opt', '/nix', '/snap', '/etc']

export type PlanRequest = {
  id: string
  slot: number
  contract: Contract
  argv: string[]
  env: string[]
  stdio: [number, number, number]
  /** The caller's directory as a descriptor of the daemon. */
  workspace: number
  /** Whose rights decide what can be shown, and who owns what the cell writes. */
  owner: Ids
  /** Name below /run/ambit and content. */
  handed: { name: string; content: string; mode: number }[]
  overlays: CellOverlays
  /** Those whose content the contract names, opened. */
  programs: readonly Program[]
}

/**
 * Everything that the spawner needs to know, decided here: the native side decides nothing. `opened` gets descriptors that
 * the plan needs until it has been handed over, also if this throws; the caller closes them.
 */
export function launchPlan(native: NativeAddon, request: PlanRequest, opened: number[]): LaunchPlan {
  const { contract, owner } = request
  const { authority, mode, limits, workspace, rootfs } = contract.spec
  const enforce = mode === 'enforce'
  const { read, write } = authority.filesystem
  const exec = execPaths(authority.exec)
  // Of an image the kernel finds its own, when the rules are made in the cell.
  const interpreters = rootfs === undefined ? elfInterpreters() : ELF_INTERPRETERS

  const writable = hostWrites(contract)
  // Where a job can write and nothing that it may execute lies, nothing is executed: neither by name nor through the loader.
  const noexec = (tree: string): boolean =>
    contract.spec.noexec.some(folder => inside(tree, folder)) || (enforce && !exec.some(path => path === '*' || inside(path, tree) || inside(tree, path)))
  const ownRun = rootfs !== undefined || request.overlays.system.length > 0

  const mounts: Mount[] = [
    ...(rootfs === undefined ? hostMounts(request, writable, interpreters, noexec) : [imageMount(request, rootfs)]),
    { type: 'tmpfs', target: '/dev/shm', sizeBytes: 64 * MIB, mode: 0o1777, noexec: noexec('/dev/shm') },
    { type: 'tmpfs', target: '/tmp', sizeBytes: 512 * MIB, mode: 0o1777, noexec: noexec('/tmp') },
    // Packages keep their locks and sockets there.
    ...(ownRun ? [{ type: 'tmpfs', target: '/run', sizeBytes: 16 * MIB, mode: 0o755, noexec: true } as const, { type: 'directory', target: '/run/lock', mode: 0o1777 } as const] : []),
    // In an image and in an overlay of /etc they lie in a layer of their own.
    ...(rootfs !== undefined || request.overlays.system.some(({ tree }) => tree === '/etc') ? [] : ownFiles(request.id).map(({ name, content }): Mount => ({ type: 'file', target: `/etc/${name}`, content, mode: 0o644 }))),
    { type: 'directory', target: HANDED, mode: 0o755 },
    ...request.handed.map(({ name, content, mode: bits }): Mount => ({ type: 'file', target: `${HANDED}/${name}`, content, mode: bits })),
  ]
  for (const path of writable) mounts.push({ type: 'bind', source: path, target: path, readonly: false, recursive: false, noexec: noexec(path), asUser: owner, idmapOwner: owner, optional: skips(contract) })
  mounts.push(...socketMounts(contract, owner, writable))
  if (workspace !== 'none') mounts.push(...workspaceMounts(native, request, enforce, noexec, opened))

  return {
    id: request.id,
    argv: request.argv,
    env: request.env,
    cwd: workspace === 'none' ? '/tmp' : WORKSPACE,
    stdio: request.stdio,
    ids: idsOf(request.slot),
    hostname: 'cell',
    mounts,
    seccomp: filterFor(native, authority.syscall, { programsListed: enforce && !exec.includes('*'), setIdHarmless: workspace !== 'shared' && writable.length === 0, ...(contract.spec.capabilities.includes('SETUID') && { keptUser: ID_COUNT - 1 }) }),
    landlock: enforce && native.landlockAbi() > 0 ? { rules: landlockRules(read, [...write, ...authority.network.flatMap(grant => (isHostGrant(grant) ? [] : [grant.unix]))], [...unpinned(exec, request.programs), ...request.programs.map(({ real }) => real)], interpreters.map(path => (rootfs === undefined ? realpathSync(path) : path)), ownRun) } : null,
    userNamespaces: authority.syscall.allow.includes('unshare'),
    capabilities: contract.spec.capabilities,
    rlimits: [
      // Not 0: a core_pattern that is a pipe ignores the limit, except for 1 (core(5)), and its reader is the host's root.
      { name: 'core', soft: 1, hard: 1 },
      { name: 'nofile', soft: limits.openFiles, hard: limits.openFiles },
      { name: 'memlock', soft: Math.min(memoryBytes(limits.memory), 64 * MIB), hard: Math.min(memoryBytes(limits.memory), 64 * MIB) },
    ],
    uid: 0,
    gid: 0,
  }
}

/**
 * The programs that the contract lists, as the kernel knows the host's files (NativeProbes.holdPrograms). Null: any may be
 * executed, or they lie in an image or an overlay, whose files have other numbers: there Landlock holds them.
 */
export function programsHeld({ contract: { spec }, workspace, overlays, programs }: Pick<PlanRequest, 'contract' | 'workspace' | 'overlays' | 'programs'>): BigUint64Array | null {
  const exec = execPaths(spec.authority.exec)
  if (spec.mode !== 'enforce' || exec.includes('*') || spec.rootfs !== undefined || overlays.system.length > 0) return null
  const own = exec.some(path => inside(path, WORKSPACE))
  if (own && spec.workspace === 'overlay') return null
  const listed = unpinned(exec, programs).filter(path => !inside(path, WORKSPACE) && !inside(path, '/tmp'))
  return programTriples([...listed, ...elfInterpreters()], [...(own ? [workspace] : []), ...programs.map(({ fd }) => fd)])
}

function unpinned(exec: readonly string[], programs: readonly Program[]): string[] {
  return exec.filter(path => !programs.some(program => program.path === path))
}

/** The image, the cell's own folders and files above it, and where writes go if they may. */
function imageMount({ overlays, owner }: PlanRequest, rootfs: string): Mount {
  const { own, store } = overlays.root!
  // Root's image keeps its owners' numbers; of others', only what is the caller's own is the cell's root's.
  const image: Layer = owner.uid === 0 ? { source: rootfs, idmapAll: true } : { source: rootfs, asUser: owner, idmapOwner: owner }
  return { type: 'overlay', target: '/', ...(store === null ? {} : { upper: { source: store } }), lower: [{ source: own }, image] }
}

/** What the cell shows of the host: what the contract grants, or in observe mode all that is no door to its services. */
function hostMounts(request: PlanRequest, writable: readonly string[], interpreters: readonly string[], noexec: (tree: string) => boolean): Mount[] {
  const { contract: { spec }, owner, overlays } = request
  const { authority: { filesystem: { read } } } = spec
  const exec = execPaths(spec.authority.exec)
  const root = rootBuilder(writable, owner.uid === 0 ? undefined : owner)
  if (spec.mode === 'enforce') {
    for (const path of read) root.expose(path)
    if (exec.length > 0) for (const path of interpreters) root.expose(path)
    for (const path of exec) if (path !== '*') root.expose(path)
    const programs = new Set(exec.flatMap(path => [path, realpathOrNull(path)]))
    const folders = new Set(exec.filter(path => path !== '*' && !inside(path, WORKSPACE)).map(path => dirname(path)))
    // A program is also known by the links beside it ("sh" for "dash"), and by those of the top folder ("/bin" for "/usr/bin").
    root.exposeLinks([...folders].filter(folder => statSync(folder, { throwIfNoEntry: false })?.isDirectory() === true), real => programs.has(real))
    root.exposeLinks(['/etc'], real => root.shows(real))
    root.exposeTopLinks()
    root.expose('/etc/ld.so.cache')
  } else {
    root.exposeHost()
  }
  // The checked file itself, whatever lies at its path by now.
  const pinned = request.programs.map(({ path, real, fd }): Mount => {
    if (root.expose(path) !== real) throw new AmbitError('CELL_FAILED', { attempted: `show ${path} in the cell`, why: `it led to ${real} when its content was checked, and now leads elsewhere`, remedy: 'try again; if it goes on, find out what changes it' })
    return { type: 'bind', source: fd, target: real, readonly: true, recursive: false, noexec: false, nobody: spec.mode === 'enforce' }
  })
  // Links that lead into a tree that is written through an overlay are shown as those into one that is read.
  for (const { tree } of overlays.system) root.expose(tree)
  const shown = root.mounts().filter(({ target }) => !pinned.some(one => one.target === target)).map((mount): Mount => (mount.type === 'bind' ? { ...mount, nobody: spec.mode === 'enforce' } : mount)).filter(({ target }) => !overlays.system.some(({ tree }) => inside(target, tree)))
  return [
    ...shown.map(mount => (mount.type === 'bind' && !LIBRARIES.some(tree => inside(mount.target, tree)) ? { ...mount, noexec: noexec(mount.target) } : mount)),
    ...overlays.system.map(({ tree, store }): Mount => ({
      type: 'overlay', target: tree, upper: { source: store }, lower: [{ source: tree, idmapAll: true }], noexec: !LIBRARIES.some(folder => inside(tree, folder)) && noexec(tree),
    })),
    ...pinned,
  ]
}

/** Unix sockets that the contract grants, each by itself; what lies in a tree that is granted for writing is there already. */
function socketMounts({ spec }: Contract, caller: Ids, writable: readonly string[]): Mount[] {
  const granted = spec.authority.network.flatMap(grant => (isHostGrant(grant) ? [] : [grant.unix]))
  return granted.filter(path => !writable.some(tree => inside(path, tree))).map((path): Mount => {
    const refused = (why: string, remedy: string): AmbitError => new AmbitError('CELL_FAILED', { attempted: `show the socket ${path} in the cell`, why, remedy })
    const stat = lstatSync(path, { throwIfNoEntry: false })
    if (stat === undefined) throw refused('there is no such file', 'start its server first, or take the grant out of the contract')
    if (!stat.isSocket()) throw refused('it is no socket', 'name the socket itself, where links lead')
    // The cell may speak to it as its owner would: only whoever may do so may let it. Of the caller's groups the first alone is known.
    const bit = stat.uid === caller.uid ? 0o200 : stat.gid === caller.gid ? 0o020 : 0o002
    if (caller.uid !== 0 && (stat.mode & bit) === 0) throw refused('whoever called may not write to it', 'ask for the right to connect to it, or take the grant out of the contract')
    return { type: 'bind', source: path, target: path, readonly: true, recursive: false, noexec: true, socket: true, asUser: caller, idmapOwner: { uid: stat.uid, gid: stat.gid } }
  })
}

/** Trees that the contract grants for writing and that are not the cell's own. A tree in another comes with it. */
export function writesOutside(write: readonly string[]): string[] {
  const ownOfCell = ['/proc', '/sys', '/dev', '/tmp', WORKSPACE]
  return outermost(write.filter(path => path !== '/' && !ownOfCell.some(own => inside(path, own))))
}

/** Trees of the host that what the job writes really changes. */
export function hostWrites({ spec }: Contract): string[] {
  return spec.rootfs !== undefined || spec.system === 'overlay' ? [] : writableTrees(spec.authority.filesystem.write)
}

/**
 * Host trees that the job may write, named as the contract names them: the spawner follows no link, and refuses what leads
 * through one.
 */
export function writableTrees(write: readonly string[]): string[] {
  const trees = writesOutside(write)
  // What a job leaves there would lead later cells, of other contracts, wherever it likes.
  const trusted = trees.find(linksFollowed)
  if (trusted !== undefined) {
    throw new AmbitError('CELL_FAILED', {
      attempted: `let the job write to ${trusted}`, why: 'links there are followed when cells are built: they are taken for the host\'s packages\'',
      remedy: 'grant writing to a directory of the job\'s own, below /var, /srv, /opt or /usr/local; or set "system: overlay": what is written then changes nothing on the host',
    })
  }
  return trees
}

const filters = new Map<string, Buffer>()
const KEPT_FILTERS = 64

/** Compiling a filter takes ten times as long as building the rest of a cell, and jobs come back with the same one. */
function filterFor(native: NativeAddon, declared: Contract['spec']['authority']['syscall'], about: Parameters<typeof seccompPlan>[1]): Buffer {
  const key = JSON.stringify([declared, about])
  const known = filters.get(key)
  if (known !== undefined) return known
  const filter = native.buildSeccomp(seccompPlan(declared, about))
  if (filters.size >= KEPT_FILTERS) filters.delete(filters.keys().next().value!)
  filters.set(key, filter)
  return filter
}

/** A second fence behind the root: the same grants, held by the kernel against the job itself. */
function landlockRules(read: readonly string[], write: readonly string[], exec: readonly string[], interpreters: readonly string[], ownRun: boolean): { path: string; access: LandlockAccess[] }[] {
  const rules = new Map<string, Set<LandlockAccess>>()
  const grant = (path: string, ...access: LandlockAccess[]): void => {
    const held = rules.get(path) ?? new Set()
    for (const one of access) held.add(one)
    rules.set(path, held)
  }
  for (const path of ['/proc', '/dev', ...(ownRun ? ['/run'] : [])]) grant(path, 'read', 'write')
  for (const path of ['/etc/resolv.conf', '/etc/hosts', '/etc/hostname', '/etc/ld.so.cache', HANDED]) grant(path, 'read')
  for (const path of read) grant(path, 'read')
  for (const path of write) grant(path, 'read', 'write')
  for (const path of exec) {
    if (path === '*') grant('/', 'execute')
    // What the job builds and then runs is not there yet when the rules are made: the tree that holds it is granted.
    else if (inside(path, WORKSPACE)) grant(WORKSPACE, 'execute')
    else if (inside(path, '/tmp')) grant('/tmp', 'execute')
    else grant(path, 'read', 'execute')
  }
  // The kernel opens the interpreter of a dynamic program with the same check as the program.
  if (exec.length > 0) for (const path of interpreters) grant(path, 'read', 'execute')
  return [...rules].map(([path, access]) => ({ path, access: [...access] }))
}

/**
 * The caller's directory: whole and writable, or read-only with the granted parts of it writable on top, each found below
 * its descriptor without following a link. Not there at all where the contract grants nothing in it.
 */
function workspaceMounts(native: NativeAddon, request: PlanRequest, enforce: boolean, noexec: (tree: string) => boolean, opened: number[]): Mount[] {
  const { read, write } = request.contract.spec.authority.filesystem
  const exec = execPaths(request.contract.spec.authority.exec)
  const { workspace: store } = request.overlays
  const mount = (source: number, target: string, readonly: boolean): Mount => ({ type: 'bind', source, target, readonly, recursive: false, noexec: noexec(target), idmapOwner: request.owner })
  const granted = [...read, ...write, ...exec].some(path => path === '/' || path === '*' || inside(path, WORKSPACE))
  if (enforce && !granted) return [{ type: 'directory', target: WORKSPACE, mode: 0o755 }]
  const whole = !enforce || write.some(path => path === '/' || path === WORKSPACE)
  if (store !== null && (whole || write.some(path => inside(path, WORKSPACE)))) {
    // Writable as a whole: which part of it the job may write is for Landlock to say, and for whoever applies the changes.
    return [{ type: 'overlay', target: WORKSPACE, upper: { source: store, idmapOwner: request.owner }, lower: [{ source: request.workspace, idmapOwner: request.owner }], noexec: noexec(WORKSPACE), fromJobs: true }]
  }
  if (whole) return [mount(request.workspace, WORKSPACE, false)]
  const parts = outermost(write.filter(path => inside(path, WORKSPACE)))
  return [mount(request.workspace, WORKSPACE, true), ...parts.flatMap(path => {
    try {
      const part = native.openBeneath(request.workspace, path.slice(WORKSPACE.length + 1), O_PATH | constants.O_NOFOLLOW, 0)
      opened.push(part)
      return [mount(part, path, false)]
    } catch (error) {
      if (skips(request.contract) && (error as { errno?: number }).errno === system.errno.ENOENT) return []
      throw error
    }
  })]
}

/** Granted paths that are not there are left out. */
function skips({ spec }: Contract): boolean {
  return spec.missingPaths === 'skip'
}
