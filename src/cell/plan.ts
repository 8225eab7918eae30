import { existsSync, realpathSync } from 'node:fs'
import { dirname } from 'node:path'
import { seccompPlan } from '../authority/syscall.ts'
import { memoryBytes, type Contract } from '../contract/schema.ts'
import type { LandlockAccess, LaunchPlan, Mount, NativeAddon } from '../native.ts'
import { elfInterpreters, realpathOrNull, rootBuilder, type RootBuilder } from './root.ts'

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
  owner: { uid: number; gid: number }
  cgroups: { v2: string; v1: string[] }
  /** Name below /run/ambit and content. */
  handed: { name: string; content: string; mode: number }[]
}

/** Everything that the spawner needs to know, decided here: the native side decides nothing. */
export function launchPlan(native: NativeAddon, request: PlanRequest): LaunchPlan {
  const { contract, owner } = request
  const { authority, mode, limits, workspace } = contract.spec
  const enforce = mode === 'enforce'
  const { read, write } = authority.filesystem
  const exec = authority.exec
  const interpreters = elfInterpreters()

  const root = rootBuilder(owner.uid === 0 ? undefined : owner)
  if (enforce) {
    for (const path of read) root.expose(path)
    if (exec.length > 0) for (const path of interpreters) root.expose(path)
    for (const path of exec) if (path !== '*') root.expose(path)
    const programs = new Set(exec.flatMap(path => [path, realpathOrNull(path)]))
    const folders = new Set(exec.filter(path => path !== '*' && !inside(path, WORKSPACE)).map(path => dirname(path)))
    // A program is also known by the links beside it ("sh" for "dash"), and by those of the top folder ("/bin" for "/usr/bin").
    root.exposeLinks([...folders].filter(folder => existsSync(folder)), real => programs.has(real))
    root.exposeLinks(['/etc'], real => root.shows(real))
    root.exposeTopLinks()
    root.expose('/etc/ld.so.cache')
  } else {
    root.exposeHost()
  }

  const writable = writableTrees(write, root)
  const mounts: Mount[] = [
    ...root.mounts(),
    { type: 'proc', target: '/proc' },
    ...devices(),
    { type: 'tmpfs', target: '/tmp', sizeBytes: 512 * MIB, mode: 0o1777 },
    ...ownFiles(request.id),
    { type: 'directory', target: HANDED, mode: 0o755 },
    ...request.handed.map(({ name, content, mode: bits }): Mount => ({ type: 'file', target: `${HANDED}/${name}`, content, mode: bits })),
  ]
  for (const path of writable) mounts.push({ type: 'bind', source: path, target: path, readonly: false, recursive: false, asUser: owner, idmapOwner: owner })
  if (workspace === 'shared') {
    const readonly = enforce && !write.some(path => path === '/' || inside(path, WORKSPACE))
    mounts.push({ type: 'bind', source: request.workspace, target: WORKSPACE, readonly, recursive: false, idmapOwner: owner })
  }

  return {
    id: request.id,
    argv: request.argv,
    env: request.env,
    cwd: workspace === 'shared' ? WORKSPACE : '/tmp',
    stdio: request.stdio,
    cgroups: request.cgroups,
    ids: { base: ID_BASE + request.slot * ID_COUNT, count: ID_COUNT },
    hostname: 'cell',
    rootSizeBytes: 64 * MIB,
    mounts,
    seccomp: filterFor(native, authority.syscall),
    landlock: enforce && native.landlockAbi() > 0 ? { rules: landlockRules(read, write, exec, interpreters) } : null,
    rlimits: [
      { name: 'core', soft: 0, hard: 0 },
      { name: 'nofile', soft: limits.openFiles, hard: limits.openFiles },
      { name: 'memlock', soft: Math.min(memoryBytes(limits.memory), 64 * MIB), hard: Math.min(memoryBytes(limits.memory), 64 * MIB) },
    ],
    uid: 0,
    gid: 0,
  }
}

/**
 * Host trees that the job may write, as they really are: the spawner follows no link. One in another comes with it, and
 * nothing is mounted inside a tree that jobs can write. A missing one stays, for the spawner to refuse by name.
 */
function writableTrees(write: readonly string[], root: RootBuilder): string[] {
  const ownOfCell = ['/proc', '/sys', '/dev', '/tmp', WORKSPACE]
  const trees = write
    .filter(path => path !== '/' && !ownOfCell.some(own => inside(path, own)))
    .map(path => root.lead(path) ?? path)
  return [...new Set(trees)].filter(path => !trees.some(other => other !== path && inside(path, other)))
}

const filters = new Map<string, Buffer>()
const KEPT_FILTERS = 64

/** Compiling a filter takes ten times as long as building the rest of a cell, and jobs come back with the same one. */
function filterFor(native: NativeAddon, declared: Contract['spec']['authority']['syscall']): Buffer {
  const key = JSON.stringify(declared)
  const known = filters.get(key)
  if (known !== undefined) return known
  const filter = native.buildSeccomp(seccompPlan(declared))
  if (filters.size >= KEPT_FILTERS) filters.delete(filters.keys().next().value!)
  filters.set(key, filter)
  return filter
}

/** A second fence behind the root: the same grants, held by the kernel against the job itself. */
function landlockRules(read: readonly string[], write: readonly string[], exec: readonly string[], interpreters: readonly string[]): { path: string; access: LandlockAccess[] }[] {
  const rules = new Map<string, Set<LandlockAccess>>()
  const grant = (path: string, ...access: LandlockAccess[]): void => {
    const held = rules.get(path) ?? new Set()
    for (const one of access) held.add(one)
    rules.set(path, held)
  }
  for (const path of ['/proc', '/dev']) grant(path, 'read', 'write')
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
  if (exec.length > 0) for (const path of interpreters) grant(realpathSync(path), 'read', 'execute')
  return [...rules].map(([path, access]) => ({ path, access: [...access] }))
}

function devices(): Mount[] {
  const node = (name: string): Mount => ({ type: 'bind', source: `/dev/${name}`, target: `/dev/${name}`, readonly: false, recursive: false, device: true, noexec: true })
  const link = (name: string, to: string): Mount => ({ type: 'symlink', target: `/dev/${name}`, to })
  return [
    { type: 'tmpfs', target: '/dev', sizeBytes: MIB, mode: 0o755 },
    ...['null', 'zero', 'full', 'random', 'urandom', 'tty'].map(node),
    { type: 'devpts', target: '/dev/pts' },
    { type: 'tmpfs', target: '/dev/shm', sizeBytes: 64 * MIB, mode: 0o1777 },
    link('fd', '/proc/self/fd'), link('stdin', '/proc/self/fd/0'), link('stdout', '/proc/self/fd/1'), link('stderr', '/proc/self/fd/2'), link('ptmx', 'pts/ptmx'),
  ]
}

function ownFiles(id: string): Mount[] {
  const file = (target: string, content: string): Mount => ({ type: 'file', target, content, mode: 0o644 })
  return [
    file('/etc/resolv.conf', 'nameserver 127.0.0.1\noptions timeout:5 attempts:2\n'),
    file('/etc/hosts', '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 cell\n'),
    file('/etc/hostname', `cell-${id}\n`),
  ]
}

/** `path` is `folder` or lies below it. */
export function inside(path: string, folder: string): boolean {
  return path === folder || path.startsWith(folder === '/' ? '/' : `${folder}/`)
}
