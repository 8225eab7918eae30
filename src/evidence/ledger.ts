import { constants, mkdir, open, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { ledgerEntry, type LedgerEntry } from '../audit/ledger-entry.ts'
import { AmbitError } from '../errors.ts'

/** One entry a line. */
const FILE = 'ledger.jsonl'

/**
 * Adds an entry. One write of one line to a file opened for appending: the kernel places it behind what others wrote (open(2), O_APPEND), so
 * two writers need no lock. Resolves when the disk has it. Throws FILE_UNREADABLE.
 */
export async function appendLedger(dir: string, entry: LedgerEntry): Promise<void> {
  const path = join(dir, FILE)
  const line = Buffer.from(`${JSON.stringify(ledgerEntry.parse(entry))}\n`)
  const failed = (why: string, cause?: unknown): AmbitError => new AmbitError('FILE_UNREADABLE', {
    attempted: 'enter the verdict in the ledger', why: `${path}: ${why}`, remedy: 'check that the ledger\'s directory can be written and has room', cause,
  })
  try {
    await mkdir(dir, { recursive: true })
    const file = await open(path, constants.O_RDWR | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW, 0o644)
    try {
      const { size } = await file.stat()
      const last = Buffer.alloc(1)
      // What a writer that died left unfinished stays a line of its own, and does not spoil this one.
      const torn = size > 0 && (await file.read(last, 0, 1, size - 1)).bytesRead === 1 && last[0] !== 10
      const bytes = torn ? Buffer.concat([Buffer.from('\n'), line]) : line
      const { bytesWritten } = await file.write(bytes)
      if (bytesWritten < bytes.length) throw failed('the disk took only a part of the entry: remove the last line')
      await file.sync()
    } finally {
      await file.close()
    }
  } catch (error) {
    throw error instanceof AmbitError ? error : failed((error as Error).message, error)
  }
}

/** Every entry, oldest first. A ledger without entries is empty; one that is not there is an error, and so is a line that is no entry: FILE_UNREADABLE with file and line. */
export async function readLedger(dir: string): Promise<LedgerEntry[]> {
  const path = join(dir, FILE)
  const failed = (why: string, remedy: string, line?: number, cause?: unknown): AmbitError => new AmbitError('FILE_UNREADABLE', {
    attempted: 'read the ledger', why, remedy, where: { file: line === undefined ? dir : path, ...(line === undefined ? {} : { line }) }, cause,
  })
  const directory = await stat(dir).catch(() => null)
  if (directory === null || !directory.isDirectory()) throw failed('there is no such directory', 'name the directory that `ambit verdict --ledger` wrote')
  const text = await readFile(path, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return ''
    throw failed(cause.message, 'check that you may read it', undefined, cause)
  })
  const entries: LedgerEntry[] = []
  const lines = text.split('\n')
  for (const [index, line] of lines.entries()) {
    if (line === '') continue
    const refuse = (why: string, cause?: unknown): AmbitError => failed(why, 'a ledger is only ever added to: restore the line, or remove it to go on without that verdict', index + 1, cause)
    if (index === lines.length - 1) throw refuse('the line is cut off')
    let value: unknown
    try {
      value = JSON.parse(line)
    } catch (cause) {
      throw refuse('the line is not JSON', cause)
    }
    const parsed = ledgerEntry.safeParse(value)
    if (!parsed.success) throw refuse(`${parsed.error.issues[0]!.path.join('.') || 'the entry'}: ${parsed.error.issues[0]!.message}`, parsed.error)
    entries.push(parsed.data)
  }
  return entries
}
