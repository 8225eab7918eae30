import { KINDS } from '../authority/kinds.ts'
import { coverageOf } from '../evidence/coverage.ts'
import type { EvidenceBody } from '../evidence/records.ts'
import type { Contract } from './schema.ts'

/**
 * The contract cut down to what the evidence shows was used, to be enforced. No grant gets wider; a grant that could not be
 * observed stays. What is no authority (limits, environment, time) stays as it is.
 */
export function narrowContract(contract: Contract, events: readonly EvidenceBody[]): Contract {
  const coverage = coverageOf(events)
  const declared = contract.spec.authority as Record<string, unknown>
  const authority = Object.fromEntries(KINDS.map(kind => {
    const used = kind.nothingUsed()
    for (const event of events) kind.observe(event, used)
    return [kind.name, kind.narrow(declared[kind.name], used, coverage)]
  })) as Contract['spec']['authority']
  return { ...contract, spec: { ...contract.spec, mode: 'enforce', authority } }
}
