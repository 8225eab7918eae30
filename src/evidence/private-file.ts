import { randomBytes } from 'node:crypto'
import { closeSync, constants, fstatSync, fsyncSync, linkSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { AmbitError } from '../errors.ts'

/** More than any key or token of ours. */
const MAX_SIZE = 64 * 1024

/**
 * Reads a file that only its owner may read, or makes it. It appears whole or not at all, and of two makers one wins and both read the
 * winner's. Throws FILE_UNREADABLE if what is there is a link, someone else's, or open to others.
 */
export function readOrCreatePrivate(path: string, what: string, make: () => string): string {
  const existing = read(path, what)
  if (existing !== null) return existing
  const draft = `${path}.${randomBytes(8).toString('hex')}`
  try {
    const fd = openSync(draft, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600)
    try {
      writeFileSync(fd, make())
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    linkSync(draft, path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw refusal(path, what, (error as Error).message, error)
  } finally {
    rmSync(draft, { force: true })
  }
  return read(path, what) ?? (() => { throw refusal(path, what, 'it vanished') })()
}

function read(path: string, what: string): string | null {
  let fd: number
  try {
    // O_NONBLOCK: a pipe in its place must not hold us.
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return null
    throw refusal(path, what, code === 'ELOOP' ? 'it is a symbolic link' : String(code), error)
  }
  try {
    const { mode, uid, size } = fstatSync(fd)
    if ((mode & constants.S_IFMT) !== constants.S_IFREG) throw refusal(path, what, 'it is not a regular file')
    if (uid !== process.geteuid!()) throw refusal(path, what, `it belongs to user ${uid}`)
    if ((mode & 0o077) !== 0) throw refusal(path, what, `others may use it (mode ${(mode & 0o777).toString(8).padStart(4, '0')})`)
    if (size > MAX_SIZE) throw refusal(path, what, 'it is too large to be one')
    return readFileSync(fd, 'utf8')
  } finally {
    closeSync(fd)
  }
}

function refusal(path: string, what: string, why: string, cause?: unknown): AmbitError {
  return new AmbitError('FILE_UNREADABLE', {
    attempted: `read ${what}`, why: `${path}: ${why}`,
    remedy: 'it must be a regular file of the daemon\'s own user with mode 0600; take it away, and a new one is made', cause,
  })
}
