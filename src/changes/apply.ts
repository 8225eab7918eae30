import { randomBytes } from 'node:crypto'
import { closeSync, constants, fchmodSync, fstatSync, futimesSync, mkdirSync, openSync, readlinkSync, readSync, renameSync, rmdirSync, symlinkSync, unlinkSync, writeSync } from 'node:fs'
import type { NativeAddon } from '../native.ts'
import { at, entries, isOpaque, isWhiteout, look, openFile, same, within, type Folder } from './changes.ts'

const CHUNK = 256 * 1024

/**
 * Writes what a job wrote to the directory that it saw, with this process's rights. Each name is made below an open directory
 * and none is followed, so that a link that the job, or anybody, put there leads nowhere. Files appear whole, under their
 * names, or not at all; set-id bits, devices, sockets and pipes never do. Returns the paths of the latter.
 */
export function applyChanges(native: NativeAddon, upper: Folder, workspace: Folder): string[] {
  const left: string[] = []
  const walk = (above: Folder, below: Folder, prefix: string): void => {
    const names = entries(above)
    if (isOpaque(native, above)) {
      const kept = new Set(names.map(name => name.toString('latin1')))
      for (const name of entries(below)) if (!kept.has(name.toString('latin1'))) removeAll(below, name)
    }
    for (const name of names) {
      const now = look(above, name)
      if (now === null) continue
      const before = look(below, name)
      if (isWhiteout(now)) {
        if (before !== null) removeAll(below, name)
      } else if (now.isDirectory()) {
        if (before !== null && !before.isDirectory()) unlinkSync(at(below, name))
        if (before?.isDirectory() !== true) mkdirSync(at(below, name), { mode: 0o700 })
        within(above, name, deeper => within(below, name, target => {
          walk(deeper, target, `${prefix}${String(name)}/`)
          fchmodSync(target.fd, now.mode & 0o777)
        }))
      } else if (!now.isFile() && !now.isSymbolicLink()) {
        left.push(prefix + String(name))
      } else if (before === null || !same(above, below, name, now, before)) {
        const made = now.isFile() ? copyOf(at(above, name), below) : linkLike(at(above, name), below)
        try {
          if (before?.isDirectory() === true) removeAll(below, name)
          renameSync(made, at(below, name))
        } catch (error) {
          unlinkSync(made)
          throw error
        }
      }
    }
  }
  walk(upper, workspace, '')
  return left
}

/** A name that nobody else has. */
function freeName(folder: Folder): Buffer {
  return at(folder, Buffer.from(`.ambit-${randomBytes(8).toString('hex')}`))
}

function copyOf(source: Buffer, folder: Folder): Buffer {
  const place = freeName(folder)
  const from = openFile(source)
  try {
    const to = openSync(place, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
    try {
      const about = fstatSync(from)
      const chunk = Buffer.alloc(CHUNK)
      for (let got; (got = readSync(from, chunk)) > 0;) for (let sent = 0; sent < got;) sent += writeSync(to, chunk, sent, got - sent)
      fchmodSync(to, about.mode & 0o777)
      futimesSync(to, about.atime, about.mtime)
    } catch (error) {
      unlinkSync(place)
      throw error
    } finally {
      closeSync(to)
    }
  } finally {
    closeSync(from)
  }
  return place
}

function linkLike(source: Buffer, folder: Folder): Buffer {
  const place = freeName(folder)
  symlinkSync(readlinkSync(source, { encoding: 'buffer' }), place)
  return place
}

/** As rm -r, by descriptors. */
export function removeAll(folder: Folder, name: Buffer): void {
  if (look(folder, name)?.isDirectory() !== true) {
    unlinkSync(at(folder, name))
    return
  }
  within(folder, name, below => {
    // A job may have closed its directories to their owner.
    if ((fstatSync(below.fd).mode & 0o700) !== 0o700) fchmodSync(below.fd, 0o700)
    for (const one of entries(below)) removeAll(below, one)
  })
  rmdirSync(at(folder, name))
}
