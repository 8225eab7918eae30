import { readFileSync, writeFileSync } from 'node:fs'
import { AmbitError } from './errors.ts'

/** Reads a named file as text; the error names it. */
export function readText(path: string, what: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (cause) {
    throw new AmbitError('FILE_UNREADABLE', {
      attempted: `read ${what}`, why: `${path}: ${(cause as NodeJS.ErrnoException).code ?? (cause as Error).message}`,
      remedy: 'check the path and that you may read it', cause,
    })
  }
}

/** Writes a file that somebody named; the error names it. */
export function writeText(path: string, text: string, what: string): void {
  try {
    writeFileSync(path, text)
  } catch (cause) {
    throw new AmbitError('FILE_UNWRITABLE', {
      attempted: `write ${what}`, why: `${path}: ${(cause as NodeJS.ErrnoException).code ?? (cause as Error).message}`,
      remedy: 'check the path and that you may write it', cause,
    })
  }
}

/** Control characters, and those that reorder what a terminal shows (Unicode bidirectional controls, CVE-2021-42574). */
const UNSAFE = /[\u0000-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g

/** Text that a job chose, made safe for a terminal: such characters are shown, not obeyed. */
export function printable(text: string): string {
  return text.replace(UNSAFE, char => {
    const code = char.charCodeAt(0)
    return code < 256 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u${code.toString(16)}`
  })
}
