import { execFile } from 'node:child_process'
import { chmodSync, chownSync, existsSync, fstatSync, lstatSync, mkdirSync, readdirSync, readlinkSync, realpathSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Contract } from '../contract/schema.ts'
import { AmbitError } from '../errors.ts'
import type { NativeAddon } from '../native.ts'
import { CHANGES_FILE, type ChangesFile } from '../changes/changes.ts'
import { hide } from './hidden.ts'
import { ownFiles } from './own-files.ts'
import { idsOf, writesOutside } from './plan.ts'
import type { Ids } from './see.ts'

/** Longer than the longest cell runs (5 days): what is older belongs to nobody who still waits for it. */
const KEPT_MS = 7 * 24 * 3600 * 1000

/** A directory of the daemon's that holds `upper` and `work`. */
type Store = string

export type CellOverlays = {
  workspace: Store | null
  /** The image's: a layer of the cell's own folders and files above it, and where writes go, if any may be. */
  root: { own: string; store: Store | null } | null
  /** Of the host's directories that the contract grants for writing: where writes go, and what hides what others may not read. */
  system: { tree: string; store: Store }[]
  /** After the end: keeps what was written to the workspace, for its owner, and nothing else. Where that is, or null: nothing was written. */
  keep(): Promise<string | null>
  /** Removes all of it; for a cell that was never built. */
  discard(): Promise<void>
}

export type OverlayRequest = {
  id: string
  slot: number
  contract: Contract
  owner: Ids
  /** The caller's directory, as a descriptor. */
  workspace: number
  /** The daemon's own directories: empty in a cell, whoever may read them. */
  own: readonly string[]
}

/**
 * Makes what a cell's overlays need in a directory of its own below `dir`, which nobody but root enters while the cell runs.
 * What is written takes as much of that file system as there is: nothing limits it.
 */
export async function openOverlays(native: NativeAddon, dir: string, request: OverlayRequest): Promise<CellOverlays> {
  const { id, contract: { spec }, owner } = request
  const { base, count } = idsOf(request.slot)
  const root = { uid: base, gid: base }
  const shift = (host: number): number => base + Math.min(host, count - 1)
  const overlays: CellOverlays = { workspace: null, root: null, system: [], keep: async () => null, discard: async () => {} }
  const trees = spec.system === 'overlay' ? writesOutside(spec.authority.filesystem.write) : []
  if (spec.workspace !== 'overlay' && spec.rootfs === undefined && trees.length === 0) return overlays
  if (trees.length > 0 && owner.uid !== 0) throw systemRefused(trees[0]!)

  mkdirSync(dir, { recursive: true, mode: 0o711 })
  // The spawner follows no link.
  const home = join(realpathSync(dir), id)
  mkdirSync(home, { mode: 0o700 })
  const folder = (name: string, ids: Ids, mode: number): string => {
    const path = join(home, name)
    mkdirSync(path, { mode: 0o700 })
    chownSync(path, ids.uid, ids.gid)
    chmodSync(path, mode)
    return path
  }
  const store = (name: string, ids: Ids, mode: number): Store => {
    const path = folder(name, ids, 0o700)
    folder(`${name}/upper`, ids, mode)
    folder(`${name}/work`, ids, 0o700)
    return path
  }
  const writeOwn = (etc: string): void => {
    for (const { name, content } of ownFiles(id)) {
      writeFileSync(join(etc, name), content, { flag: 'wx', mode: 0o644 })
      chownSync(join(etc, name), base, base)
    }
  }
  overlays.discard = () => remove(home)
  const started = new Date()
  overlays.keep = () => keepWorkspace(home, overlays.workspace, request, started)
  try {
    // On disk these are the caller's own from the start: the mount gives them to the cell's root.
    if (spec.workspace === 'overlay') overlays.workspace = store('workspace', owner, fstatSync(request.workspace).mode & 0o777)
    if (spec.rootfs !== undefined) {
      const own = folder('image-own', root, 0o755)
      for (const name of ['proc', 'dev', 'tmp', 'run', 'workspace', 'etc']) folder(`image-own/${name}`, root, 0o755)
      writeOwn(join(own, 'etc'))
      overlays.root = { own, store: spec.rootfsWrites === 'overlay' ? store('image', root, 0o755) : null }
    }
    for (const [index, tree] of trees.entries()) {
      const about = statSync(tree)
      const ids = { uid: shift(about.uid), gid: shift(about.gid) }
      const place = store(`system-${index}`, ids, about.mode & 0o1777)
      // In the upper layer: a lower one that lies in another, as these do in /var, is none to the kernel (ELOOP).
      await hide(native, { tree, mask: join(place, 'upper'), own: [...request.own, realpathSync(dir)], shift })
      if (tree === '/etc') writeOwn(join(place, 'upper'))
      overlays.system.push({ tree, store: place })
    }
  } catch (error) {
    await overlays.discard()
    throw error
  }
  return overlays
}

/** Those of a cell that a former daemon let go: `keep` is all that is left to be done. */
export function formerOverlays(dir: string, request: Pick<OverlayRequest, 'id' | 'contract' | 'owner' | 'workspace'>, started: Date): Pick<CellOverlays, 'keep'> {
  const home = join(dir, request.id)
  const store = join(home, 'workspace')
  return { keep: async () => (existsSync(home) ? keepWorkspace(home, existsSync(store) ? store : null, request, started) : null) }
}

/** Removes what a cell wrote that died with a former daemon. What its owner was given already stays. */
export async function dropChanges(dir: string, id: string): Promise<void> {
  const home = join(dir, id)
  const about = lstatSync(home, { throwIfNoEntry: false })
  if (about?.uid === 0 && !existsSync(join(home, CHANGES_FILE))) await remove(home)
}

/** Removes what nobody came back for. What cannot be removed is told, and keeps no daemon from starting. */
export async function pruneChanges(dir: string, tell: (path: string, error: unknown) => void): Promise<void> {
  if (!existsSync(dir)) return
  for (const name of readdirSync(dir)) {
    const home = join(dir, name)
    const about = lstatSync(home, { throwIfNoEntry: false })
    if (about === undefined) continue
    // An owner who is not root cannot remove the directory itself.
    const emptied = about.uid !== 0 && !existsSync(join(home, CHANGES_FILE))
    if (emptied || Date.now() - about.mtimeMs > KEPT_MS) await remove(home).catch(error => tell(home, error))
  }
}

async function keepWorkspace(home: string, store: Store | null, { id, contract, owner, workspace }: Pick<OverlayRequest, 'id' | 'contract' | 'owner' | 'workspace'>, started: Date): Promise<string | null> {
  const written = store !== null && readdirSync(join(store, 'upper')).length > 0
  if (!written) {
    await remove(home)
    return null
  }
  await remove(join(store, 'work'), ...readdirSync(home).filter(name => name !== 'workspace').map(name => join(home, name)))
  const about = fstatSync(workspace, { bigint: true })
  const changes: ChangesFile = {
    cell: id, contract: contract.metadata.name, started: started.toISOString(), ended: new Date().toISOString(),
    workspace: { path: readlinkSync(`/proc/self/fd/${workspace}`), dev: String(about.dev), ino: String(about.ino) },
  }
  writeFileSync(join(home, CHANGES_FILE), `${JSON.stringify(changes, null, 2)}\n`, { flag: 'wx', mode: 0o600 })
  chownSync(join(home, CHANGES_FILE), owner.uid, owner.gid)
  // Last: from now on it is the owner's.
  chownSync(home, owner.uid, owner.gid)
  return home
}

/**
 * By rm, which goes down by descriptors: a job can leave a tree deeper than any path can name, and Node's own removal goes by paths.
 * No link is followed.
 */
async function remove(...paths: string[]): Promise<void> {
  await promisify(execFile)('rm', ['-rf', '--one-file-system', '--', ...paths])
}

function systemRefused(tree: string): AmbitError {
  return new AmbitError('FORBIDDEN', {
    attempted: 'build the cell', why: `"system: overlay" shows ${tree} as its owner root sees it, and only root may ask for that`,
    remedy: 'run from an image of your own (rootfs, rootfsWrites: overlay), or ask as root',
  })
}
