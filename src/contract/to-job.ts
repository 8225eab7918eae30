import type { JobGrant } from '../authority/kind.ts'
import { KINDS } from '../authority/kinds.ts'
import type { Contract } from './schema.ts'

/** What of a narrowed contract a pipeline file can say, gathered over every kind. */
export function jobGrantOf(contract: Contract): Partial<JobGrant> {
  const declared = contract.spec.authority as Record<string, unknown>
  return Object.assign({}, ...KINDS.map(kind => kind.toJob?.(declared[kind.name]) ?? {})) as Partial<JobGrant>
}
