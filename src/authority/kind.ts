import type { ZodType } from 'zod'
import type { Coverage } from '../evidence/coverage.ts'
import type { EvidenceEvent } from '../evidence/records.ts'

export const OUTCOMES = ['used', 'unused', 'denied', 'undeclared', 'unobservable'] as const
export type Outcome = (typeof OUTCOMES)[number]

/** One row of a verdict: a grant (or an act without a grant) and what the evidence says of it. */
export type Comparison = {
  /** In the kind's own words: "packages: write", "api.github.com:443", "/usr/bin/git". */
  grant: string
  outcome: Outcome
  /** The grant stands in the contract. */
  declared: boolean
  /** How often it was used or tried; null where counting has no meaning. */
  count: number | null
  /** One clause that a person can check: which act, which process, why unobservable. */
  proof: string
}

/** What a CI job holds by its pipeline file, in words that no CI system owns. */
export type JobGrant = {
  /** Token permissions as the issuer names them with underscores ("pull_requests"); null: the file leaves it to the platform's default. */
  tokenPermissions: Record<string, 'read' | 'write' | 'admin'> | null
  /** The job may ask for an OIDC token. */
  oidc: boolean
  /** Secrets that the job's file hands to it. */
  secrets: string[]
  /** Hosts that are cut off by the pipeline file; null: the file sets no limit on egress. */
  egress: { host: string; port: number }[] | null
}

/**
 * One family of authority. The audit, the verdict, the reports and the narrowing iterate over
 * `KINDS` and know no kind by name. Laws (test/authority/laws.test.ts):
 * narrow(d, u) is within d; compare(narrow(d, u), u) has no `unused` for anything observed;
 * narrowing twice changes nothing; a grant whose coverage is missing stays.
 */
export interface AuthorityKind<Declared, Used> {
  readonly name: string
  /** Its part of the contract; parses `undefined` to the empty declaration: absent means none. */
  readonly schema: ZodType<Declared>
  /** What a job holds by its pipeline file, made explicit. */
  fromJob(job: JobGrant): Declared
  nothingUsed(): Used
  observe(event: EvidenceEvent, used: Used): void
  compare(declared: Declared, used: Used, coverage: Coverage): Comparison[]
  /** Never wider than declared. Takes the coverage, which the used set alone does not carry: what was not observed stays. */
  narrow(declared: Declared, used: Used, coverage: Coverage): Declared
  /** Every act that `inner` allows is allowed by `outer`. */
  within(inner: Declared, outer: Declared): boolean
  /** Where a pipeline file can hold the narrowed grant. */
  toJob?(narrowed: Declared): Partial<JobGrant>
}
