import { arch, constants, release } from 'node:os'
import { z } from 'zod'
import type { Refusal } from '../native.ts'
import { ANY, product, refused, type CallRule, type Condition, type Ways } from './arguments.ts'
import { NAMES, NEVER } from './syscall-profiles.ts'
import { closest } from './words.ts'

/**
 * Seccomp profiles as container engines have them: the runtime specification's `linux.seccomp` (config-linux.md) and what
 * Docker and Podman add to it (`includes`, `excludes`, `archMap`, `defaultErrno`, `errno`, `name`).
 */

const REFUSALS = {
  SCMP_ACT_ERRNO: null, SCMP_ACT_KILL: 'kill-thread', SCMP_ACT_KILL_THREAD: 'kill-thread', SCMP_ACT_KILL_PROCESS: 'kill-process', SCMP_ACT_TRAP: 'trap',
} as const satisfies Record<string, Refusal | null>
type RefusingAction = keyof typeof REFUSALS
/** What is logged besides is in a cell's evidence whatever the profile says. */
const ALLOWING = ['SCMP_ACT_ALLOW', 'SCMP_ACT_LOG']
const NOT_KEPT: Record<string, string> = {
  SCMP_ACT_NOTIFY: 'there is no supervisor in a cell that would answer', SCMP_ACT_TRACE: 'nothing traces a cell that would answer',
}
const OPS = {
  SCMP_CMP_EQ: 'eq', SCMP_CMP_NE: 'ne', SCMP_CMP_LT: 'lt', SCMP_CMP_LE: 'le', SCMP_CMP_GT: 'gt', SCMP_CMP_GE: 'ge', SCMP_CMP_MASKED_EQ: 'masked-eq',
} as const

const action = z.string().superRefine((name, context) => {
  if (name in REFUSALS || ALLOWING.includes(name)) return
  context.addIssue({ code: 'custom', message: name in NOT_KEPT ? `${name} cannot be kept: ${NOT_KEPT[name]}` : `${JSON.stringify(name)} is no action of a seccomp profile`, input: name })
})
const errnoNumber = z.number().int().min(1, 'must be an error number, 1 to 4095').max(4095, 'must be an error number, 1 to 4095')
const errnoName = z.string().refine(name => name in constants.errno, 'is no error name such as EPERM')
const exact = z.custom<number>(value => Number.isSafeInteger(value) && (value as number) >= 0, 'must be a whole number below 2^53: larger ones cannot be read exactly from JSON')
const argument = z.strictObject({
  index: z.number().int().min(0).max(5, 'a call has six arguments: 0 to 5'),
  value: exact,
  valueTwo: exact.optional(),
  op: z.enum(Object.keys(OPS) as (keyof typeof OPS)[], { error: `must be one of ${Object.keys(OPS).join(', ')}` }),
}).superRefine(({ op, value, valueTwo }, context) => {
  if (op === 'SCMP_CMP_MASKED_EQ' && (BigInt(valueTwo ?? 0) & ~BigInt(value)) !== 0n) context.addIssue({ code: 'custom', message: 'valueTwo has bits outside of value, its mask: it could never be met', input: valueTwo })
})
const filter = z.strictObject({ caps: z.array(z.string()).nullish(), arches: z.array(z.string()).nullish(), minKernel: z.string().regex(/^\d+\.\d+$/, 'must be a kernel version such as 4.8').nullish() })
const ENTRIES_MAX = 2_000
const few = { error: `holds more than ${ENTRIES_MAX} entries`, abort: true } as const
const rule = z.strictObject({
  names: z.array(z.string()).max(ENTRIES_MAX, few).nullish(), name: z.string().nullish(), action,
  args: z.array(argument).max(6).nullish(), errnoRet: errnoNumber.nullish(), errno: errnoName.nullish(),
  comment: z.string().nullish(), includes: filter.nullish(), excludes: filter.nullish(),
})
const written = z.strictObject({
  defaultAction: action, defaultErrnoRet: errnoNumber.nullish(), defaultErrno: errnoName.nullish(),
  architectures: z.array(z.string()).nullish(), archMap: z.array(z.unknown()).nullish(), flags: z.array(z.string()).nullish(),
  listenerPath: z.never({ error: 'no supervisor listens to a cell' }).optional(), listenerMetadata: z.never({ error: 'no supervisor listens to a cell' }).optional(),
  syscalls: z.array(rule).max(ENTRIES_MAX, few).nullish(),
})
type Written = z.infer<typeof written>

export type OciArgument = z.infer<typeof argument>
export type OciRule = { names: string[]; action: 'SCMP_ACT_ALLOW' | RefusingAction; errnoRet?: number; args?: OciArgument[] }
/** A profile as this host and a cell have it: no conditions on capabilities, architecture or kernel are left, and the default refuses. */
export type OciProfile = { defaultAction: RefusingAction; defaultErrnoRet?: number; syscalls: OciRule[] }

/** One edit in a name that nobody knows is taken for a slip; more for a call of another architecture or of the future. */
const SLIP_EDITS = 1
/** Rules with arguments in a profile: each is looked at on every call. */
const CONDITIONAL_MAX = 256

/** `known`: names that some architecture has, so that one that is not among them may be a slip. */
export function ociSchema(known: (name: string) => boolean): z.ZodType<OciProfile> {
  return z.unknown().transform((input, context): OciProfile => {
    const parsed = written.safeParse(input)
    if (parsed.success) {
      const profile = resolved(parsed.data, { arch: ARCHES[arch()] ?? arch(), kernel: release() })
      const faults = faultsOf(profile, known)
      for (const message of faults) context.addIssue({ code: 'custom', message, input })
      return faults.length === 0 ? profile : z.NEVER
    }
    for (const issue of parsed.error.issues) {
      const at = issue.path.map(step => (typeof step === 'number' ? `[${step}]` : `.${String(step)}`)).join('').replace(/^\./, '')
      const message = issue.code === 'unrecognized_keys' ? `the key ${JSON.stringify(issue.keys[0])} is not known in a seccomp profile` : issue.message
      context.addIssue({ code: 'custom', message: at === '' ? message : `${at}: ${message}`, path: [...issue.path], input })
    }
    return z.NEVER
  })
}

/** Go's names of architectures, which Docker and Podman use, by Node's. */
const ARCHES: Record<string, string> = { x64: 'amd64', arm64: 'arm64', arm: 'arm', ia32: '386' }

/** What is left of a profile in a cell, which has no capability. */
export function resolved(profile: Written, host: { arch: string; kernel: string }): OciProfile {
  const errnoOf = ({ errnoRet, errno }: { errnoRet?: number | null | undefined; errno?: string | null | undefined }): number =>
    errnoRet ?? (errno == null ? constants.errno.EPERM : constants.errno[errno as keyof typeof constants.errno])
  const applies = ({ includes, excludes }: z.infer<typeof rule>): boolean =>
    (includes?.caps?.length ?? 0) === 0
    && ((includes?.arches?.length ?? 0) === 0 || includes!.arches!.includes(host.arch))
    && (includes?.minKernel == null || atLeast(host.kernel, includes.minKernel))
    && !(excludes?.arches?.includes(host.arch) ?? false)
    && !(excludes?.minKernel != null && atLeast(host.kernel, excludes.minKernel))

  const open = ALLOWING.includes(profile.defaultAction)
  const defaultAction = open ? 'SCMP_ACT_ERRNO' : profile.defaultAction as RefusingAction
  const defaultErrno = open ? constants.errno.ENOSYS : errnoOf({ errnoRet: profile.defaultErrnoRet, errno: profile.defaultErrno })
  const isDefault = (one: OciRule): boolean => one.action === defaultAction && (one.action !== 'SCMP_ACT_ERRNO' || one.errnoRet === defaultErrno)
  const rules = (profile.syscalls ?? []).filter(applies).flatMap((one): OciRule[] => {
    const act = ALLOWING.includes(one.action) ? 'SCMP_ACT_ALLOW' as const : one.action as RefusingAction
    const of = { names: [...one.names ?? [], ...(one.name == null ? [] : [one.name])], action: act, ...(act === 'SCMP_ACT_ERRNO' ? { errnoRet: errnoOf(one) } : {}) }
    const args = one.args ?? []
    // Two conditions on one argument are two rules, of which either is enough (runc, libcontainer/seccomp/seccomp_linux.go).
    const twice = new Set(args.map(({ index }) => index)).size < args.length
    return args.length === 0 ? [of] : twice ? args.map(arg => ({ ...of, args: [arg] })) : [{ ...of, args }]
  // A rule that says what the default says has no effect there, either.
  }).filter(one => one.args !== undefined || open || !isDefault(one))

  const named = new Set(rules.filter(one => one.args === undefined).flatMap(one => one.names))
  // Podman's own profile allows and refuses setns: where a profile says both, the refusal holds.
  const refusedNames = new Set(rules.filter(one => one.args === undefined && one.action !== 'SCMP_ACT_ALLOW').flatMap(one => one.names))
  for (const one of rules) if (one.args === undefined && one.action === 'SCMP_ACT_ALLOW') one.names = one.names.filter(name => !refusedNames.has(name))
  if (open) rules.push({ names: [...NAMES].filter(name => !named.has(name)), action: 'SCMP_ACT_ALLOW' })
  return { defaultAction, ...(defaultAction === 'SCMP_ACT_ERRNO' ? { defaultErrnoRet: defaultErrno } : {}), syscalls: rules.filter(one => one.names.length > 0) }
}

function atLeast(kernel: string, wanted: string): boolean {
  const [major = 0, minor = 0] = kernel.split('.').map(part => Number.parseInt(part, 10))
  const [needMajor = 0, needMinor = 0] = wanted.split('.').map(Number)
  return major > needMajor || (major === needMajor && minor >= needMinor)
}

function faultsOf({ syscalls }: OciProfile, known: (name: string) => boolean): string[] {
  const faults: string[] = []
  const refusals = new Map<string, string>()
  const conditional = syscalls.filter(({ args }) => args !== undefined).reduce((sum, { names }) => sum + names.length, 0)
  if (conditional > CONDITIONAL_MAX) faults.push(`${conditional} calls are decided by their arguments: ${CONDITIONAL_MAX} are the most`)
  let looked = 0
  for (const { names, action: act, errnoRet, args } of syscalls) {
    for (const name of names) {
      if (!NAMES.has(name) && !NEVER.has(name) && !known(name) && looked < SLIPS_MAX) {
        looked++
        const near = closest(name, NAMES, SLIP_EDITS)
        if (near !== undefined) faults.push(`${JSON.stringify(name)} is no system call; did you mean ${near}?`)
        else if (act !== 'SCMP_ACT_ALLOW') faults.push(`${JSON.stringify(name)} is refused, and nobody here knows such a call`)
      }
      if (args !== undefined || act === 'SCMP_ACT_ALLOW') continue
      const says = `${act} ${errnoRet ?? ''}`
      if ((refusals.get(name) ?? says) !== says) faults.push(`${name} is refused twice, and differently`)
      refusals.set(name, says)
    }
  }
  return faults.slice(0, 4)
}
/** Each is compared with every name. */
const SLIPS_MAX = 64

export function ociCondition({ index, op, value, valueTwo }: OciArgument): Condition {
  const word = BigInt(value)
  return op === 'SCMP_CMP_MASKED_EQ' ? { index, op: 'masked-eq', mask: word, value: BigInt(valueTwo ?? 0) } : { index, op: OPS[op], value: word }
}

export type OciCalls = {
  calls: Map<string, CallRule>
  /** Calls that the profile refuses in its own way, and how: by arguments, or whatever they are. */
  refusals: { name: string; ways: Ways; action: Refusal }[]
  fallback: Refusal
}

/** What a profile lets a cell call. Names that this machine does not know, and what no contract can grant, are not in it. */
export function ociCalls({ defaultAction, defaultErrnoRet, syscalls }: OciProfile): OciCalls {
  const calls = new Map<string, CallRule>()
  const refusals: OciCalls['refusals'] = []
  for (const { names, action: act, errnoRet, args } of syscalls) {
    const conditions = (args ?? []).map(ociCondition)
    for (const name of names.filter(one => NAMES.has(one))) {
      const known = calls.get(name) ?? { allow: [], refuse: [] }
      if (act === 'SCMP_ACT_ALLOW') calls.set(name, { ...known, allow: conditions.length === 0 ? ANY : known.allow === ANY ? ANY : [...known.allow, conditions] })
      else {
        const ways = refused(conditions)
        // Of two rules for a call, the one with arguments decides where it fits.
        if (conditions.length > 0) calls.set(name, { ...known, refuse: [...known.refuse, ...ways] })
        refusals.push({ name, ways, action: refusalOf(act, errnoRet) })
      }
    }
  }
  for (const [name, { allow }] of calls) if (product([allow]).length === 0) calls.delete(name)
  return { calls, refusals, fallback: refusalOf(defaultAction, defaultErrnoRet) }
}

function refusalOf(act: RefusingAction, errnoRet: number | undefined): Refusal {
  return REFUSALS[act] ?? { errno: errnoRet ?? constants.errno.EPERM }
}

/** The profile with no more than the given calls allowed. */
export function ociCut(profile: OciProfile, keep: (name: string) => boolean): OciProfile {
  return { ...profile, syscalls: profile.syscalls.map(one => (one.action === 'SCMP_ACT_ALLOW' ? { ...one, names: one.names.filter(keep) } : one)).filter(one => one.names.length > 0) }
}
