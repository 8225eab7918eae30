import { z } from 'zod'
import type { ProcessRef } from '../evidence/records.ts'
import { canonicalAddress, canonicalName, grantText, grantWithin, host, isBroad, isLoopback, isName, matcherOf, port, type Destination, type Grant, type Matcher } from './destination.ts'
import type { AuthorityKind, Comparison } from './kind.ts'
import { compareText, counted, grouped, repeated, some, who } from './words.ts'

const schema = z.array(z.strictObject({
  host: host.describe('a host name, "*.NAME" (every name below it, not itself), an IP address, a CIDR block, or "*" (any public host)'),
  port: port.describe('a TCP port, or "*"'),
})).max(2_000, { error: 'holds more than 2000 entries', abort: true }).superRefine((list, context) => {
  const texts = list.map(grantText)
  const twice = repeated(texts)
  if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [texts.lastIndexOf(twice)], input: list })
}).default([]).describe('where the cell may connect; everything else has no route and no name')

type Declared = z.infer<typeof schema>
type Flow = Destination & { decision: 'allowed' | 'refused'; reason: string; bytes: number }
type Used = {
  flows: Flow[]
  /** Of names that the resolver refused, by name. */
  refusedNames: Map<string, { count: number; reason: string }>
  answeredNames: Set<string>
  /** Names by the addresses that the resolver gave for them. */
  names: Map<string, Set<string>>
  connects: { process: ProcessRef; address: string; port: number }[]
}

function nameOf(text: string | null): string | null {
  const name = text === null ? null : canonicalName(text)
  return name !== null && isName(name) ? name : null
}

function label({ name, address, port: at }: Destination): string {
  return grantText({ host: name ?? address ?? '?', port: at })
}

type Lost = Destination & { process: ProcessRef; names: string[] }

/** TCP connections that were tried and that the relay never saw, with the names that their addresses were given for. */
function lost(used: Used): Lost[] {
  const seen = new Set(used.flows.map(flow => `${flow.address} ${flow.port}`))
  return used.connects.filter(connect => !seen.has(`${connect.address} ${connect.port}`))
    .map(connect => {
      const names = [...used.names.get(connect.address) ?? []].sort(compareText)
      return { ...connect, name: names[0] ?? null, names }
    })
}

function matching(matchers: readonly Matcher[], destination: Destination & { names?: string[] }): boolean {
  const each = destination.names?.length ? destination.names.map(name => ({ ...destination, name })) : [destination]
  return matchers.some(matches => each.some(matches))
}

/** Names that the resolver answered and that one of the grants covers. */
function lookedUp(grants: readonly Grant[], used: Used): string[] {
  return [...used.answeredNames].filter(name => isName(name) && grants.some(grant => grantWithin({ host: name, port: grant.port }, grant))).sort(compareText)
}

/** Destinations that the cell may reach, by the relay and the resolver that are its only way out. */
export const network: AuthorityKind<Declared, Used> = {
  name: 'network',
  schema,
  fromJob: job => job.egress === null ? [{ host: '*', port: '*' }] : [...new Map(job.egress.map(one => [grantText(one), one])).values()].map(one => ({ host: canonicalName(one.host), port: one.port })),
  nothingUsed: () => ({ flows: [], refusedNames: new Map(), answeredNames: new Set(), names: new Map(), connects: [] }),

  observe(event, used) {
    if (event.type === 'flow') {
      used.flows.push({ name: nameOf(event.name), address: canonicalAddress(event.address), port: event.port, decision: event.decision, reason: event.reason, bytes: event.bytesIn + event.bytesOut })
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
    // A UDP connect is how C libraries sort addresses; nothing leaves a cell by UDP but questions to its resolver.
    if (event.type === 'connect' && event.protocol === 'tcp') {
      const address = canonicalAddress(event.address)
      if (address !== null && event.port > 0 && !isLoopback(address)) used.connects.push({ process: event.process, address, port: event.port })
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
      const mine = allowed.filter(matches)
      if (mine.length > 0) {
        const places = [...new Set(mine.map(label))].sort(compareText)
        const bytes = mine.reduce((sum, flow) => sum + flow.bytes, 0)
        return row('used', mine.length, `${counted(mine.length, 'connection')}, ${counted(bytes, 'byte')}${places.length === 1 && places[0] === grantText(grant) ? '' : `, to ${some(places, 4)}`}`)
      }
      const tried = never.filter(connect => matching([matches], connect))
      if (tried.length > 0) return row('used', tried.length, `tried by ${who(tried[0]!.process)}, but the connection never reached the relay`)
      // A question carries the name out, and the job may need its answer.
      const asked = lookedUp([grant], used)
      if (asked.length > 0) return row('used', asked.length, `looked up and not connected to: ${some(asked, 4)}`)
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
      const named = declared.some(grant => grantWithin({ host: name, port: grant.port }, grant))
      rows.push({ grant: name, outcome: 'denied', declared: named, count, proof: `the resolver refused the name: ${reason}` })
    }
    for (const [place, connects] of [...grouped(never.filter(connect => !matching(matchers, connect)), label)].sort(byName)) {
      rows.push({ grant: place, outcome: 'denied', declared: false, count: connects.length, proof: `tried by ${who(connects[0]!.process)}; it never reached the relay` })
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
    for (const grant of declared) {
      const matchers = [matcherOf(grant)]
      for (const act of acts) {
        if (!matching(matchers, act)) continue
        // A flow that no grant could name leaves "*" as it is.
        const hosts = grant.host !== '*' ? [grant.host] : act.names.length > 0 ? act.names : [act.address ?? '*']
        for (const one of hosts) kept.set(grantText({ host: one, port: act.port }), { host: one, port: act.port })
      }
    }
    for (const grant of declared) {
      if ([...kept.values()].some(one => grantWithin(one, grant))) continue
      for (const name of lookedUp([grant], used)) kept.set(grantText({ host: name, port: grant.port }), { host: name, port: grant.port })
    }
    // What another grant stands for already would be there only for this evidence.
    const broad = [...kept.values()].filter(isBroad)
    return [...kept.values()].filter(grant => !broad.some(other => other !== grant && grantWithin(grant, other)))
      .sort((a, b) => compareText(grantText(a), grantText(b)))
  },

  within: (inner, outer) => inner.every(grant => outer.some(other => grantWithin(grant, other))),

  toJob(narrowed) {
    const exact = narrowed.filter((grant): grant is { host: string; port: number } => grant.host !== '*' && grant.port !== '*')
    return exact.length === narrowed.length ? { egress: exact } : {}
  },
}

function byName(a: readonly [string, unknown], b: readonly [string, unknown]): number {
  return compareText(a[0], b[0])
}
