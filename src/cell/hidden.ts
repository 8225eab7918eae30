import { execFile } from 'node:child_process'
import { chmodSync, chownSync, closeSync, lstatSync, mkdirSync, openSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { promisify } from 'node:util'
import { inside } from '../authority/paths.ts'
import { AmbitError } from '../errors.ts'
import type { NativeAddon } from '../native.ts'

const PATHS_BYTES_MAX = 256 * 1024 * 1024

export type Hiding = {
  /** A directory of the host, and the layer that is to lie above it. */
  tree: string
  mask: string
  /** Hidden as well, whatever their modes. */
  own: readonly string[]
  /** An owner on the host as the cell's range has it. */
  shift(id: number): number
}

/**
 * Where the host's root is the cell's root, a file's mode no longer keeps the cell from it: what others may not read on the
 * host is empty in the cell, directory or file. What appears on the host under a new name later is not.
 */
export async function hide(native: NativeAddon, { tree, mask, own, shift }: Hiding): Promise<void> {
  const made = new Set([mask])
  const owned = (path: string, like: { uid: number; gid: number; mode: number }): void => {
    chownSync(path, shift(like.uid), shift(like.gid))
    chmodSync(path, like.mode & 0o1777)
  }
  const parents = (path: string): void => {
    const folder = dirname(path)
    if (made.has(folder)) return
    parents(folder)
    mkdirSync(folder)
    owned(folder, lstatSync(join(tree, relative(mask, folder))))
    made.add(folder)
  }
  const seen: string[] = []
  for (const { kind, path, ...like } of [...await unreadable(tree), ...ownIn(tree, own)]) {
    if (seen.some(folder => inside(path, folder))) continue
    const place = join(mask, relative(tree, path))
    parents(place)
    if (kind === 'd') {
      seen.push(path)
      mkdirSync(place)
      const fd = openSync(place, 'r')
      try {
        // Nothing of the layers below shows (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
        native.setAttribute(fd, 'user.overlay.opaque', 'y')
      } finally {
        closeSync(fd)
      }
    } else {
      writeFileSync(place, '', { flag: 'wx' })
    }
    owned(place, like)
  }
}

type Found = { kind: string; path: string; mode: number; uid: number; gid: number }

function ownIn(tree: string, own: readonly string[]): Found[] {
  return own.filter(folder => inside(folder, tree) && folder !== tree).map(path => ({ kind: 'd', path, mode: 0o700, uid: 0, gid: 0 }))
}

/** Files and directories below `tree`, on its file system, that others may not read; nothing below such a directory. */
async function unreadable(tree: string): Promise<Found[]> {
  const tell = (kind: string): string[] => ['-printf', `${kind} %m %U %G %P\\0`]
  const args = [tree, '-xdev', '-mindepth', '1', '(', '-type', 'd', '!', '-perm', '-005', ...tell('d'), '-prune', ')', '-o', '(', '!', '-type', 'd', '!', '-type', 'l', '!', '-perm', '-004', ...tell('f'), ')']
  const failed = (why: string, cause?: unknown): never => {
    throw new AmbitError('CELL_FAILED', { attempted: `look for what others may not read in ${tree}`, why, remedy: 'mend that on the host, or grant writing to a smaller directory', cause })
  }
  let out: string
  try {
    out = (await promisify(execFile)('find', args, { encoding: 'utf8', maxBuffer: PATHS_BYTES_MAX, env: { ...process.env, LC_ALL: 'C' } })).stdout
  } catch (cause) {
    const { stdout, stderr, message } = cause as Error & { stdout?: string; stderr?: string }
    const problems = (stderr ?? '').split('\n').filter(line => line !== '' && !line.endsWith('No such file or directory'))
    // What went away meanwhile needs no hiding.
    if (stdout === undefined || stderr === '' || problems.length > 0) failed(problems[0] ?? message, cause)
    out = stdout!
  }
  return out.split('\0').filter(line => line !== '').map(line => {
    const [, kind, mode, uid, gid, path] = /^(.) (\d+) (\d+) (\d+) ([^]*)$/.exec(line) ?? failed('find said something else than it was asked')
    return { kind: kind!, path: join(tree, path!), mode: Number.parseInt(mode!, 8), uid: Number(uid), gid: Number(gid) }
  })
}
