import { join } from 'node:path'
import { readContract } from '../contract/read.ts'
import type { Contract } from '../contract/schema.ts'
import { AmbitError } from '../errors.ts'
import { openBundleFile, readBundleText } from './bundle-file.ts'
import { checkLine, emptyChain } from './chain.ts'
import { readLines } from './lines.ts'
import type { EvidenceRecord } from './records.ts'
import { BUNDLE } from './statement.ts'

export type Bundle = { contract: Contract; events: EvidenceRecord[] }

/**
 * Reads a bundle, or the log of a cell that never closed: then the last line may be cut off, and the missing closing record tells every
 * verdict so. The chain is checked, signatures are not: see `verifyBundle`. Throws EVIDENCE_UNREADABLE, or EVIDENCE_INVALID with the line.
 */
export async function readBundle(dir: string): Promise<Bundle> {
  const unreadable = (name: string, why: string, cause?: unknown): AmbitError => new AmbitError('EVIDENCE_UNREADABLE', {
    attempted: 'read the evidence', why: `${join(dir, name)}: ${why}`, remedy: 'name the directory that `ambit run --evidence` wrote', cause,
  })
  const log = await openBundleFile(dir, BUNDLE.log).catch((cause: Error) => { throw unreadable(BUNDLE.log, cause.message, cause) })
  if (log === null) throw unreadable(BUNDLE.log, 'there is no such file')
  const events: EvidenceRecord[] = []
  const chain = emptyChain()
  const invalid = (why: string): AmbitError => new AmbitError('EVIDENCE_INVALID', {
    attempted: 'read the evidence', why, remedy: '`ambit verify` tells more; evidence that was changed is not used', where: { file: join(dir, BUNDLE.log), line: events.length + 1 },
  })
  try {
    for await (const { bytes, complete } of readLines(log)) {
      if (!complete && events.at(-1)?.type !== 'cell.ended') break
      if (!complete) throw invalid('something follows the closing record')
      const { record, problem } = checkLine(chain, bytes)
      if (problem !== null || record === null) throw invalid(problem ?? 'there is no record')
      events.push(record)
    }
  } catch (error) {
    if (error instanceof AmbitError) throw error
    throw unreadable(BUNDLE.log, (error as Error).message, error)
  } finally {
    await log.close()
  }
  const text = await readBundleText(dir, BUNDLE.contract).catch((cause: Error) => { throw unreadable(BUNDLE.contract, cause.message, cause) })
  if (text !== null) return { contract: readContract(text, join(dir, BUNDLE.contract)), events }
  const [first] = events
  if (first?.type !== 'cell.started') throw unreadable(BUNDLE.contract, 'there is no such file, and the log does not begin with a contract')
  return { contract: readContract(JSON.stringify(first.contract), join(dir, BUNDLE.log)), events }
}
