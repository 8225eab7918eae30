import type { Contract } from '../contract/schema.ts'
import { AmbitError } from '../errors.ts'
import type { LedgerEntry } from '../audit/ledger-entry.ts'
import type { Verdict } from './verdict.ts'

/** What the next audit reads of a verdict. `head` is the digest of the evidence's last record. */
export function ledgerEntry(verdict: Verdict, contract: Contract, head: string): LedgerEntry {
  const { pipeline } = contract.metadata
  if (pipeline === undefined) {
    throw new AmbitError('CONTRACT_INVALID', {
      attempted: 'enter the verdict in the ledger', why: 'the contract names no pipeline (metadata.pipeline)',
      remedy: 'a ledger is keyed by pipeline file and job: write the contract with `ambit loop`, or add them',
    })
  }
  return {
    time: new Date().toISOString(), cell: verdict.cell, pipeline, evidenceDigest: head, contractDigest: verdict.contractDigest,
    mode: verdict.mode, outcome: { code: verdict.outcome.code }, rows: verdict.rows,
  }
}
