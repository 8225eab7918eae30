import { createHash } from 'node:crypto'
import { statSync } from 'node:fs'
import { readContract } from '../contract/read.ts'
import { contractDigest } from '../contract/write.ts'
import { AmbitError } from '../errors.ts'
import { openBundleFile, readBundleText } from './bundle-file.ts'
import { checkLine, digest, emptyChain } from './chain.ts'
import { readLines } from './lines.ts'
import type { EvidenceRecord } from './records.ts'
import { openEnvelope, readPublicKey } from './sign.ts'
import { BUNDLE, evidenceStatement, type EvidenceStatement } from './statement.ts'

export type VerifyReport = {
  valid: boolean
  /** What does not hold, each as a clause; empty means valid. */
  problems: string[]
  /** Lines of the log. */
  records: number
  /** The cell that the log names; empty if it names none. */
  cell: string
  /** SHA-256 of the log's last line, hex. */
  head: string
  /** Id of the key that the signature was checked with: SHA-256 of its SPKI form, hex; empty if there is none. */
  key: string
}

const MAX_PROBLEMS = 20

/**
 * Recomputes all that a bundle claims: every record's place in the chain, the statement's digests, its signature. With `publicKey` (PEM) that
 * key must have signed; without it the bundle's own is taken, which proves integrity, not who signed. What is wrong with the bundle is
 * in the report; throws EVIDENCE_UNREADABLE only if there is no bundle, FILE_UNREADABLE if `publicKey` is none.
 */
export async function verifyBundle(dir: string, options: { publicKey?: string } = {}): Promise<VerifyReport> {
  const wanted = options.publicKey === undefined ? null : readPublicKey(options.publicKey)
  if (!statSync(dir, { throwIfNoEntry: false })?.isDirectory()) {
    throw new AmbitError('EVIDENCE_UNREADABLE', { attempted: 'verify the evidence', why: `${dir} is not a directory`, remedy: 'name the directory that `ambit run --evidence` wrote' })
  }
  const problems: string[] = []
  const problem = (text: string): void => {
    if (problems.length < MAX_PROBLEMS) problems.push(text)
    else if (problems.length === MAX_PROBLEMS) problems.push('there are more problems, which are not shown')
  }
  const text = async (name: string): Promise<string | null> => {
    const content = await readBundleText(dir, name).catch((error: Error) => {
      problem(`${name}: ${error.message}`)
      return undefined
    })
    if (content === null) problem(`${name} is missing`)
    return content ?? null
  }

  const log = await readLog(dir, problem)
  const contract = await text(BUNDLE.contract)
  const envelope = await text(BUNDLE.statement)
  const pem = await text(BUNDLE.key)

  let key = wanted
  try {
    const own = pem === null ? null : readPublicKey(pem)
    if (own !== null && own.pem !== pem) problem(`${BUNDLE.key} is not in the form that was written`)
    if (own !== null && wanted !== null && own.keyid !== wanted.keyid) problem(`the bundle was signed with key ${own.keyid}, not with ${wanted.keyid}`)
    key ??= own
  } catch {
    problem(`${BUNDLE.key} is not an Ed25519 public key`)
  }

  const first = log.first?.type === 'cell.started' ? log.first : null
  if (first === null) problem('the log does not begin with the record of the cell\'s start')
  if (log.last?.type !== 'cell.ended') problem('the log has no closing record: it was cut, or never sealed')
  if (first !== null && contract !== null) checkContract(contract, first.contractDigest, problem)
  if (first !== null && contractDigestOf(first.contract) !== first.contractDigest) problem('the contract in the log does not have the digest that it names')

  const statement = envelope === null || key === null ? null : openStatement(envelope, key, problem)
  if (statement !== null) {
    const { subject: [logSubject, contractSubject], predicate } = statement
    const claims: [string, unknown, unknown][] = [
      ['digest of the log', logSubject.digest.sha256, log.sha256],
      ['digest of the contract file', contractSubject.digest.sha256, contract === null ? null : digest(contract)],
      ['number of records', predicate.records, log.records],
      ['size of the log', predicate.bytes, log.bytes],
      ['digest of the last record', predicate.head, log.head],
      ['cell', predicate.cell, first?.cell],
      ['contract', predicate.contractDigest, first?.contractDigest],
      ['end', predicate.closed, log.last?.type === 'cell.ended'],
    ]
    for (const [what, signed, found] of claims) {
      if (signed !== found) problem(`the signed ${what} is ${String(signed)}, the bundle has ${String(found ?? 'none')}`)
    }
  }
  return { valid: problems.length === 0, problems, records: log.records, cell: first?.cell ?? '', head: log.head, key: key?.keyid ?? '' }
}

type LogFacts = { first: EvidenceRecord | null; last: EvidenceRecord | null; records: number; bytes: number; head: string; sha256: string }

async function readLog(dir: string, problem: (text: string) => void): Promise<LogFacts> {
  const chain = emptyChain()
  const hash = createHash('sha256')
  const facts: LogFacts = { first: null, last: null, records: 0, bytes: 0, head: chain.head, sha256: '' }
  try {
    const file = await openBundleFile(dir, BUNDLE.log)
    if (file === null) throw new Error('it is missing')
    try {
      for await (const { bytes, complete } of readLines(file)) {
        facts.records++
        facts.bytes += bytes.length + (complete ? 1 : 0)
        hash.update(bytes)
        if (complete) hash.update('\n')
        else problem(`${BUNDLE.log}:${facts.records}: the last line is cut off`)
        const { record, problem: wrong } = checkLine(chain, bytes)
        if (wrong !== null) problem(`${BUNDLE.log}:${facts.records}: ${wrong}`)
        if (record?.type === 'cell.started' && facts.records > 1) problem(`${BUNDLE.log}:${facts.records}: a second start`)
        if (facts.last?.type === 'cell.ended') problem(`${BUNDLE.log}:${facts.records}: something follows the closing record`)
        if (facts.records === 1) facts.first = record
        facts.last = record
      }
    } finally {
      await file.close()
    }
  } catch (error) {
    problem(`${BUNDLE.log}: ${(error as Error).message}`)
  }
  return { ...facts, head: chain.head, sha256: hash.digest('hex') }
}

function checkContract(text: string, expected: string, problem: (text: string) => void): void {
  try {
    if (contractDigest(readContract(text, BUNDLE.contract)) !== expected) problem('the contract file is not the contract that the cell ran under')
  } catch (error) {
    problem(`${BUNDLE.contract} is not a contract: ${(error as Error).message.split('\n')[0]}`)
  }
}

function contractDigestOf(contract: unknown): string | null {
  try {
    return contractDigest(readContract(JSON.stringify(contract), BUNDLE.log))
  } catch {
    return null
  }
}

function openStatement(envelope: string, key: Parameters<typeof openEnvelope>[1], problem: (text: string) => void): EvidenceStatement | null {
  const opened = openEnvelope(envelope, key)
  if ('problem' in opened) {
    problem(opened.problem)
    return null
  }
  const parsed = evidenceStatement.safeParse(opened.payload)
  if (parsed.success) return parsed.data
  const { path, message } = parsed.error.issues[0]!
  problem(`the statement is not one of ambit's: ${path.join('.')}: ${message}`)
  return null
}

