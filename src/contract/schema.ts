import { isIP } from 'node:net'
import { z } from 'zod'
import { canonicalName, isName } from '../authority/destination.ts'
import type { ExecGrant } from '../authority/exec.ts'
import { KIND_BY_NAME } from '../authority/kinds.ts'
import { grantedPath, inside } from '../authority/paths.ts'
import { repeated } from '../authority/words.ts'
import { CAPABILITIES, REFUSED_CAPABILITIES, type Capability } from './capabilities.ts'

const SECONDS = { s: 1, m: 60, h: 3600 } as const
/** As long as the longest job that GitHub lets a self-hosted runner run. */
const TTL_MAX_S = 5 * 24 * 3600
const BYTES = { KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3, TiB: 1024 ** 4 } as const
/** Less does not start a shell: the group also pays for the cell's own process and its mounts. */
const MEMORY_MIN = 16 * BYTES.MiB
const MEMORY_MAX = 64 * BYTES.TiB
/** PID_MAX_LIMIT of 64-bit kernels. */
const PIDS_MAX = 4_194_304
/** Default of fs.nr_open. */
const OPEN_FILES_MAX = 1_048_576

/** Of a list or a map: what is done with some of them grows with the square of their length. The schemas of the kinds hold to it, too. */
export const ENTRIES_MAX = 2_000

/** A time as contracts write it, in seconds. */
export function ttlSeconds(ttl: string): number {
  const match = /^(\d{1,9})(s|m|h)$/.exec(ttl)
  return match === null ? NaN : Number(match[1]) * SECONDS[match[2] as keyof typeof SECONDS]
}

/** A size as contracts write it, in bytes. */
export function memoryBytes(memory: string): number {
  const match = /^(\d{1,9})(KiB|MiB|GiB|TiB)$/.exec(memory)
  return match === null ? NaN : Number(match[1]) * BYTES[match[2] as keyof typeof BYTES]
}

const ttl = z.string({ error: 'must be a time such as 30s, 5m or 1h' }).superRefine((text, context) => {
  const seconds = ttlSeconds(text)
  const fault = Number.isNaN(seconds) ? 'must be a time such as 30s, 5m or 1h' : seconds < 1 ? 'a cell needs at least 1s' : seconds > TTL_MAX_S ? `${text} is longer than the ${TTL_MAX_S / 3600}h that a cell can be given` : null
  if (fault !== null) context.addIssue({ code: 'custom', message: fault, input: text })
})

const memory = z.string({ error: 'must be a size such as 512MiB or 2GiB' }).superRefine((text, context) => {
  const bytes = memoryBytes(text)
  const fault = Number.isNaN(bytes) ? 'must be a size such as 512MiB or 2GiB (KiB, MiB, GiB, TiB)'
    : bytes < MEMORY_MIN ? `${text} is too little to start a program in a cell: 16MiB is the least`
      : bytes > MEMORY_MAX ? `${text} is more than a machine has: 64TiB is the most` : null
  if (fault !== null) context.addIssue({ code: 'custom', message: fault, input: text })
})

/** The kernel's least quota is 1 ms of each 100 (kernel/sched/core.c, min_cfs_quota_period). */
const CPUS_MIN = 0.01
const CPUS_MAX = 4096
/** Less is fewer than 16 pages a second, with which nothing starts. */
const RATE_MIN = 64 * BYTES.KiB

const rate = z.string({ error: 'must be a size such as 50MiB, for bytes a second' }).superRefine((text, context) => {
  const bytes = memoryBytes(text)
  const fault = Number.isNaN(bytes) ? 'must be a size such as 50MiB (KiB, MiB, GiB, TiB), for bytes a second'
    : bytes < RATE_MIN ? `${text} a second is too little to start a program: 64KiB is the least` : null
  if (fault !== null) context.addIssue({ code: 'custom', message: fault, input: text })
})

function whole(least: number, why: string, most: number): z.ZodNumber {
  return z.number({ error: `must be a whole number from ${least} to ${most}` }).int(`must be a whole number from ${least} to ${most}`)
    .min(least, `must be at least ${least}: ${why}`).max(most, `must be at most ${most}, which is the kernel's own limit`)
}

const tooMany = `holds more than ${ENTRIES_MAX} entries`

function fewKeys(entries: Record<string, unknown>): boolean {
  return Object.keys(entries).length <= ENTRIES_MAX
}

/** Text that survives every way it takes: files, JSON, a process's arguments. */
const text = z.string({ error: 'must be text; quote what YAML takes for a number, true or null' }).refine(value => !value.includes('\0'), 'cannot hold a NUL').refine(value => !/\p{Surrogate}/u.test(value), 'is not well-formed Unicode')
const label = text.min(1, 'must not be empty').max(1024, 'is longer than 1024 characters')
const variable = z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, 'must be the name of an environment variable: letters, digits and underscores')

const hostName = z.string().superRefine((name, context) => {
  const canonical = canonicalName(name)
  if (isIP(canonical) !== 0 || !isName(canonical)) context.addIssue({ code: 'custom', message: `${JSON.stringify(name)} is not a host name`, input: name })
  else if (canonical !== name) context.addIssue({ code: 'custom', message: `write ${canonical}: names are compared in lower case, without a last dot`, input: name })
})

const pipeline = z.strictObject({
  file: label.describe('the pipeline file, relative to its repository'),
  job: label.describe('the job in it'),
  digest: label.describe('of the file when the contract was made'),
}).describe('where the authority comes from; the ledger is keyed by it')

/** Each once, of a closed list. */
function few<T extends string>(names: readonly T[], fault: (name: string) => string): z.ZodType<T[], unknown> {
  const one = z.string().superRefine((name, context) => {
    if (!(names as readonly string[]).includes(name)) context.addIssue({ code: 'custom', message: fault(name), input: name })
  })
  return z.array(one).superRefine((list, context) => {
    const twice = repeated(list)
    if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [list.lastIndexOf(twice)], input: list })
  }) as unknown as z.ZodType<T[], unknown>
}

function capabilityFault(name: string): string {
  const plain = name.toUpperCase().replace(/^CAP_/, '')
  if ((CAPABILITIES as readonly string[]).includes(plain)) return `write ${plain}`
  const reason = REFUSED_CAPABILITIES.get(plain)
  return reason === undefined ? `must be one of ${CAPABILITIES.join(', ')}` : `no cell gives ${plain}: ${reason}`
}

/** The places of a cell where jobs write and that are the cell's own. */
export const NOEXEC_TREES = ['/workspace', '/tmp', '/dev/shm'] as const

type Kinds = typeof KIND_BY_NAME
/** Every kind parses its own absence to the empty declaration: absent means none. */
const authority = z.strictObject(
  Object.fromEntries(Object.entries(KIND_BY_NAME).map(([name, kind]) => [name, kind.schema])) as unknown as { [K in keyof Kinds]: Kinds[K]['schema'] },
).prefault({} as never)

export const contractSchema = z.strictObject({
  apiVersion: z.literal('ambit/v1').describe('the version of this format'),
  kind: z.literal('Cell').describe('what the document declares'),
  metadata: z.strictObject({
    name: z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/, 'must be letters, digits, ".", "_" and "-", at most 128').describe('what reports call the cell'),
    pipeline: pipeline.optional(),
  }).describe('what the cell is'),
  spec: z.strictObject({
    mode: z.enum(['observe', 'enforce']).describe('observe: record, deny nothing that the contract omits; enforce: withhold what it omits'),
    ttl: ttl.describe('how long the cell may run at most: 30s, 5m, 1h'),
    onDaemonLoss: z.enum(['stop', 'continue']).default('stop').describe('stop: the cell ends with the daemon; continue: it goes on without, is taken back by the next daemon, and ends with its ttl at the latest'),
    workspace: z.enum(['shared', 'overlay', 'none']).default('none').describe('shared: the caller\'s directory is /workspace; overlay: the same, but what the job writes is kept apart, to be shown, applied or discarded with `ambit changes`; none: there is no workspace'),
    rootfs: grantedPath.refine(path => path !== '/', 'is the host itself: leave rootfs out to run on it').optional().describe('an unpacked image that the cell runs from instead of the host\'s system; the contract\'s paths are then paths in it'),
    rootfsWrites: z.enum(['readonly', 'overlay']).default('readonly').describe('overlay: the job may change the image for itself; what it wrote is gone at its end'),
    system: z.enum(['readonly', 'overlay']).default('readonly').describe('overlay: grants to write to the host\'s directories are grants to write to a copy, which is gone at the end'),
    capabilities: few(CAPABILITIES, capabilityFault).default([]).describe('what the cell\'s root may do to files and processes of the cell; nothing of it reaches the host'),
    noexec: few(NOEXEC_TREES, () => `must be one of ${NOEXEC_TREES.join(', ')}`).default([]).describe('where nothing is executed, whatever authority.exec allows'),
    missingPaths: z.enum(['refuse', 'skip']).default('refuse').describe('what becomes of a granted path that does not exist: the contract is refused, or the grant is left out'),
    limits: z.strictObject({
      memory: memory.default('2GiB').describe('memory of all processes together'),
      pids: whole(2, 'the cell\'s own process and the command', PIDS_MAX).default(1024).describe('processes and threads at one time'),
      openFiles: whole(16, 'the loader, the libraries and the standard streams of a program', OPEN_FILES_MAX).default(4096).describe('open descriptors of one process'),
      cpus: z.number({ error: 'must be a number of processors such as 1.5' }).min(CPUS_MIN, `must be at least ${CPUS_MIN}`).max(CPUS_MAX, `must be at most ${CPUS_MAX}`).optional().describe('processor time of all processes together, in processors'),
      io: z.strictObject({
        read: rate.optional().describe('bytes read a second'),
        write: rate.optional().describe('bytes written a second'),
      }).refine(({ read, write }) => read !== undefined || write !== undefined, 'names neither "read" nor "write"').optional().describe('of each disk that holds the workspace or the host\'s root; what is in the page cache already costs nothing'),
    }).prefault({}).describe('what the cell may take of the host'),
    environment: z.strictObject({
      pass: z.array(variable).max(ENTRIES_MAX, { error: tooMany, abort: true }).default([]).superRefine((names, context) => {
        const twice = repeated(names)
        if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [names.lastIndexOf(twice)], input: names })
      }).describe('variables of the caller that enter the cell'),
      set: z.record(variable, text.max(131_071, 'is longer than the kernel lets one string of an environment be')).refine(fewKeys, tooMany).default({}).describe('variables with fixed values; quote what YAML would take for a number or true'),
    }).prefault({}).describe('the command\'s environment; nothing else of the caller\'s enters'),
    hosts: z.record(hostName, z.string().refine(address => isIP(address) !== 0, 'must be an IPv4 or IPv6 address')).refine(fewKeys, tooMany).default({}).describe('names that resolve to a fixed address'),
    authority: authority.describe('what the cell may do; what is absent is not granted'),
  }).superRefine(refuseContradictions).describe('how the cell runs'),
})

type Together = { workspace: string; rootfs?: string | undefined; rootfsWrites: string; system: string; capabilities: string[]; authority: unknown }

/** Parts that are right by themselves and wrong together. */
function refuseContradictions(spec: Together, context: z.core.$RefinementCtx): void {
  const refuse = (path: PropertyKey[], message: string): void => { context.addIssue({ code: 'custom', message, path, input: spec }) }
  if (spec.rootfs === undefined && spec.rootfsWrites === 'overlay') refuse(['rootfsWrites'], 'says how an image is written, and rootfs names none')
  if (spec.rootfs !== undefined && spec.system === 'overlay') refuse(['system'], 'is about the host\'s directories, and the cell runs from the image that rootfs names: rootfsWrites is its like')
  const { exec, filesystem: { write } } = spec.authority as { exec: ExecGrant[]; filesystem: { write: string[] } }
  for (const [index, grant] of exec.entries()) {
    if (typeof grant === 'string') continue
    const tree = write.find(one => inside(grant.path, one))
    if (tree !== undefined) refuse(['authority', 'exec', index], `the job may write to ${tree}, so a digest of ${grant.path} would hold nothing`)
    if (spec.rootfs !== undefined) refuse(['authority', 'exec', index], 'a digest is of a program of the host, and the cell runs from the image that rootfs names: check the image before it is unpacked')
  }
  const ofHost = spec.rootfs === undefined && spec.system === 'readonly' && write.some(path => !['/workspace', '/tmp'].some(own => inside(path, own)))
  const place = spec.capabilities.indexOf('FSETID')
  if (place >= 0 && (spec.workspace === 'shared' || ofHost)) refuse(['capabilities', place], 'FSETID would let the job rewrite a set-user-id file of the host that keeps its bit: it needs "workspace: overlay" or "none", and "system: overlay" where the contract grants writing elsewhere')
}

type KindDeclarations = { [K in keyof Kinds]: z.output<Kinds[K]['schema']> }
type Parsed = z.output<typeof contractSchema>
/** A contract with every default filled in. */
export type Contract = Omit<Parsed, 'spec' | 'metadata'> & {
  metadata: { name: string; pipeline?: z.output<typeof pipeline> }
  spec: Omit<Parsed['spec'], 'authority' | 'capabilities'> & { authority: KindDeclarations; capabilities: Capability[] }
}
