import { z } from 'zod'
import type { ProcessRef } from '../evidence/records.ts'
import { canonicalAddress, canonicalName, grantText, grantWithin, host, isBroad, isHostGrant, isLoopback, isName, matcherOf, port, type Destination, type Grant, type HostGrant, type Matcher } from './destination.ts'
import type { AuthorityKind, Comparison } from './kind.ts'
import { parseBlock } from './addresses.ts'
import { cellsOwn, inside, ownWhole, socketPath } from './paths.ts'
import { compareText, counted, grouped, repeated, some, who } from './words.ts'

const entry = z.strictObject({
  host: host.optional().describe('a host name, "*.NAME" (every name below it, not itself), an IP address, a CIDR block, or "*" (any public host)'),
  port: port.optional().describe('a port, or "*"'),
  protocol: z.enum(['tcp', 'udp'], { error: 'must be tcp or udp' }).optional().describe('tcp, which is also what its absence means, or udp'),
  encryptedClientHello: z.boolean({ error: 'must be true or false' }).optional().describe('true: clients may hide the name that they mean behind the one that they show'),
  proxy: z.boolean({ error: 'must be true or false' }).optional().describe('true: it is an HTTP proxy, which may be asked for any destination that this list holds'),
  unix: socketPath.optional().describe('instead of a host: the path of a Unix socket of the host'),
}).transform((raw, context): Grant => {
  const fault = (message: string, key: string): never => {
    context.addIssue({ code: 'custom', message, path: [key], input: raw })
    return z.NEVER
  }
  if (raw.unix !== undefined) {
    const beside = (['host', 'port', 'protocol', 'encryptedClientHello', 'proxy'] as const).find(key => raw[key] !== undefined)
    return beside === undefined ? { unix: raw.unix } : fault('has no meaning beside "unix": a socket is named by its path alone', beside)
  }
  if (raw.host === undefined) return fault('must name a host, or "unix" a socket of the host', 'host')
  if (raw.port === undefined) return fault('must be a port from 1 to 65535, or "*"', 'port')
  const hidden = raw.encryptedClientHello === true
  if (hidden && (raw.protocol === 'udp' || raw.host === '*' || parseBlock(raw.host) !== null)) return fault('has a meaning for names over TCP alone: no name is asked for elsewhere', 'encryptedClientHello')
  if (raw.proxy === true && (raw.protocol === 'udp' || raw.host === '*')) return fault('has a meaning for a name or an address over TCP alone', 'proxy')
  // One form for each meaning: what is the default is not written.
  return { host: raw.host, port: raw.port, ...(raw.protocol === 'udp' ? { protocol: 'udp' } : {}), ...(hidden ? { encryptedClientHello: true } : {}), ...(raw.proxy === true ? { proxy: true } : {}) }
})

const schema = z.array(entry).max(2_000, { error: 'holds more than 2000 entries', abort: true }).superRefine((list, context) => {
  const texts = list.map(grantText)
  const twice = repeated(texts)
  if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [texts.lastIndexOf(twice)], input: list })
}).default([]).describe('where the cell may connect; everything else has no route and no name')

type Declared = z.infer<typeof schema>
type Flow = Destination & { hidden: boolean; proxy: boolean; decision: 'allowed' | 'refused'; reason: string; bytes: number }
type Attempt = { count: number; first: ProcessRef; why: string
  /** Known to be a socket of the host. */
  foreign: boolean }
type Used = {
  flows: Flow[]
  /** Of names that the resolver refused, by name. */
  refusedNames: Map<string, { count: number; reason: string }>
  answeredNames: Set<string>
  /** Names by the addresses that the resolver gave for them. */
  names: Map<string, Set<string>>
  connects: { process: ProcessRef; address: string; port: number }[]
  /** Unix sockets of the cell's file tree that were spoken to, and those that could not be, by path. */
  sockets: { reached: Map<string, Attempt>; refused: Map<string, Attempt> }
}

function nameOf(text: string | null): string | null {
  const name = text === null ? null : canonicalName(text)
  return name !== null && isName(name) ? name : null
}

/** The grant that stands for one destination and nothing else. */
function exactly({ name, address, port: at, protocol, hidden, proxy }: Destination, where = name ?? address ?? '?'): HostGrant {
  return { host: where, port: at, ...(protocol === 'udp' ? { protocol } : {}), ...(hidden === true && name === where ? { encryptedClientHello: true } : {}), ...(proxy === true ? { proxy } : {}) }
}

function label(destination: Destination): string {
  return grantText(exactly(destination))
}

type Lost = Destination & { process: ProcessRef; names: string[] }

/** TCP connections that were tried and that the relay never saw, with the names that their addresses were given for. */
function lost(used: Used): Lost[] {
  const seen = new Set(used.flows.filter(flow => flow.protocol === 'tcp').map(flow => `${flow.address} ${flow.port}`))
  return used.connects.filter(connect => !seen.has(`${connect.address} ${connect.port}`))
    .map(connect => {
      const names = [...used.names.get(connect.address) ?? []].sort(compareText)
      return { ...connect, protocol: 'tcp', name: names[0] ?? null, names }
    })
}

function matching(matchers: readonly Matcher[], destination: Destination & { names?: string[] }): boolean {
  const each = destination.names?.length ? destination.names.map(name => ({ ...destination, name })) : [destination]
  return matchers.some(matches => each.some(matches))
}

/** Names that the resolver answered and that one of the grants covers. */
function lookedUp(grants: readonly HostGrant[], used: Used): string[] {
  return [...used.answeredNames].filter(name => isName(name) && grants.some(grant => grantWithin({ ...grant, host: name }, grant))).sort(compareText)
}

/** Whether a socket's use shows that a grant of it was needed; null: it was spoken to under a name that a link may have led there. */
function socketUse(path: string, declared: readonly Grant[], used: Used): Attempt | null | undefined {
  const own = used.sockets.reached.get(path)
  if (own !== undefined) return own
  const granted = new Set(declared.map(grant => (isHostGrant(grant) ? '' : grant.unix)))
  return [...used.sockets.reached.keys()].some(other => !granted.has(other)) ? null : undefined
}

/** Where the host's daemon has its socket, and a cell what it was handed. */
const DAEMONS = '/run/ambit'
function speak(attempts: Map<string, Attempt>, path: string, first: ProcessRef, why: string, foreign: boolean): void {
  const known = attempts.get(path)
  if (known === undefined) attempts.set(path, { count: 1, first, why, foreign })
  else {
    known.count++
    known.foreign ||= foreign
  }
}

/** Errors by which a cell withholds a socket; ECONNREFUSED is its server's affair. */
const WITHHELD = new Set(['EACCES', 'EPERM', 'ENOENT'])

/** Destinations that the cell may reach: by the relay and the resolver that are its only way out, and Unix sockets that it is shown. */
export const network: AuthorityKind<Declared, Used> = {
  name: 'network',
  schema,
  fromJob: job => job.egress === null ? [{ host: '*', port: '*' }] : [...new Map(job.egress.map(one => [grantText(one), one])).values()].map(one => ({ host: canonicalName(one.host), port: one.port })),
  nothingUsed: () => ({ flows: [], refusedNames: new Map(), answeredNames: new Set(), names: new Map(), connects: [], sockets: { reached: new Map(), refused: new Map() } }),

  observe(event, used) {
    if (event.type === 'flow') {
      used.flows.push({ name: nameOf(event.name), address: canonicalAddress(event.address), port: event.port, protocol: event.protocol ?? 'tcp', hidden: event.encryptedClientHello ?? false, proxy: event.proxy ?? false, decision: event.decision, reason: event.reason, bytes: event.bytesIn + event.bytesOut })
    }
    if (event.type === 'dns') {
      const name = canonicalName(event.name)
      if (event.decision === 'allowed') {
        used.answeredNames.add(name)
        for (const answer of event.answers) {
          const address = canonicalAddress(answer)
          if (address !== null && isName(name)) used.names.set(address, (used.names.get(address) ?? new Set()).add(name))
        }
      } else {
        const known = used.refusedNames.get(name)
        if (known === undefined) used.refusedNames.set(name, { count: 1, reason: event.reason })
        else known.count++
      }
    }
    // A UDP connect is how C libraries sort addresses; what is really sent by UDP is in the flows.
    if (event.type === 'connect' && event.protocol === 'tcp') {
      const address = canonicalAddress(event.address)
      if (address !== null && event.port > 0 && !isLoopback(address)) used.connects.push({ process: event.process, address, port: event.port })
    }
    // What a link or a descriptor stands for is not told by its name, so the name of a place of the cell's own proves nothing.
    if (event.type === 'file' && event.socket === true && event.owner !== 'cell' && !inside(event.path, DAEMONS)) {
      speak(used.sockets.reached, event.path, event.process, '', event.owner === 'host')
    }
    if (event.type === 'file.failed' && event.socket === true && (!cellsOwn(event.path) || inside(event.path, DAEMONS)) && event.onHost && WITHHELD.has(event.errno)) {
      speak(used.sockets.refused, event.path, event.process, event.errno, false)
    }
  },

  compare(declared, used, coverage) {
    const gap = coverage.gaps('network')[0]
    const allowed = used.flows.filter(flow => flow.decision === 'allowed')
    const never = lost(used)
    const matchers = declared.map(matcherOf)
    const rows = declared.map((grant, index): Comparison => {
      const matches = matchers[index]!
      const row = (outcome: Comparison['outcome'], count: number, proof: string): Comparison => ({ grant: grantText(grant), outcome, declared: true, count, proof })
      if (!isHostGrant(grant)) {
        const use = socketUse(grant.unix, declared, used)
        if (use) return row('used', use.count, `spoken to, first by ${who(use.first)}`)
        if (use === null) return row('unobservable', 0, 'another socket was spoken to by its name alone, and a link may have led here')
        const silent = gap ?? coverage.gaps('file')[0]
        return silent === undefined ? row('unused', 0, 'nobody spoke to it') : row('unobservable', 0, silent)
      }
      const mine = allowed.filter(matches)
      if (mine.length > 0) {
        const places = [...new Set(mine.map(label))].sort(compareText)
        const below = grant.host.startsWith('*.') ? lookedUp([grant], used).length : 0
        const bytes = mine.reduce((sum, flow) => sum + flow.bytes, 0)
        return row('used', mine.length, `${counted(mine.length, 'connection')}, ${counted(bytes, 'byte')}${places.length === 1 && places[0] === grantText(grant) ? '' : `, to ${some(places, 4)}`}${below > 1 ? `; ${below} different names below it were asked for` : ''}`)
      }
      const tried = never.filter(connect => matching([matches], connect))
      if (tried.length > 0) return row('used', tried.length, `tried by ${who(tried[0]!.process)}, but the connection never reached the relay`)
      // A question carries the name out, and the job may need its answer.
      const asked = lookedUp([grant], used)
      if (asked.length > 0) return row('used', asked.length, `looked up and not connected to: ${some(asked, 4)}${asked.length > 4 ? `; ${asked.length} different names were asked for` : ''}`)
      return gap === undefined ? row('unused', 0, 'no connection was made to it') : row('unobservable', 0, gap)
    })

    const undeclared = grouped(allowed.filter(flow => !matching(matchers, flow)), label)
    for (const [place, flows] of [...undeclared].sort(byName)) {
      rows.push({ grant: place, outcome: 'undeclared', declared: false, count: flows.length, proof: `${counted(flows.length, 'connection')}, ${counted(flows.reduce((sum, flow) => sum + flow.bytes, 0), 'byte')}` })
    }
    const refused = grouped(used.flows.filter(flow => flow.decision === 'refused'), label)
    for (const [place, flows] of [...refused].sort(byName)) {
      rows.push({ grant: place, outcome: 'denied', declared: matching(matchers, flows[0]!), count: flows.length, proof: `the relay refused: ${flows[0]!.reason}` })
    }
    for (const [name, { count, reason }] of [...used.refusedNames].sort(byName)) {
      if (used.answeredNames.has(name)) continue
      const named = declared.some(grant => isHostGrant(grant) && grantWithin({ ...grant, host: name }, grant))
      rows.push({ grant: name, outcome: 'denied', declared: named, count, proof: `the resolver refused the name: ${reason}` })
    }
    for (const [place, connects] of [...grouped(never.filter(connect => !matching(matchers, connect)), label)].sort(byName)) {
      rows.push({ grant: place, outcome: 'denied', declared: false, count: connects.length, proof: `tried by ${who(connects[0]!.process)}; it never reached the relay` })
    }
    const shown = new Set(declared.map(grantText))
    for (const [outcome, attempts] of [['undeclared', used.sockets.reached], ['denied', used.sockets.refused]] as const) {
      for (const [path, { count, first, why, foreign }] of [...attempts].sort(byName)) {
        const grant = grantText({ unix: path })
        if (outcome === 'undeclared' && shown.has(grant)) continue
        const unknown = outcome === 'undeclared' && !foreign && (ownWhole(path) || cellsOwn(path))
        if (unknown) {
          rows.push({ grant, outcome: 'unobservable', declared: false, count, proof: `spoken to, first by ${who(first)}: the cell's own, or a link that led out of it` })
          continue
        }
        rows.push({ grant, outcome, declared: shown.has(grant), count, proof: outcome === 'denied' ? `${why} for ${who(first)}` : `spoken to, first by ${who(first)}` })
      }
    }
    return rows
  },

  narrow(declared, used, coverage) {
    if (coverage.gaps('network').length > 0) return declared
    const acts: (Destination & { names: string[] })[] = [
      ...used.flows.filter(flow => flow.decision === 'allowed').map(flow => ({ ...flow, names: flow.name === null ? [] : [flow.name] })),
      ...lost(used),
    ]
    const kept = new Map<string, Grant>()
    const keep = (grant: Grant): void => { kept.set(grantText(grant), grant) }
    for (const grant of declared) {
      if (!isHostGrant(grant)) {
        if (socketUse(grant.unix, declared, used) !== undefined || coverage.gaps('file').length > 0) keep(grant)
        continue
      }
      const matchers = [matcherOf(grant)]
      for (const act of acts) {
        if (!matching(matchers, act)) continue
        // A flow that no grant could name leaves "*" as it is.
        const hosts = grant.host !== '*' ? [grant.host] : act.names.length > 0 ? act.names : [act.address ?? '*']
        for (const one of hosts) keep(exactly({ ...act, name: parseBlock(one) === null && one !== '*' ? one : null }, one))
      }
    }
    for (const grant of declared) {
      if (!isHostGrant(grant) || [...kept.values()].some(one => grantWithin(one, grant))) continue
      for (const name of lookedUp([grant], used)) keep({ ...grant, host: name })
    }
    // What another grant stands for already would be there only for this evidence.
    const all = [...kept.values()]
    return all.filter(grant => !all.some(other => other !== grant && grantWithin(grant, other) && (isBroad(other) || !grantWithin(other, grant))))
      .sort((a, b) => compareText(grantText(a), grantText(b)))
  },

  within: (inner, outer) => inner.every(grant => outer.some(other => grantWithin(grant, other))),

  toJob(narrowed) {
    const exact = narrowed.flatMap(grant => (isHostGrant(grant) && grant.host !== '*' && grant.port !== '*' && grant.protocol === undefined && grant.encryptedClientHello === undefined && grant.proxy === undefined ? [{ host: grant.host, port: grant.port }] : []))
    return exact.length === narrowed.length ? { egress: exact } : {}
  },
}

function byName(a: readonly [string, unknown], b: readonly [string, unknown]): number {
  return compareText(a[0], b[0])
}
