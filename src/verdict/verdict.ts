import type { Comparison } from '../authority/kind.ts'
import { KINDS } from '../authority/kinds.ts'
import { contractDigest } from '../contract/write.ts'
import type { Contract } from '../contract/schema.ts'
import { coverageOf } from '../evidence/coverage.ts'
import { FAMILIES, type Culprit, type EvidenceBody, type Family } from '../evidence/records.ts'

export type VerdictRow = Comparison & { kind: string }

type Limit = Extract<EvidenceBody, { type: 'limit' }>

export type Verdict = {
  /** Empty if the evidence does not name its cell. */
  cell: string
  /** How the cell was run, whatever contract it is judged by. */
  mode: 'observe' | 'enforce'
  /** Of the contract that was judged by. */
  contractDigest: string
  /** How the command ended; `unfinished`: the evidence does not say. */
  outcome: { code: number | null; signal: string | null; reason: Extract<EvidenceBody, { type: 'cell.ended' }>['reason'] | 'unfinished' }
  /** Limits that were reached, and by whom. */
  limits: { limit: Limit['limit']; detail: string; by: Culprit[] }[]
  rows: VerdictRow[]
  /** By family, why the evidence is not complete; families without a gap are left out. */
  coverage: { family: Family; gaps: string[] }[]
}

/** Declared against used, kind by kind. Evidence that never closed is judged too: what it lacks is `unobservable`. */
export function judge(contract: Contract, events: readonly EvidenceBody[]): Verdict {
  const coverage = coverageOf(events)
  const started = events.find(event => event.type === 'cell.started')
  const ended = events.filter(event => event.type === 'cell.ended').at(-1)
  const declared = contract.spec.authority as Record<string, unknown>
  const rows = KINDS.flatMap(kind => {
    const used = kind.nothingUsed()
    for (const event of events) kind.observe(event, used)
    return kind.compare(declared[kind.name], used, coverage).map(row => ({ kind: kind.name, ...row }))
  })
  return {
    cell: started?.cell ?? '',
    mode: started?.mode ?? contract.spec.mode,
    contractDigest: contractDigest(contract),
    outcome: ended === undefined ? { code: null, signal: null, reason: 'unfinished' } : { code: ended.code, signal: ended.signal, reason: ended.reason },
    limits: events.filter(event => event.type === 'limit').map(({ limit, detail, by }) => ({ limit, detail, by: by ?? [] })),
    rows,
    coverage: FAMILIES.map(family => ({ family, gaps: [...coverage.gaps(family)] })).filter(({ gaps }) => gaps.length > 0),
  }
}
