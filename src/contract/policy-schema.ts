import { z } from 'zod'
import type { Grant } from '../authority/destination.ts'
import { KIND_BY_NAME } from '../authority/kinds.ts'
import { grantedPath } from '../authority/paths.ts'
import { NAMES, PROFILES } from '../authority/syscall-profiles.ts'
import { CAPABILITIES } from './capabilities.ts'
import { memoryBytes, ttlSeconds } from './schema.ts'

const PROFILE_NAMES = ['oci', ...Object.keys(PROFILES)] as const
const time = z.string({ error: 'must be a time such as 30m' }).refine(text => !Number.isNaN(ttlSeconds(text)), 'must be a time such as 30s, 5m or 1h')
const size = z.string({ error: 'must be a size such as 2GiB' }).refine(text => !Number.isNaN(memoryBytes(text)), 'must be a size such as 512MiB or 2GiB')
const count = z.number().positive('must be more than 0')
const list = <T extends z.ZodType>(item: T) => z.array(item).max(2_000, 'holds more than 2000 entries')
const account = z.union([z.number().int().min(0), z.string().min(1)], { error: 'must be a name or a number' })
const accounts = list(account).optional()
const secretName = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*\*?$/, 'must be the name of a secret, or the start of names followed by *')

/** As contracts declare them, but absent is not none. */
const destinations = z.array(z.unknown()).transform((value, context): Grant[] => {
  const parsed = KIND_BY_NAME.network.schema.safeParse(value)
  if (parsed.success) return parsed.data
  for (const { path, message } of parsed.error.issues) context.addIssue({ code: 'custom', message, path: [...path], input: value })
  return z.NEVER
})

/** What a contract may ask for at most. What is absent here is not bounded. */
const bounds = z.strictObject({
  modes: list(z.enum(['observe', 'enforce'])).optional().describe('without it, a rule that bounds authority admits enforce only: observe withholds nothing'),
  ttl: time.optional().describe('longest time'),
  memory: size.optional().describe('most memory'),
  pids: count.int().optional().describe('most processes'),
  cpus: count.optional().describe('most processor time; a contract without a limit of its own is beyond it'),
  workspaces: list(z.enum(['shared', 'overlay', 'none'])).optional(),
  network: destinations.optional().describe('destinations, written as contracts write them; "*" stands for no private or otherwise barred address. Fixed addresses of names (hosts) must be among them, too'),
  read: list(grantedPath).optional().describe('trees that a contract may list for reading'),
  write: list(grantedPath).optional().describe('trees that it may list for writing'),
  exec: list(z.union([z.literal('*'), grantedPath])).optional().describe('programs, or trees that hold them'),
  profiles: list(z.enum(PROFILE_NAMES, { error: `must be one of ${PROFILE_NAMES.join(', ')}` })).optional().describe('syscall profiles'),
  syscalls: list(z.string().refine(name => NAMES.has(name), 'is no system call that a contract can name')).optional().describe('calls that a contract may add to its profile'),
  capabilities: list(z.enum(CAPABILITIES)).optional(),
  secrets: list(secretName).optional().describe('names of secrets; NPM_* stands for all that begin so'),
  permissions: z.record(z.string(), z.enum(['read', 'write', 'admin'])).optional().describe('token permissions, each at its highest level'),
  images: list(grantedPath).optional().describe('trees that hold the images that rootfs may name; without it, a rule that bounds read, write or exec admits none'),
})

const NARROWNESS = ['listed-programs', 'named-destinations', 'listed-paths', 'listed-calls'] as const

const rule = z.strictObject({
  name: z.string().min(1).max(128).describe('what refusals call it'),
  for: z.strictObject({ users: accounts, groups: accounts }).refine(({ users, groups }) => users !== undefined || groups !== undefined, 'names neither "users" nor "groups"').optional().describe('whom it admits; absent: everyone who reaches the control socket'),
  require: list(z.enum(NARROWNESS, { error: `must be one of ${NARROWNESS.join(', ')}` })).optional()
    .describe('narrowness: no exec "*"; no network "*"; no read or write of "/"; a syscall profile of strict with calls by name, as narrowing writes it'),
  bounds: bounds.default({}),
})

export const policySchema = z.strictObject({
  apiVersion: z.literal('ambit/v1'),
  kind: z.literal('Policy'),
  rules: list(rule).superRefine((rules, context) => {
    const at = rules.findIndex(({ name }, index) => rules.findIndex(other => other.name === name) < index)
    if (at >= 0) context.addIssue({ code: 'custom', message: `two rules are called ${JSON.stringify(rules[at]!.name)}`, path: [at, 'name'], input: rules })
  }).describe('a contract is admitted if one rule that is for the caller admits all of it; no rule, no cell'),
})
export type PolicyDocument = z.output<typeof policySchema>
export type PolicyRule = PolicyDocument['rules'][number]
