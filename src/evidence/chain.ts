import { createHash } from 'node:crypto'
import { rfc3339 } from './clock.ts'
import { evidenceRecord, type EvidenceBody, type EvidenceRecord } from './records.ts'

/** `prev` of the first record. */
export const GENESIS = '0'.repeat(64)

/** The end of a chain: what the next record must follow. */
export type Chain = {
  /** `seq` of the next record, which is how many there are. */
  next: number
  /** SHA-256 of the last line, hex. */
  head: string
  /** Of the last record, microseconds since the epoch. */
  time: number
}

export function emptyChain(): Chain {
  return { next: 0, head: GENESIS, time: 0 }
}

export function digest(bytes: string | Buffer): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/**
 * Makes the next line, without its newline, and moves the chain's end. The form is what JSON.stringify gives: one line, no spaces, no
 * name twice, so that a record has one form only and its bytes can be compared. Time never goes back within a chain.
 */
export function appendLine(chain: Chain, body: EvidenceBody, microseconds: number): string {
  chain.time = Math.max(chain.time, microseconds)
  const line = JSON.stringify({ seq: chain.next, prev: chain.head, time: rfc3339(chain.time), ...body })
  chain.next++
  chain.head = digest(line)
  return line
}

export type CheckedLine = { record: EvidenceRecord | null; problem: string | null }

const TIME = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/

/** Checks one line against the chain's end and moves it, so that one bad line is one problem and not the ruin of all that follow. */
export function checkLine(chain: Chain, bytes: Buffer): CheckedLine {
  const { next, head, time } = chain
  chain.next++
  chain.head = digest(bytes)
  const bad = (problem: string, record: EvidenceRecord | null = null): CheckedLine => ({ record, problem })
  let value: unknown
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
    value = JSON.parse(text)
    if (JSON.stringify(value) !== text) return bad('the line is not in canonical form')
  } catch {
    return bad('the line is not JSON in UTF-8')
  }
  const parsed = evidenceRecord.safeParse(value)
  if (!parsed.success) {
    const { path, message } = parsed.error.issues[0]!
    return bad(`the record does not follow the schema: ${path.join('.')}: ${message}`)
  }
  const record = parsed.data as EvidenceRecord
  if (!TIME.test(record.time) || Number.isNaN(Date.parse(record.time))) return bad(`"${record.time}" is not a time with microseconds in UTC`, record)
  const microseconds = Date.parse(`${record.time.slice(0, 23)}Z`) * 1000 + Number(record.time.slice(23, 26))
  chain.time = Math.max(time, microseconds)
  if (record.seq !== next) return bad(`the sequence number is ${record.seq}, and ${next} follows`, record)
  if (record.prev !== head) return bad('the digest of the previous record does not match', record)
  if (microseconds < time) return bad('its time is before that of the previous record', record)
  return { record, problem: null }
}
