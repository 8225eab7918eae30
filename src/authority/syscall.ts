import { z } from 'zod'
import type { Coverage } from '../evidence/coverage.ts'
import type { SyscallCount } from '../evidence/records.ts'
import type { SeccompPlan } from '../native.ts'
import { native } from '../native.ts'
import { ANY, beyond, conditionOf, conditionSchema, permitted, product, refused, type CallRule } from './arguments.ts'
import type { AuthorityKind, Comparison } from './kind.ts'
import { ociCalls, ociCut, ociSchema, type OciProfile } from './oci-seccomp.ts'
import { filterPlan, WITH_LIMITS, type About, type Calls } from './seccomp.ts'
import { FAMILIES, NAMES, NEVER, PROFILES, type Profile } from './syscall-profiles.ts'
import { textOrMap } from './text-or-map.ts'
import { closest, compareText, counted, repeated, some, who } from './words.ts'

/** Rules with arguments in one list: each is looked at on every call that a cell makes. */
const RULES_MAX = 64

const callName = z.string().superRefine((name, context) => {
  const never = NEVER.get(name)
  const near = never === undefined && !NAMES.has(name) ? closest(name, NAMES) : undefined
  if (never !== undefined) context.addIssue({ code: 'custom', message: `${name} can be granted by no contract: ${never}`, input: name })
  else if (!NAMES.has(name)) context.addIssue({ code: 'custom', message: `${JSON.stringify(name)} is no system call that a filter knows${near === undefined ? '' : `; did you mean ${near}?`}`, input: name })
})
const callRule = z.strictObject({
  name: callName,
  args: z.array(conditionSchema).min(1, 'needs a condition; a call with any arguments is its name alone').max(6, 'a call has six arguments').superRefine((args, context) => {
    const twice = args.findIndex(({ index }, at) => args.findIndex(one => one.index === index) < at)
    if (twice >= 0) context.addIssue({ code: 'custom', message: `argument ${args[twice]!.index} has two conditions: write two rules, of which either is enough`, path: [twice], input: args })
  }),
})
const entry = textOrMap(callName, callRule)
type CallGrant = z.output<typeof entry>

function calls(ops: readonly string[], instead: string) {
  return z.array(entry).max(ENTRIES_MAX, { error: `holds more than ${ENTRIES_MAX} entries`, abort: true }).superRefine((list, context) => {
    const texts = list.map(one => (typeof one === 'string' ? one : JSON.stringify(one)))
    const twice = repeated(texts)
    if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [texts.lastIndexOf(twice)], input: list })
    const ruled = list.filter(one => typeof one !== 'string')
    if (ruled.length > RULES_MAX) context.addIssue({ code: 'custom', message: `holds ${ruled.length} rules with arguments: ${RULES_MAX} are the most`, input: list })
    const odd = list.flatMap((one, at) => (typeof one === 'string' ? [] : one.args.map(({ op }, arg) => ({ op, path: [at, 'args', arg, 'op'] })))).find(({ op }) => !ops.includes(op))
    if (odd !== undefined) context.addIssue({ code: 'custom', message: `${odd.op} does not hold here: the kernel may look at the low half of the argument only. ${instead}`, path: odd.path, input: list })
  }).default([])
}

const ENTRIES_MAX = 2_000
const profileName = z.string().transform(name => (name === OLD_STRICT ? 'strict' : name)).superRefine((name, context) => {
  if (name in PROFILES) return
  const oci = name.startsWith(OCI_PREFIX) ? `the file ${JSON.stringify(name.slice(OCI_PREFIX.length))} was not handed over` : null
  context.addIssue({ code: 'custom', message: oci ?? `must be one of ${Object.keys(PROFILES).join(', ')}, or ${OCI_PREFIX}FILE`, input: name })
}).transform(name => name as Profile)
/** What `strict` was called at first. */
const OLD_STRICT = 'minimal'
/** How a contract names a file of another engine's; its content takes the name's place before the contract is read. */
export const OCI_PREFIX = 'oci:'

/** Some architecture has a call of this name. Where libseccomp cannot be asked, evidence is read and nothing is enforced: then any name will do. */
function knownSomewhere(name: string): boolean {
  try {
    return native().syscallState(name) !== 'unknown'
  } catch (error) {
    if ((error as { code?: string }).code === 'NATIVE_MISSING') return true
    throw error
  }
}

const profile = textOrMap(profileName as unknown as z.ZodType<string>, z.strictObject({ oci: ociSchema(knownSomewhere) }))
  .transform(value => value as Profile | { oci: OciProfile })

const schema = z.strictObject({
  profile: profile.default('build')
    .describe('strict: what any program may call at any moment; build: also what compilers, shells, git, node, python, tar, curl and package managers need; network-service: what a server needs; oci:FILE: a seccomp profile of Docker or Podman'),
  allow: calls(['eq', 'ne', 'lt', 'le', 'masked-eq'], 'Say which ones are allowed with eq, lt, le or masked-eq')
    .describe('more calls by name, or by name and arguments; clone, socket, socketpair, ioctl and personality keep the limits on their arguments'),
  deny: calls(['eq', 'ne', 'gt', 'ge', 'masked-eq'], 'Say which ones are refused with eq, gt, ge or masked-eq')
    .describe('calls taken away, by name, or by name and arguments; it wins over allow and the profile'),
}).superRefine(({ profile: base, allow, deny }, context) => {
  const known = typeof base === 'string' ? PROFILES[base] : undefined
  for (const [at, grant] of allow.entries()) {
    if (typeof grant !== 'string' && known?.has(grant.name)) context.addIssue({ code: 'custom', message: `the profile allows ${grant.name} with any arguments already; take some away with deny`, path: ['allow', at], input: allow })
  }
  const { calls: allowed } = callsOf({ profile: base, allow, deny })
  if (!allowed.has('execve')) context.addIssue({ code: 'custom', message: 'without execve no command can be started', path: deny.includes('execve') ? ['deny', deny.indexOf('execve')] : ['profile'], input: deny })
}).prefault({ profile: 'strict' })

export type SyscallDeclaration = { profile: Profile | { oci: OciProfile }; allow: CallGrant[]; deny: CallGrant[] }
type Declared = SyscallDeclaration
type Counts = { reached: number; refused: number }
type Used = {
  calls: Map<string, Counts>
  /** A `syscalls` record was seen: without the set, silence means nothing. */
  told: boolean
  /** What the cell's own filter let through; null: not told. */
  under: ReadonlyMap<string, CallRule> | null
  /** Who was refused first, by call, and with what. */
  refusals: Map<string, string>
}

/**
 * What the kernel's own code behind a probed function calls (arch/x86/entry/syscalls/syscall_64.tbl: 335 and 336): the
 * observer's doing, not the job's. A job that calls one by itself gets SIGILL or an error.
 */
const OF_PROBES = new Set(['uretprobe', 'uprobe'])

/** Calls by the machine's own way in have plain names; a compat way in is a call of its own, which no contract grants. */
function key({ arch, name, nr }: Pick<SyscallCount, 'arch' | 'nr' | 'name'>): string {
  const plain = name ?? `#${nr}`
  return arch === 'x86_64' || arch === 'aarch64' ? plain : `${plain} (${arch})`
}

/** What a declaration lets a cell call. */
export function callsOf({ profile: base, allow, deny }: Declared): Calls {
  const { calls: known, refusals, fallback } = typeof base === 'string'
    ? { calls: new Map([...PROFILES[base]].map((name): [string, CallRule] => [name, { allow: ANY, refuse: [] }])), refusals: [], fallback: null }
    : ociCalls(base.oci)
  for (const grant of allow) {
    const name = nameOf(grant)
    const rule = known.get(name) ?? { allow: [], refuse: [] }
    // A call that is granted by its name is granted whatever its profile refuses of it.
    known.set(name, typeof grant === 'string' ? { allow: ANY, refuse: [] } : { ...rule, allow: rule.allow === ANY ? ANY : [...rule.allow, ...permitted(grant.args.map(conditionOf))] })
  }
  for (const grant of deny) {
    const rule = known.get(nameOf(grant))
    if (rule === undefined) continue
    if (typeof grant === 'string') known.delete(grant)
    else known.set(grant.name, { ...rule, refuse: [...rule.refuse, ...refused(grant.args.map(conditionOf))] })
  }
  for (const [name, rule] of known) if (product([rule.allow]).length === 0) known.delete(name)
  return { calls: known, refusals: refusals.filter(({ name }) => !allow.includes(name)), fallback }
}

function nameOf(grant: CallGrant): string {
  return typeof grant === 'string' ? grant : grant.name
}

/** Some arguments are allowed and others are not, by the contract's own word. */
function conditional({ allow, refuse }: CallRule): boolean {
  return refuse.length > 0 || !allow.some(way => way.length === 0)
}

function reached(used: Used): string[] {
  return [...used.calls].filter(([, counts]) => counts.reached > 0).map(([name]) => name)
}

/** Calls with the rest of their families. */
function widened(names: readonly string[]): Set<string> {
  const seen = new Set(names)
  return new Set([...names, ...FAMILIES.filter(family => family.some(name => seen.has(name))).flat()])
}

function gapOf(used: Used, coverage: Coverage): string | undefined {
  return coverage.gaps('syscall')[0] ?? (used.told ? undefined : 'the evidence holds no set of system calls')
}

/** System calls that reach the kernel. */
export const syscall: AuthorityKind<Declared, Used> = {
  name: 'syscall',
  schema,
  fromJob: () => ({ profile: 'build', allow: [], deny: [] }),
  nothingUsed: () => ({ calls: new Map(), told: false, under: null, refusals: new Map() }),

  observe(event, used) {
    if (event.type === 'cell.started') {
      const held = schema.safeParse((event.contract as { spec?: { authority?: { syscall?: unknown } } } | null)?.spec?.authority?.syscall)
      used.under = held.success ? callsOf(held.data).calls : null
    }
    if (event.type === 'syscalls') {
      used.told = true
      for (const call of event.calls) {
        if (call.name !== null && OF_PROBES.has(call.name)) continue
        const known = used.calls.get(key(call)) ?? { reached: 0, refused: 0 }
        used.calls.set(key(call), { reached: known.reached + call.succeeded + call.failed + call.unfinished, refused: known.refused + call.refused })
      }
    }
    if (event.type === 'syscall.refused') {
      const name = key(event as Pick<SyscallCount, 'arch' | 'nr' | 'name'>)
      if (!used.refusals.has(name)) used.refusals.set(name, `${event.errno} for ${who(event.process)}`)
    }
  },

  compare(declared, used, coverage) {
    const gap = gapOf(used, coverage)
    const rules = callsOf(declared).calls
    const allowed = new Set(rules.keys())
    const rows: Comparison[] = []
    // The set counts refusals; where there is no set, the events alone tell of them.
    const unset = [...used.refusals.keys()].filter(name => !used.calls.has(name)).map((name): [string, Counts] => [name, { reached: 0, refused: 1 }])
    for (const [name, counts] of [...used.calls, ...unset].sort((a, b) => b[1].reached - a[1].reached || compareText(a[0], b[0]))) {
      if (counts.reached > 0) {
        const rule = rules.get(name)
        // The set counts calls, not their arguments: only the cell's own filter can say that none was beyond the grant.
        const unsure = rule !== undefined && conditional(rule) && !(used.under?.has(name) && beyond(used.under.get(name)!, rule) === null)
        const outcome = rule === undefined ? 'undeclared' : unsure ? 'unobservable' : 'used'
        rows.push({ grant: name, outcome, declared: rule !== undefined, count: counts.reached, proof: `called ${counted(counts.reached, 'time')}${unsure ? ', with arguments that the evidence does not tell' : ''}` })
      }
      if (counts.refused > 0) {
        const grant = allowed.has(name) ? `${name} ${WITH_LIMITS.has(name) || conditional(rules.get(name)!) ? '(with arguments outside its limits)' : '(by a filter of the job\'s own)'}` : name
        rows.push({ grant, outcome: 'denied', declared: false, count: counts.refused, proof: `refused ${counted(counts.refused, 'time')}${used.refusals.has(name) ? `, first ${used.refusals.get(name)!}` : ''}` })
      }
    }
    if (gap !== undefined) {
      const unseen = [...allowed].filter(name => !PROFILES.strict.has(name) && !(used.calls.get(name)?.reached ?? 0))
      if (unseen.length > 0) rows.push({ grant: `${counted(unseen.length, 'other call')}`, outcome: 'unobservable', declared: true, count: null, proof: `${gap}: ${some(unseen.sort(compareText), 6)}` })
      return rows
    }
    const needed = widened(reached(used))
    for (const name of [...allowed].filter(one => !PROFILES.strict.has(one) && !needed.has(one)).sort(compareText)) {
      rows.push({ grant: name, outcome: 'unused', declared: true, count: 0, proof: 'never called' })
    }
    return rows
  },

  narrow(declared, used, coverage) {
    if (gapOf(used, coverage) !== undefined) return declared
    const needed = widened(reached(used))
    const { profile: base, allow, deny } = declared
    const keep = (name: string): boolean => PROFILES.strict.has(name) || needed.has(name)
    if (typeof base !== 'string') return { profile: { oci: ociCut(base.oci, keep) }, allow: allow.filter(grant => keep(nameOf(grant))), deny }
    const ruled = allow.filter(grant => typeof grant !== 'string' && needed.has(grant.name))
    const plain = new Set(allow.filter(grant => typeof grant === 'string'))
    const names = [...needed].filter(name => (PROFILES[base].has(name) || plain.has(name)) && !PROFILES.strict.has(name) && !deny.includes(name))
    return { profile: 'strict', allow: [...names.sort(compareText), ...ruled.filter(grant => !names.includes(nameOf(grant)))], deny }
  },

  within(inner, outer) {
    const allowed = callsOf(outer).calls
    return [...callsOf(inner).calls].every(([name, rule]) => allowed.has(name) && beyond(rule, allowed.get(name)!) === null)
  },
}

/** The filter that holds a cell to its declared calls. */
export function seccompPlan(declared: Declared, about: About): SeccompPlan {
  return filterPlan(callsOf(declared), about)
}

/** How evidence and errors name a declaration. */
export function syscallSummary({ profile: base, allow, deny }: Declared): string {
  const changes = [...(allow.length > 0 ? [`${allow.length} more`] : []), ...(deny.length > 0 ? [`${deny.length} taken away`] : [])]
  return [`profile ${typeof base === 'string' ? base : 'of another engine (OCI)'}`, ...changes].join(', ')
}

/** Calls that a contract names itself, and that the given host does not have: permission for them means nothing there. */
export function namedAbsent({ profile: base, allow }: Declared, state: (name: string) => string): string[] {
  const names = new Set([...allow.map(nameOf), ...(typeof base === 'string' ? [] : base.oci.syscalls.filter(one => one.action === 'SCMP_ACT_ALLOW').flatMap(one => one.names))])
  return [...names].filter(name => ['absent', 'unknown'].includes(state(name))).sort(compareText)
}
