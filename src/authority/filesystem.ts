import { posix } from 'node:path'
import { z } from 'zod'
import type { Coverage } from '../evidence/coverage.ts'
import type { Access, EvidenceEvent, ProcessRef } from '../evidence/records.ts'
import type { AuthorityKind, Comparison, Outcome } from './kind.ts'
import { cellsOwn, covers, gathered, generalised, grantable, grantedPath, inside, outermost, ownWhole, pathUnknown } from './paths.ts'
import { compareText, counted, repeated, some, who } from './words.ts'

const paths = z.array(grantedPath).max(2_000, { error: 'holds more than 2000 entries', abort: true }).default([]).superRefine((list, context) => {
  const twice = repeated(list)
  if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [list.lastIndexOf(twice)], input: list })
})
const schema = z.strictObject({
  read: paths.describe('absolute paths that may be read, each with all that lies below it; "/" is everything a cell can show'),
  write: paths.describe('absolute paths that may be read, changed and made, each with all that lies below it'),
}).prefault({})

type Declared = z.infer<typeof schema>
type Right = 'read' | 'write'
type Act = { count: number; first: ProcessRef }
type Links = ReadonlyMap<string, string>
type Failure = Act & { errno: string }
type Used = {
  done: Record<Right, Map<string, Act>>
  /** Sockets spoken to: it takes the right to write them, but which may be spoken to is the network's. */
  sockets: Map<string, Act>
  /** Looked at and not opened (stat, access, readlink…). */
  looked: Map<string, Act>
  /** Paths that were made, not only written. */
  created: Set<string>
  failed: Record<Right, Map<string, Failure>>
  /** Opened, but under a path that the probes could not read, or told only by what the process said. */
  unknown: number
  /** A change that is known by what the process said alone: a link may have led it to another grant. */
  unsure: string | undefined
  /** Granted paths that are links on the cell's host, and where they lead. */
  links: Links
  /** The cell ran from an image: all of it is there, and what it lacks the host's having it makes no refusal. */
  image: boolean
}

/** Errors by which a cell withholds: not there, not permitted, not writable. Others are the file's own affair. */
const WITHHELD = new Set(['EACCES', 'EPERM', 'EROFS'])

function rights(access: Access): Right[] {
  return access === 'readwrite' ? ['read', 'write'] : [access]
}

/** Withheld by not being there. Processes have other numbers on the host: that /proc lacks a name says nothing. */
function missing({ path, errno, onHost }: { path: string; errno: string; onHost: boolean }): boolean {
  return errno === 'ENOENT' && onHost && !inside(path, '/proc')
}

function note(acts: Map<string, Act>, path: string, process: ProcessRef): void {
  const act = acts.get(path)
  if (act === undefined) acts.set(path, { count: 1, first: process })
  else act.count++
}

/** A grant, and where it leads. */
function places(grant: string, links: Links): string[] {
  const real = links.get(grant)
  return real === undefined ? [grant] : [grant, real]
}

/** The widest grants that a path is under, by their own names or by where they lead. */
function holding(grants: readonly string[], path: string, links: Links): string[] {
  return outermost(grants.filter(grant => covers(places(grant, links), path)))
}

/** Whoever may write below a path may read there: so the cell's mounts and Landlock rules have it. */
function allows(declared: Declared, right: Right, path: string, links: Links): boolean {
  const grants = right === 'read' ? [...declared.write, ...declared.read] : declared.write
  return grants.some(grant => covers(places(grant, links), path))
}

function gapOf(used: Used, coverage: Coverage): string | undefined {
  return coverage.gaps('file')[0] ?? (used.unknown > 0 ? `${counted(used.unknown, 'file was', 'files were')} opened under paths that could not be read` : undefined)
}

/** A directory that leads to a granted path exists in every cell that has the grant, as do the top-level ones. */
function isThereAnyway(path: string, granted: readonly string[]): boolean {
  return posix.dirname(path) === '/' || granted.some(grant => inside(grant, path))
}

function unsureGap(used: Used): string | undefined {
  return used.unsure === undefined ? undefined : `a change is known by its name alone (${used.unsure}), and a link may have led it here`
}

/** Files of the host that the cell may read or write. What the cell makes for itself is not authority. */
export const filesystem: AuthorityKind<Declared, Used> = {
  name: 'filesystem',
  schema,
  fromJob: () => ({ read: ['/'], write: ['/workspace', '/tmp'] }),
  nothingUsed: () => ({ done: { read: new Map(), write: new Map() }, sockets: new Map(), looked: new Map(), created: new Set(), failed: { read: new Map(), write: new Map() }, unknown: 0, unsure: undefined, links: new Map(), image: false }),

  observe(event: EvidenceEvent, used) {
    if (event.type === 'cell.started') {
      used.links = new Map(Object.entries(event.links ?? {}))
      used.image = event.rootfs !== undefined
    }
    if (event.type === 'file') {
      const said = event.source === 'argument'
      if (pathUnknown(event.path) || (said && event.access !== 'write')) used.unknown++
      else if (said) used.unsure ??= event.path
      if (cellsOwn(event.path) || !grantable(event.path)) return
      if (event.socket === true) note(used.sockets, event.path, event.process)
      else if (event.source === 'name') note(used.looked, event.path, event.process)
      else for (const right of rights(event.access)) note(used.done[right], event.path, event.process)
      if (event.created) used.created.add(event.path)
    }
    // A program of the job's own is read to be executed; the others are the exec kind's.
    if (event.type === 'exec' && !event.unlinked && ownWhole(event.path)) note(used.done.read, event.path, event.process)
    if (event.type === 'file.failed' && event.socket !== true) {
      if (!event.path.startsWith('/')) return
      const writes = event.access !== 'read'
      const refused = WITHHELD.has(event.errno)
      // A new file is not on the host either: that making it was refused says enough. So it does of what is the cell's own.
      if (!(missing(event) && !used.image) && !(refused && (event.onHost || used.image || writes || cellsOwn(event.path)))) return
      const failures = used.failed[writes ? 'write' : 'read']
      const known = failures.get(event.path)
      if (known === undefined) failures.set(event.path, { count: 1, first: event.process, errno: event.errno })
      else known.count++
    }
  },

  compare(declared, used, coverage) {
    const gap = gapOf(used, coverage)
    const rows: Comparison[] = []
    for (const right of ['read', 'write'] as const) {
      for (const grant of declared[right]) rows.push(grantRow(right, grant, used, right === 'write' ? gap ?? unsureGap(used) : gap))
    }
    for (const right of ['read', 'write'] as const) rows.push(...undeclaredRows(declared, right, used))
    for (const right of ['read', 'write'] as const) {
      for (const [path, failure] of [...used.failed[right]].sort(byName)) {
        // A grant of "/" does not reach into what the cell makes for itself.
        if (!cellsOwn(path) && allows(declared, right, path, used.links)) continue
        rows.push({ grant: `${right} ${path}`, outcome: 'denied', declared: false, count: failure.count, proof: `${failure.errno} for ${who(failure.first)}` })
      }
    }
    return rows
  },

  narrow(declared, used, coverage) {
    if (gapOf(used, coverage) !== undefined) return declared
    const { links } = used
    const written = [...used.done.write.keys(), ...used.sockets.keys()].filter(path => allows(declared, 'write', path, links))
    // What a link may have led to cannot be told from what was never changed: then every grant stays.
    const write = used.unsure !== undefined ? declared.write : gathered(written.map(path => {
      const held = holding(declared.write, path, links)[0]!
      // No path below a link's target lies, by its name, within the grant: the grant stays as it is written.
      if (!covers(declared.write, path)) return held
      const own = generalised(path)
      if (own !== path) return inside(own, held) ? own : held
      // What the job makes is not there when the next cell is built: the grant must name a place that is.
      if (!used.created.has(path)) return path
      return held === '/' ? posix.dirname(path) : held
    }), folder => covers(declared.write, folder))
    const all = [...declared.read, ...declared.write]
    const kept = write.flatMap(grant => places(grant, links))
    const readable = (path: string): boolean => allows(declared, 'read', path, links) && !covers(kept, path)
    const opened = [...used.done.read.keys()].filter(readable)
    const looked = [...used.looked.keys()].filter(path => readable(path) && !isThereAnyway(path, [...kept, ...opened]))
    const read = gathered([...opened, ...looked].map(path => {
      if (!covers(all, path)) return holding(all, path, links)[0]!
      const own = generalised(path)
      return covers(all, own) ? own : outermost(all.filter(grant => inside(path, grant)))[0]!
    }), folder => covers(all, folder))
    return { read, write }
  },

  within: (inner, outer) => inner.read.every(path => covers([...outer.write, ...outer.read], path)) && inner.write.every(path => covers(outer.write, path)),
}

function byName(a: readonly [string, unknown], b: readonly [string, unknown]): number {
  return compareText(a[0], b[0])
}

function grantRow(right: Right, grant: string, used: Used, gap: string | undefined): Comparison {
  const below = (acts: Map<string, Act>): [string, Act][] => [...acts].filter(([path]) => covers(places(grant, used.links), path))
  const done = [...below(used.done[right]), ...(right === 'write' ? below(used.sockets) : [])]
  const looks = right === 'read' ? below(used.looked) : []
  const row = (outcome: Outcome, count: number, proof: string): Comparison => ({ grant: `${right} ${grant}`, outcome, declared: true, count, proof })
  if (done.length > 0) {
    const [path, { first }] = done[0]!
    return row('used', done.reduce((sum, [, act]) => sum + act.count, 0), `${counted(done.length, 'path')}, first ${path} by ${who(first)}`)
  }
  if (looks.length > 0) return row('used', looks.length, `${counted(looks.length, 'path')} looked at and not opened, first ${looks[0]![0]} by ${who(looks[0]![1].first)}`)
  if (gap !== undefined) return row('unobservable', 0, gap)
  const failed = below(used.failed[right]) as [string, Failure][]
  if (failed.length > 0) return row('unused', 0, `tried and failed: ${some(failed.map(([path, { errno }]) => `${path} (${errno})`), 2)}`)
  if (right === 'write' && below(used.done.read).length > 0) return row('unused', 0, 'only read was used')
  return row('unused', 0, 'no file below it was opened')
}

function undeclaredRows(declared: Declared, right: Right, used: Used): Comparison[] {
  const looks = right === 'read' ? [...used.looked].filter(([path]) => !isThereAnyway(path, [...declared.read, ...declared.write])) : []
  const acts = [...used.done[right], ...looks].filter(([path]) => !allows(declared, right, path, used.links))
  return gathered(acts.map(([path]) => generalised(path)), () => true).map(folder => {
    const below = acts.filter(([path]) => inside(path, folder))
    const [path, { first }] = below[0]!
    const count = below.reduce((sum, [, act]) => sum + act.count, 0)
    return { grant: `${right} ${folder}`, outcome: 'undeclared', declared: false, count, proof: `${counted(below.length, 'path')}, first ${path} by ${who(first)}` }
  })
}
