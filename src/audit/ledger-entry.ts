import { z } from 'zod'
import { OUTCOMES } from '../authority/kind.ts'

const sha256 = z.string().regex(/^[0-9a-f]{64}$/, 'must be a SHA-256 in hex')

/** One verdict as the next audit reads it. Its history is keyed by pipeline file and job. */
export const ledgerEntry = z.object({
  time: z.iso.datetime().describe('when the verdict was entered, UTC'),
  cell: z.string().min(1),
  pipeline: z.object({
    file: z.string().min(1),
    job: z.string().min(1),
    digest: z.string().min(1).describe('of the pipeline file as it was when the contract was made'),
  }),
  evidenceDigest: sha256.describe('of the last record of the evidence'),
  contractDigest: sha256,
  mode: z.enum(['observe', 'enforce']),
  outcome: z.object({ code: z.number().int().nullable().describe('exit code of the command; null: ended by a signal') }),
  rows: z.array(z.object({
    kind: z.string().min(1).describe('name of the authority kind'),
    grant: z.string(),
    outcome: z.enum(OUTCOMES),
    declared: z.boolean(),
    count: z.number().nullable(),
    proof: z.string(),
  })),
})
export type LedgerEntry = z.infer<typeof ledgerEntry>
