import { createHash, type Hash } from 'node:crypto'
import { closeSync, constants, fstatSync, ftruncateSync, openSync, readFileSync } from 'node:fs'
import { AmbitError } from '../errors.ts'
import { checkLine, emptyChain, type Chain } from './chain.ts'
import type { EvidenceRecord } from './records.ts'

/** A log that a former daemon began: where its chain stands, and the descriptor to go on with. */
export type BegunLog = { fd: number; chain: Chain; hash: Hash; bytes: number; records: EvidenceRecord[] }

/**
 * Reads a log that was never closed. Half a line at its end, which a daemon's death can leave, is cut off. Throws
 * EVIDENCE_UNREADABLE if the chain does not hold: what follows would vouch for what was changed.
 */
export function reopenLog(id: string, file: string): BegunLog {
  const fd = openSync(file, constants.O_RDWR | constants.O_NOFOLLOW)
  try {
    if (!fstatSync(fd).isFile()) throw new Error('it is not a file')
    const content = readFileSync(fd)
    const bytes = content.lastIndexOf(0x0a) + 1
    const chain = emptyChain()
    const records: EvidenceRecord[] = []
    for (let at = 0; at < bytes;) {
      const end = content.indexOf(0x0a, at)
      const { record, problem } = checkLine(chain, content.subarray(at, end))
      if (problem !== null) throw new Error(`line ${records.length + 1}: ${problem}`)
      records.push(record!)
      at = end + 1
    }
    if (bytes < content.length) ftruncateSync(fd, bytes)
    return { fd, chain, hash: createHash('sha256').update(content.subarray(0, bytes)), bytes, records }
  } catch (cause) {
    closeSync(fd)
    throw new AmbitError('EVIDENCE_UNREADABLE', { attempted: `go on with the evidence of cell ${id}`, why: (cause as Error).message, remedy: 'the log stays as it is, unsealed', cause })
  }
}
