import { constants, open, type FileHandle } from 'node:fs/promises'
import { join } from 'node:path'

/** Largest of the small files of a bundle that is read, bytes. */
const MAX_SMALL = 4 * 1024 * 1024

/** Opens a file of a bundle that anyone may have made: no links are followed, and a pipe does not hold the reader. Null: there is none. Throws in words. */
export async function openBundleFile(dir: string, name: string): Promise<FileHandle | null> {
  let file: FileHandle
  try {
    file = await open(join(dir, name), constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    if (code === 'ENOENT') return null
    throw new Error(code === 'ELOOP' ? 'it is a symbolic link' : String(code), { cause })
  }
  if (!(await file.stat()).isFile()) {
    await file.close()
    throw new Error('it is not a regular file')
  }
  return file
}

/** A small file's text, which must be UTF-8. Null: there is none. Throws in words. */
export async function readBundleText(dir: string, name: string): Promise<string | null> {
  const file = await openBundleFile(dir, name)
  if (file === null) return null
  try {
    if ((await file.stat()).size > MAX_SMALL) throw new Error(`it is larger than ${MAX_SMALL} bytes`)
    const bytes = await file.readFile()
    try {
      return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    } catch (cause) {
      throw new Error('it is not UTF-8', { cause })
    }
  } finally {
    await file.close()
  }
}
