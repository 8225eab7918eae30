import { z } from 'zod'
import type { Coverage } from '../evidence/coverage.ts'
import type { SyscallCount } from '../evidence/records.ts'
import type { SeccompPlan } from '../native.ts'
import type { AuthorityKind, Comparison } from './kind.ts'
import { filterPlan, WITH_LIMITS } from './seccomp.ts'
import { FAMILIES, NAMES, NEVER, PROFILES, type Profile } from './syscall-profiles.ts'
import { closest, compareText, counted, repeated, some, who } from './words.ts'

const schema = z.strictObject({
  profile: z.enum(Object.keys(PROFILES) as [Profile, ...Profile[]]).default('minimal')
    .describe('minimal: what any program may call at any moment; build: also what compilers, shells, git, node, python, tar, curl and package managers need'),
  allow: z.array(z.string().superRefine((name, context) => {
    const never = NEVER.get(name)
    const near = closest(name, NAMES)
    if (never !== undefined) context.addIssue({ code: 'custom', message: `${name} can be granted by no contract: ${never}`, input: name })
    else if (!NAMES.has(name)) context.addIssue({ code: 'custom', message: `${JSON.stringify(name)} is no system call that a filter knows${near === undefined ? '' : `; did you mean ${near}?`}`, input: name })
  })).superRefine((list, context) => {
    const twice = repeated(list)
    if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [list.lastIndexOf(twice)], input: list })
  }).default([]).describe('more calls by name; clone, socket, socketpair, ioctl and personality keep the limits on their arguments'),
}).prefault({})

type Declared = z.infer<typeof schema>
type Counts = { reached: number; refused: number }
type Used = {
  calls: Map<string, Counts>
  /** A `syscalls` record was seen: without the set, silence means nothing. */
  told: boolean
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

function allowedBy({ profile, allow }: Declared): Set<string> {
  return new Set([...PROFILES[profile], ...allow])
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
  fromJob: () => ({ profile: 'build', allow: [] }),
  nothingUsed: () => ({ calls: new Map(), told: false, refusals: new Map() }),

  observe(event, used) {
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
    const allowed = allowedBy(declared)
    const rows: Comparison[] = []
    // The set counts refusals; where there is no set, the events alone tell of them.
    const unset = [...used.refusals.keys()].filter(name => !used.calls.has(name)).map((name): [string, Counts] => [name, { reached: 0, refused: 1 }])
    for (const [name, counts] of [...used.calls, ...unset].sort((a, b) => b[1].reached - a[1].reached || compareText(a[0], b[0]))) {
      if (counts.reached > 0) {
        const granted = allowed.has(name)
        rows.push({ grant: name, outcome: granted ? 'used' : 'undeclared', declared: granted, count: counts.reached, proof: `called ${counted(counts.reached, 'time')}` })
      }
      if (counts.refused > 0) {
        const grant = allowed.has(name) ? `${name} ${WITH_LIMITS.has(name) ? '(with arguments outside its limits)' : '(by a filter of the job\'s own)'}` : name
        rows.push({ grant, outcome: 'denied', declared: false, count: counts.refused, proof: `refused ${counted(counts.refused, 'time')}${used.refusals.has(name) ? `, first ${used.refusals.get(name)!}` : ''}` })
      }
    }
    if (gap !== undefined) {
      const unseen = [...allowed].filter(name => !PROFILES.minimal.has(name) && !(used.calls.get(name)?.reached ?? 0))
      if (unseen.length > 0) rows.push({ grant: `${counted(unseen.length, 'other call')}`, outcome: 'unobservable', declared: true, count: null, proof: `${gap}: ${some(unseen.sort(compareText), 6)}` })
      return rows
    }
    const needed = widened(reached(used))
    for (const name of [...allowed].filter(one => !PROFILES.minimal.has(one) && !needed.has(one)).sort(compareText)) {
      rows.push({ grant: name, outcome: 'unused', declared: true, count: 0, proof: 'never called' })
    }
    return rows
  },

  narrow(declared, used, coverage) {
    if (gapOf(used, coverage) !== undefined) return declared
    const allowed = allowedBy(declared)
    return { profile: 'minimal', allow: [...widened(reached(used))].filter(name => allowed.has(name) && !PROFILES.minimal.has(name)).sort(compareText) }
  },

  within(inner, outer) {
    const allowed = allowedBy(outer)
    return [...allowedBy(inner)].every(name => allowed.has(name))
  },
}

/**
 * The filter that holds a cell to its declared calls. `programsListed`: the contract lists what may be executed.
 * `setIdHarmless`: nothing that the job writes is ever a file of the host.
 */
export function seccompPlan(declared: Declared, about: { programsListed: boolean; setIdHarmless?: boolean }): SeccompPlan {
  return filterPlan(allowedBy(declared), about)
}
