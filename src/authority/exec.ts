import { posix } from 'node:path'
import { z } from 'zod'
import type { Coverage } from '../evidence/coverage.ts'
import type { ProcessRef } from '../evidence/records.ts'
import type { AuthorityKind, Comparison } from './kind.ts'
import { covers, grantable, inside, ownWhole, pathFault, pathUnknown } from './paths.ts'
import { textOrMap } from './text-or-map.ts'
import { compareText, counted, repeated, who } from './words.ts'

/** What a digest pins must be the host's and stay as it was: jobs write these places. */
const OF_JOBS = ['/workspace', '/tmp']
/** Each is a descriptor that goes with the plan of a cell (native/common/messages.hpp, kMaxDescriptors). */
const DIGESTS_MAX = 64

const programPath = z.string().superRefine((path, context) => {
  const fault = path === '*' ? null : pathFault(path)
  if (fault !== null) context.addIssue({ code: 'custom', message: `${fault} (or "*", any program)`, input: path })
})
const pinned = z.strictObject({
  path: z.string({ error: 'must be the path of a program: a digest alone says nothing of where it is found' }).superRefine((path, context) => {
    const place = OF_JOBS.find(folder => inside(path, folder))
    const fault = path === '*' ? '"*" is any program, and has no digest' : place === undefined ? pathFault(path) : `jobs write in ${place}: what is there when the cell starts is not what runs, so a digest would hold nothing`
    if (fault !== null) context.addIssue({ code: 'custom', message: fault, input: path })
  }).describe('the program, an absolute path'),
  sha256: z.string({ error: 'must be the SHA-256 of the program as text: 64 hexadecimal digits, in quotes where YAML takes them for a number' }).regex(/^[0-9a-f]{64}$/, 'must be the SHA-256 of the program, 64 hexadecimal digits in lower case').describe('of its content, hex'),
})

const schema = z.array(textOrMap(programPath, pinned)).max(2_000, { error: 'holds more than 2000 entries', abort: true }).superRefine((list, context) => {
  const paths = execPaths(list)
  const twice = repeated(paths)
  if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [paths.lastIndexOf(twice)], input: list })
  if (paths.includes('*') && list.length > 1) context.addIssue({ code: 'custom', message: '"*" grants every program already: leave it alone in the list, or out', path: [paths.indexOf('*')], input: list })
  if (execPins(list).length > DIGESTS_MAX) context.addIssue({ code: 'custom', message: `holds ${execPins(list).length} digests: ${DIGESTS_MAX} are the most`, input: list })
}).default([]).describe('absolute paths of programs that may be executed, links followed; { path, sha256 }: only with this content; ["*"]: any')

export type ExecPin = z.output<typeof pinned>
export type ExecGrant = string | ExecPin

/** The programs of a list, whether or not their content is named. */
export function execPaths(grants: readonly ExecGrant[]): string[] {
  return grants.map(pathOf)
}

/** Those whose content is named. */
export function execPins(grants: readonly ExecGrant[]): ExecPin[] {
  return grants.filter(grant => typeof grant !== 'string')
}

const pathOf = (grant: ExecGrant): string => (typeof grant === 'string' ? grant : grant.path)
const textOf = (grant: ExecGrant): string => (typeof grant === 'string' ? grant : `${grant.path} sha256:${grant.sha256.slice(0, 12)}`)

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
  /** Scripts are told by the name that was asked for, which may be a link to another. */
  scripts: Set<string>
  /** Where opened files really lay: a script's name among them is no link. */
  opened: Set<string>
  /** What stands before a script in its interpreter's arguments: an option of its first line, or an interpreter that is a script itself. */
  between: Set<string>
  /** Granted paths that are links on the cell's host, and where they lead. */
  links: Map<string, string>
  /** Granted programs that need no loader: another program can name one as its own loader (PT_INTERP of elf(5)), and no record tells. */
  loaders: Set<string>
  /** Programs whose content was named, as it was when the cell started, by path. */
  pins: Map<string, string>
  /** The same by device and inode: a file that was replaced on the host meanwhile has no path any more. */
  pinned: Map<string, string>
  /** The cell ran from an image: that the host has a program which it lacks makes no refusal. */
  image: boolean
}

function note<T extends Act>(acts: Map<string, T>, path: string, act: T): void {
  const known = acts.get(path)
  if (known === undefined) acts.set(path, act)
  else known.count++
}

/** What names itself a library, as loaders do. */
const SHARED_OBJECT = /\.so(?:\.\d+)*$/

/** The dynamic loaders of glibc and musl (ld.so(8)). */
const LOADER = /\/ld-(?:linux[^/]*|musl[^/]*|[\d.]+)\.so(?:\.\d+)?$|\/ld\.so(?:\.\d+)?$/

/** Where packages install programs, whose loader is the system's. */
const OF_PACKAGES = ['/usr', '/bin', '/sbin', '/lib', '/lib32', '/lib64', '/libx32']

const leads = (path: string, used: Used): string => used.links.get(path) ?? path

/** What was executed by a path, which may be a link. */
function ranBy(path: string, used: Used): Act | undefined {
  return used.ran.get(path) ?? used.ran.get(leads(path, used))
}

/** Whether the content is the one that the grant names; undefined: the evidence cannot say. */
function holds(grant: ExecGrant, used: Used): boolean | undefined {
  if (typeof grant === 'string') return true
  const found = used.pins.get(grant.path)
  return found === undefined ? undefined : found === grant.sha256
}

const any = (declared: Declared): boolean => declared.includes('*')

function gapOf(used: Used, coverage: Coverage): string | undefined {
  if (used.loader > 0 && coverage.gaps('exec').length === 0) return `the dynamic loader was started ${counted(used.loader, 'time')} by itself, and what it ran is not known`
  return coverage.gaps('exec')[0] ?? (used.unknown > 0 ? `${counted(used.unknown, 'program')} ran under paths that could not be read` : undefined)
}

/** Why silence says nothing of a program that is listed, by its path; undefined: it was not executed. */
function silence(used: Used): (path: string) => string | undefined {
  const known = new Set([...used.links].flat())
  const maybeLink = (name: string): boolean => !used.opened.has(name) && !known.has(name)
  const script = [...used.scripts].find(maybeLink)
  const named = [...used.between].find(word => word.includes('/') && maybeLink(word))
  const ran = [...used.ran.keys(), ...used.nameless.keys()]
  const odd = ran.find(path => !covers(OF_PACKAGES, path) || inside(path, '/usr/local'))
  return path => {
    const own = [path, leads(path, used)]
    const word = [...used.between].find(each => own.some(one => one === each || one.endsWith(`/${each}`)))
    if (word !== undefined) return `a script's first line may name it: "${word}" stood among its interpreter's arguments`
    if (script !== undefined) return `a script was started as ${script}, which may be a link to it`
    if (named !== undefined) return `a script's first line may name ${named}, which may be a link to it`
    if (SHARED_OBJECT.test(path) && ran.length > 0) return 'a program that ran may name it as its loader, which no record tells'
    return odd !== undefined && (used.loaders.has(path) || ownWhole(path)) ? `${odd} ran, and may name it as its loader, which no record tells` : undefined
  }
}

/** The words between an interpreter and the script that it was started for; all where the script is not found among the arguments. */
function wordsBetween(argv: readonly string[], script: string): string[] {
  const isScript = (word: string): boolean => word === script || (!word.startsWith('/') && script.endsWith(`/${posix.normalize(word)}`))
  const at = argv.reduce((last, word, index) => (index > 0 && isScript(word) ? index : last), -1)
  // An option is no file that an interpreter could be: the kernel takes the first word of the line for that.
  return argv.slice(1, at < 0 ? undefined : at).filter(word => word !== '' && !word.startsWith('-')).map(word => posix.normalize(word))
}

/** Programs that may be executed. */
export const exec: AuthorityKind<Declared, Used> = {
  name: 'exec',
  schema,
  fromJob: () => ['*'],
  nothingUsed: () => ({ ran: new Map(), nameless: new Map(), failed: new Map(), unknown: 0, loader: 0, scripts: new Set(), opened: new Set(), between: new Set(), links: new Map(), loaders: new Set(), pins: new Map(), pinned: new Map(), image: false }),

  observe(event, used) {
    if (event.type === 'cell.started') {
      used.links = new Map(Object.entries(event.links ?? {}))
      used.image = event.rootfs !== undefined
      used.loaders = new Set(event.loaders)
      used.pins = new Map(event.programs?.map(({ path, sha256 }) => [path, sha256]))
      used.pinned = new Map(event.programs?.map(({ path, dev, ino }) => [`${dev} ${ino}`, path]))
    }
    if (event.type === 'file' && ['lsm', 'descriptor'].includes(event.source)) used.opened.add(event.path)
    if (event.type === 'exec') {
      const act = { count: 1, first: event.process }
      const pin = used.pinned.get(`${event.dev} ${event.ino}`)
      if (LOADER.test(event.path)) used.loader++
      // By its name alone (src/evidence/probes.ts).
      if (event.ino === '0') {
        used.scripts.add(event.path)
        for (const word of wordsBetween(event.argv, event.path)) used.between.add(word)
      }
      if (pin !== undefined) note(used.ran, pin, act)
      else if (pathUnknown(event.path)) used.unknown++
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
    const unseenFor = silence(used)
    const unseen = (grant: ExecGrant, proof = 'never executed'): Comparison => {
      const why = gap ?? (grant === '*' ? undefined : unseenFor(pathOf(grant)))
      return { grant: textOf(grant), outcome: why === undefined ? 'unused' : 'unobservable', declared: true, count: 0, proof: why ?? proof }
    }
    const ran = ({ count, first }: Act): string => `executed ${counted(count, 'time')}, first by ${who(first)}`
    const rows: Comparison[] = []
    for (const grant of declared) {
      if (grant === '*') {
        const all = [...used.ran.values(), ...used.nameless.values()]
        rows.push(all.length === 0 ? unseen('*') : { grant: '*', outcome: 'used', declared: true, count: all.reduce((sum, act) => sum + act.count, 0), proof: `${counted(all.length, 'different program')}${used.nameless.size > 0 ? `, ${used.nameless.size} of them without a path` : ''}` })
        continue
      }
      const act = ranBy(pathOf(grant), used)
      const held = holds(grant, used)
      if (act === undefined) rows.push(unseen(grant))
      else if (held === false) rows.push(unseen(grant, `what was executed has another content: sha256 ${used.pins.get(pathOf(grant))}`))
      else if (held === undefined) rows.push({ grant: textOf(grant), outcome: 'unobservable', declared: true, count: act.count, proof: `${ran(act)}, and the evidence does not hold its digest` })
      else rows.push({ grant: textOf(grant), outcome: 'used', declared: true, count: act.count, proof: `${ran(act)}${typeof grant === 'string' ? '' : `; its content when the cell started: sha256 ${grant.sha256}`}` })
    }
    const listed = new Set(declared.filter(grant => holds(grant, used) !== false).flatMap(grant => [pathOf(grant), leads(pathOf(grant), used)]))
    const otherContent = new Map(execPins(declared).filter(grant => holds(grant, used) === false).map(({ path }) => [leads(path, used), used.pins.get(path)]))
    for (const [path, act] of sorted(used.ran)) {
      const other = otherContent.get(leads(path, used))
      if (any(declared)) rows.push({ grant: path, outcome: 'used', declared: true, count: act.count, proof: `${ran(act)}, by "*"` })
      else if (!listed.has(path)) rows.push({ grant: path, outcome: 'undeclared', declared: false, count: act.count, proof: `${ran(act)}${other === undefined ? '' : `, with a content that is not the declared one: sha256 ${other}`}` })
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
    const unseenFor = silence(used)
    if (!any(declared)) return declared.filter(grant => (ranBy(pathOf(grant), used) !== undefined && holds(grant, used) !== false) || unseenFor(pathOf(grant)) !== undefined)
    // No list can name what has no path.
    return used.nameless.size > 0 ? declared : [...used.ran.keys()].sort(compareText)
  },

  within: (inner, outer) => any(outer) || inner.every(grant => outer.some(one => pathOf(one) === pathOf(grant) && (typeof one === 'string' || (typeof grant !== 'string' && one.sha256 === grant.sha256)))),
}

function sorted<T>(acts: Map<string, T>): [string, T][] {
  return [...acts].sort((a, b) => compareText(a[0], b[0]))
}
