import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs'
import { AmbitError } from '../errors.ts'

/** Linux's; Node names it nowhere (include/uapi/asm-generic/fcntl.h). */
const O_PATH = 0o10_000_000

/**
 * What names an open file to the kernel's own eyes, as NativeProbes.holdPrograms takes it. The device is that of the mount
 * (proc(5), mountinfo), not stat's: on btrfs and overlays stat tells another one.
 */
export function identity(fd: number): [device: bigint, inode: bigint] {
  const { ino } = fstatSync(fd, { bigint: true })
  const mount = /^mnt_id:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1]
  const [, major, minor] = new RegExp(`^${mount} \\d+ (\\d+):(\\d+) `, 'm').exec(readFileSync('/proc/self/mountinfo', 'utf8')) ?? []
  if (major === undefined || minor === undefined) {
    throw new AmbitError('CELL_FAILED', { attempted: 'find out on which device a program lies', why: `its mount ${mount} is not among the daemon's`, remedy: 'grant programs that lie on mounts of the host' })
  }
  return [BigInt(major) << 20n | BigInt(minor), ino]
}

/**
 * The programs that a cell may execute, for the kernel: paths of files and folders, and open ones, in triples. What is not
 * there can't be executed, and is left out.
 */
export function programTriples(paths: readonly string[], open: readonly number[] = []): BigUint64Array {
  const triples: bigint[] = []
  const add = (fd: number): void => { triples.push(...identity(fd), fstatSync(fd).isDirectory() ? 1n : 0n) }
  for (const fd of open) add(fd)
  for (const path of paths) {
    let fd: number
    try {
      fd = openSync(path, O_PATH)
    } catch (error) {
      if (['ENOENT', 'ENOTDIR', 'EACCES', 'ELOOP'].includes((error as NodeJS.ErrnoException).code ?? '')) continue
      throw error
    }
    try {
      add(fd)
    } finally {
      closeSync(fd)
    }
  }
  return BigUint64Array.from(triples)
}
