import type { FileHandle } from 'node:fs/promises'

const CHUNK = 64 * 1024
/** Longest line that is read, bytes: the longest request with every byte escaped is below it. */
export const MAX_LINE = 4 * 1024 * 1024

export type Line = {
  /** Without its newline. */
  bytes: Buffer
  /** Where the next line begins. */
  end: number
  /** False: the range ended before a newline came. Only the last line can be so. */
  complete: boolean
}

/** The lines of `[from, to)` of a file, read in pieces: a log may be larger than what one wants in memory. Throws on a line above MAX_LINE. */
export async function* readLines(file: FileHandle, from = 0, to = Number.MAX_SAFE_INTEGER): AsyncGenerator<Line> {
  let held: Buffer[] = []
  let heldBytes = 0
  let lineStart = from
  for (let at = from; at < to;) {
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(Math.min(CHUNK, to - at)), 0, Math.min(CHUNK, to - at), at)
    if (bytesRead === 0) break
    at += bytesRead
    let chunk = buffer.subarray(0, bytesRead)
    for (let newline = chunk.indexOf(10); newline >= 0; newline = chunk.indexOf(10)) {
      const bytes = heldBytes === 0 ? chunk.subarray(0, newline) : Buffer.concat([...held, chunk.subarray(0, newline)])
      if (bytes.length > MAX_LINE) throw new RangeError(`a line is longer than ${MAX_LINE} bytes`)
      held = []
      heldBytes = 0
      lineStart += bytes.length + 1
      yield { bytes, end: lineStart, complete: true }
      chunk = chunk.subarray(newline + 1)
    }
    if (chunk.length > 0) held.push(chunk)
    heldBytes += chunk.length
    if (heldBytes > MAX_LINE) throw new RangeError(`a line is longer than ${MAX_LINE} bytes`)
  }
  if (heldBytes > 0) yield { bytes: Buffer.concat(held), end: lineStart + heldBytes, complete: false }
}
