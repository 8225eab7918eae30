import { z } from 'zod'

/** The files of a bundle. */
export const BUNDLE = { log: 'events.jsonl', contract: 'contract.yaml', statement: 'statement.dsse.json', key: 'public-key.pem' } as const

export const PREDICATE_TYPE = 'https://ambit.dev/authority-evidence/v1'

const sha256 = z.string().regex(/^[0-9a-f]{64}$/)
const subject = (name: string) => z.strictObject({ name: z.literal(name), digest: z.strictObject({ sha256 }) })

/** An in-toto Statement v1 (github.com/in-toto/attestation, spec/v1/statement.md): what the daemon signs when a cell has ended. */
export const evidenceStatement = z.strictObject({
  _type: z.literal('https://in-toto.io/Statement/v1'),
  subject: z.tuple([subject(BUNDLE.log), subject(BUNDLE.contract)]),
  predicateType: z.literal(PREDICATE_TYPE),
  predicate: z.strictObject({
    cell: z.string(),
    records: z.number().int().describe('lines of the log'),
    bytes: z.number().int().describe('size of the log'),
    head: sha256.describe('digest of the last line'),
    contractDigest: sha256,
    closed: z.boolean().describe('the log ends with the record of the cell\'s end'),
  }),
})
export type EvidenceStatement = z.infer<typeof evidenceStatement>
