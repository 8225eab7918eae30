import { z } from 'zod'
import type { Coverage } from '../evidence/coverage.ts'
import type { ProcessRef } from '../evidence/records.ts'
import type { AuthorityKind, Comparison } from './kind.ts'
import { grantable, pathFault, pathUnknown } from './paths.ts'
import { compareText, counted, repeated, who } from './words.ts'

const schema = z.array(z.string().superRefine((path, context) => {
  const fault = path === '*' ? null : pathFault(path)
  if (fault !== null) context.addIssue({ code: 'custom', message: `${fault} (or "*", any program)`, input: path })
})).max(2_000, { error: 'holds more than 2000 entries', abort: true }).superRefine((list, context) => {
  const twice = repeated(list)
  if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [list.lastIndexOf(twice)], input: list })
  if (list.includes('*') && list.length > 1) context.addIssue({ code: 'custom', message: '"*" grants every program already: leave it alone in the list, or out', path: [list.indexOf('*')], input: list })
}).default([]).describe('absolute paths of programs that may be executed, links followed; ["*"]: any')

type Declared = z.infer<typeof schema>
type Act = { count: number; first: ProcessRef }
type Used = {
  ran: Map<string, Act>
  /** Programs that no path leads to: a memfd, a deleted file, a place that no contract can name. Only "*" allows them. */
  nameless: Map<string, Act>
  failed: Map<string, Act & { errno: string }>
  unknown: number
  /** How often the dynamic loader was started as a program: what it then ran is not known by name. */
  loader: number
  /** Granted paths that are links on the cell's host, and where they lead. */
  links: Map<string, string>
  /** The cell ran from an image: that the host has a program which it lacks makes no refusal. */
  image: boolean
}

function note<T extends Act>(acts: Map<string, T>, path: string, act: T): void {
  const known = acts.get(path)
  if (known === undefined) acts.set(path, act)
  else known.count++
}

/** The dynamic loaders of glibc and musl (ld.so(8)). */
const LOADER = /\/ld-(?:linux[^/]*|musl[^/]*|[\d.]+)\.so(?:\.\d+)?$|\/ld\.so(?:\.\d+)?$/

/** What was executed by a grant, which may name a link. */
function ranBy(grant: string, used: Used): Act | undefined {
  return used.ran.get(grant) ?? used.ran.get(used.links.get(grant) ?? grant)
}

const any = (declared: Declared): boolean => declared.includes('*')

function gapOf(used: Used, coverage: Coverage): string | undefined {
  if (used.loader > 0 && coverage.gaps('exec').length === 0) return `the dynamic loader was started ${counted(used.loader, 'time')} by itself, and what it ran is not known`
  return coverage.gaps('exec')[0] ?? (used.unknown > 0 ? `${counted(used.unknown, 'program')} ran under paths that could not be read` : undefined)
}

/** Programs that may be executed. */
export const exec: AuthorityKind<Declared, Used> = {
  name: 'exec',
  schema,
  fromJob: () => ['*'],
  nothingUsed: () => ({ ran: new Map(), nameless: new Map(), failed: new Map(), unknown: 0, loader: 0, links: new Map(), image: false }),

  observe(event, used) {
    if (event.type === 'cell.started') {
      used.links = new Map(Object.entries(event.links ?? {}))
      used.image = event.rootfs !== undefined
    }
    if (event.type === 'exec') {
      const act = { count: 1, first: event.process }
      if (LOADER.test(event.path)) used.loader++
      if (pathUnknown(event.path)) used.unknown++
      else if (event.unlinked || !grantable(event.path)) note(used.nameless, event.path, act)
      else note(used.ran, event.path, act)
    }
    // What a job made itself is not on the host: that executing it was not permitted says enough.
    if (event.type === 'exec.failed' && event.path.startsWith('/') && (event.errno === 'ENOENT' ? event.onHost && !used.image : ['EACCES', 'EPERM'].includes(event.errno))) {
      note(used.failed, event.path, { count: 1, first: event.process, errno: event.errno })
    }
  },

  compare(declared, used, coverage) {
    const gap = gapOf(used, coverage)
    const unseen = (grant: string): Comparison => gap === undefined
      ? { grant, outcome: 'unused', declared: true, count: 0, proof: 'never executed' }
      : { grant, outcome: 'unobservable', declared: true, count: 0, proof: gap }
    const ran = ({ count, first }: Act): string => `executed ${counted(count, 'time')}, first by ${who(first)}`
    const rows: Comparison[] = []
    for (const grant of declared) {
      if (grant === '*') {
        const all = [...used.ran.values(), ...used.nameless.values()]
        rows.push(all.length === 0 ? unseen('*') : { grant: '*', outcome: 'used', declared: true, count: all.reduce((sum, act) => sum + act.count, 0), proof: `${counted(all.length, 'different program')}${used.nameless.size > 0 ? `, ${used.nameless.size} of them without a path` : ''}` })
        continue
      }
      const act = ranBy(grant, used)
      rows.push(act === undefined ? unseen(grant) : { grant, outcome: 'used', declared: true, count: act.count, proof: ran(act) })
    }
    const listed = new Set(declared.flatMap(path => [path, used.links.get(path) ?? path]))
    for (const [path, act] of sorted(used.ran)) {
      if (any(declared)) rows.push({ grant: path, outcome: 'used', declared: true, count: act.count, proof: `${ran(act)}, by "*"` })
      else if (!listed.has(path)) rows.push({ grant: path, outcome: 'undeclared', declared: false, count: act.count, proof: ran(act) })
    }
    for (const [path, act] of sorted(used.nameless)) {
      rows.push({ grant: `${path} (no path leads to it)`, outcome: any(declared) ? 'used' : 'undeclared', declared: any(declared), count: act.count, proof: `${ran(act)}${any(declared) ? ', by "*", which alone allows it' : ''}` })
    }
    for (const [path, act] of sorted(used.failed)) {
      if (!any(declared) && !listed.has(path)) rows.push({ grant: path, outcome: 'denied', declared: false, count: act.count, proof: `${act.errno} for ${who(act.first)}` })
    }
    return rows
  },

  narrow(declared, used, coverage) {
    if (gapOf(used, coverage) !== undefined) return declared
    if (!any(declared)) return declared.filter(path => ranBy(path, used) !== undefined)
    // No list can name what has no path.
    return used.nameless.size > 0 ? declared : [...used.ran.keys()].sort(compareText)
  },

  within: (inner, outer) => any(outer) || inner.every(path => outer.includes(path)),
}

function sorted<T>(acts: Map<string, T>): [string, T][] {
  return [...acts].sort((a, b) => compareText(a[0], b[0]))
}
