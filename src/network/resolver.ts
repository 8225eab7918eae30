import packet from 'dns-packet'
import type { Journal } from './journal.ts'
import type { Names } from './names.ts'
import { canonicalName, type Policy } from './policy.ts'
import { parseAddress, type Address } from '../authority/addresses.ts'
import type { Looked, Upstream } from './upstream.ts'

/** RFC 1035, 4.1.1. */
const RCODE = { none: 0, format: 1, server: 2, name: 3, unsupported: 4, refused: 5 } as const
/** Extended DNS errors (RFC 8914): why, for whoever runs dig. */
const EDE = { blocked: 15, filtered: 17, unreachable: 23 } as const
const TYPE = { A: 1, AAAA: 28, OPT: 41 } as const
const CLASS_IN = 1
const HEADER = 12

/** Seconds. Short enough to follow a server that moves, long enough that a busy job does not ask all the time. */
const TTL_FLOOR = 10
const TTL_CAP = 300
/** An answer needs no more to be useful, and fits in one datagram. */
const MAX_ANSWERS = 16
/** Without EDNS a datagram holds 512 bytes (RFC 1035); 1232 is what the DNS flag day of 2020 settled on. */
const PLAIN_SIZE = 512
const EDNS_SIZE = 1232
/** Look-ups under way for one cell; what comes on top is told to come again. */
const MAX_LOOKUPS = 64
/** Different names that one cell may ask for below one "*.NAME": each carries what a job likes to whoever serves that zone. */
const MAX_BELOW = 1000
const LABEL = /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/

export type Resolver = {
  /**
   * The reply to one message, or null where none may be sent. `limit`: the transport's own size bound; `udp` messages are cut
   * to what the asker can take. Never rejects, whatever the bytes are.
   */
  answer(query: Buffer, transport: 'udp' | 'tcp'): Promise<Buffer | null>
}

type Question = { name: string; type: string; raw: Buffer; edns: number | null }
type Reply = { rcode: number; addresses?: Address[]; ttl?: number; why?: { code: number; text: string } }

/**
 * The only resolver that a cell has. It answers A and AAAA of declared names and nothing else: HTTPS and SVCB records would
 * hand out the keys that hide a TLS name, TXT and the like would be a way in for data. A name that is not declared is answered
 * NXDOMAIN without a question leaving the host: after REFUSED or SERVFAIL glibc asks again and reports a temporary failure,
 * which package managers then retry for minutes; NXDOMAIN ends it at once.
 */
export function cellResolver({ policy, names, upstream, journal, mode, maxBelow = MAX_BELOW }: { policy: Policy; names: Names; upstream: Upstream; journal: Journal; mode: 'observe' | 'enforce'; maxBelow?: number }): Resolver {
  const below = new Map<string, Set<string>>()
  const underway = new Map<string, Promise<Looked>>()
  let ipv6: Promise<boolean> | undefined

  const lookup = (name: string, type: 'A' | 'AAAA'): Promise<Looked> => {
    const key = `${type} ${name}`
    const same = underway.get(key)
    if (same !== undefined) return same
    if (underway.size >= MAX_LOOKUPS) return Promise.resolve({ outcome: 'failed', why: `more than ${MAX_LOOKUPS} look-ups at once` })
    const asked = upstream.lookup(name, type).finally(() => underway.delete(key))
    underway.set(key, asked)
    return asked
  }

  const decide = async (name: string, type: string): Promise<Reply> => {
    const tell = (decision: 'allowed' | 'refused', reason: string, answers: readonly string[] = []): void =>
      journal.dns({ type: 'dns', name: printableName(name), rrtype: type, decision, answers: [...answers], reason })
    const granted = policy.name(name, null)
    if (!name.split('.').every(label => LABEL.test(label)) || name.length > 253) {
      tell('refused', 'not a host name')
      return { rcode: RCODE.name, why: { code: EDE.blocked, text: 'not a host name' } }
    }
    if (!granted && mode === 'enforce') {
      tell('refused', 'not declared')
      return { rcode: RCODE.name, why: { code: EDE.blocked, text: 'the contract of this cell does not declare the name' } }
    }
    const wildcard = mode === 'enforce' ? policy.wildcard(name) : null
    if (wildcard !== null) {
      const asked = below.get(wildcard) ?? new Set()
      below.set(wildcard, asked)
      if (asked.size >= maxBelow && !asked.has(name)) {
        tell('refused', `declared by ${wildcard}, below which ${maxBelow} different names were asked for already`)
        return { rcode: RCODE.name, why: { code: EDE.blocked, text: `a cell may ask for ${maxBelow} different names below ${wildcard}: declare this one itself` } }
      }
      asked.add(name)
    }
    const declared = granted ? 'declared' : 'not declared, only observed'
    if (type !== 'A' && type !== 'AAAA') {
      tell('allowed', `${declared}; only A and AAAA are answered`)
      return { rcode: RCODE.none }
    }
    const mapped = names.mapped(name)
    if (mapped !== undefined) {
      if (type === 'AAAA') return { rcode: RCODE.none }
      tell('allowed', `${declared}; the contract maps it to ${mapped.target}`, [mapped.synthetic])
      return { rcode: RCODE.none, addresses: [parseAddress(mapped.synthetic)!], ttl: TTL_CAP }
    }
    // The relay takes a connection before it has reached the server, so a client would not try IPv4 after an IPv6 address failed.
    if (type === 'AAAA' && !await (ipv6 ??= upstream.ipv6())) {
      tell('allowed', `${declared}; the host has no IPv6 route`)
      return { rcode: RCODE.none }
    }
    const looked = await lookup(name, type)
    if (looked.outcome === 'failed') {
      tell('allowed', `${declared}; ${looked.why}`)
      return { rcode: RCODE.server, why: { code: EDE.unreachable, text: looked.why } }
    }
    if (looked.outcome !== 'found') {
      tell('allowed', `${declared}; ${looked.outcome === 'no-name' ? 'there is no such name' : `it has no ${type} record`}`)
      return { rcode: looked.outcome === 'no-name' ? RCODE.name : RCODE.none }
    }
    const bars = looked.addresses.map(address => policy.barred(address, null))
    const bar = bars.find(one => one !== null)
    const addresses = looked.addresses.filter((_, index) => bars[index] === null).slice(0, MAX_ANSWERS)
    if (addresses.length === 0) {
      tell('refused', `${declared}; but ${bar}`)
      return { rcode: RCODE.none, why: { code: EDE.filtered, text: String(bar) } }
    }
    names.give(name, addresses)
    tell('allowed', bar === undefined ? declared : `${declared}; left out: ${bar}`, addresses.map(String))
    return { rcode: RCODE.none, addresses, ttl: Math.min(Math.max(looked.ttl, TTL_FLOOR), TTL_CAP) }
  }

  return {
    async answer(query, transport) {
      // A reply to a reply could go on for ever.
      if (query.length < HEADER || (query[2]! & 0x80) !== 0) return null
      if ((query[2]! & 0x78) !== 0) return compose(query, null, { rcode: RCODE.unsupported }, PLAIN_SIZE)
      const question = readQuestion(query)
      if (question === null) return compose(query, null, { rcode: RCODE.format }, PLAIN_SIZE)
      const limit = transport === 'tcp' ? 65_535 : Math.min(Math.max(question.edns ?? PLAIN_SIZE, PLAIN_SIZE), EDNS_SIZE)
      if (question.raw.readUInt16BE(question.raw.length - 2) !== CLASS_IN) return compose(query, question, { rcode: RCODE.refused }, limit)
      return compose(query, question, await decide(canonicalName(question.name), question.type), limit)
    },
  }
}

/** The question of a query as clients send it: one name, nothing compressed, at most EDNS besides. Null: not such a query. */
function readQuestion(query: Buffer): Question | null {
  if (query.readUInt16BE(4) !== 1 || query.readUInt16BE(6) !== 0 || query.readUInt16BE(8) !== 0 || query.readUInt16BE(10) > 2) return null
  try {
    let end = HEADER
    while (query[end]! > 0) {
      if (query[end]! > 63) return null
      end += query[end]! + 1
    }
    const raw = query.subarray(HEADER, end + 5)
    if (raw.length !== end + 5 - HEADER || end + 1 - HEADER > 255) return null
    const { questions, additionals } = packet.decode(query)
    const { name, type } = questions![0]!
    const opt = additionals!.find(one => one.type === 'OPT')
    return { name, type: String(type), raw, edns: opt === undefined ? null : Number((opt as { udpPayloadSize?: number }).udpPayloadSize ?? PLAIN_SIZE) }
  } catch {
    return null
  }
}

/** Header, question as it was asked (its case is a client's check against forgery) and answers that point back to it. */
function compose(query: Buffer, question: Question | null, reply: Reply, limit: number): Buffer {
  const header = Buffer.alloc(HEADER)
  query.copy(header, 0, 0, 2)
  header.writeUInt16BE(0x8080 | (query[2]! & 0x79) << 8 | reply.rcode, 2)
  const opt = question?.edns == null ? [] : [optRecord(reply.why)]
  const answers = (reply.addresses ?? []).map(address => addressRecord(address, reply.ttl!))
  const parts = [...(question === null ? [] : [question.raw]), ...answers, ...opt]
  const fits = HEADER + parts.reduce((sum, part) => sum + part.length, 0) <= limit
  if (!fits) header[2]! |= 0x02
  header.writeUInt16BE(question === null ? 0 : 1, 4)
  header.writeUInt16BE(fits ? answers.length : 0, 6)
  header.writeUInt16BE(fits ? opt.length : 0, 10)
  return Buffer.concat([header, ...(fits ? parts : [question!.raw])])
}

function addressRecord(address: Address, ttl: number): Buffer {
  const bytes = Buffer.from(address.toByteArray())
  const record = Buffer.alloc(12)
  record.writeUInt16BE(0xc000 | HEADER, 0)
  record.writeUInt16BE(bytes.length === 4 ? TYPE.A : TYPE.AAAA, 2)
  record.writeUInt16BE(CLASS_IN, 4)
  record.writeUInt32BE(ttl, 6)
  record.writeUInt16BE(bytes.length, 10)
  return Buffer.concat([record, bytes])
}

/** RFC 6891, with the reason as an option of RFC 8914. */
function optRecord(why: Reply['why']): Buffer {
  const text = Buffer.from(why === undefined ? '' : why.text)
  const record = Buffer.alloc(11 + (why === undefined ? 0 : 6 + text.length))
  record.writeUInt16BE(TYPE.OPT, 1)
  record.writeUInt16BE(EDNS_SIZE, 3)
  record.writeUInt16BE(record.length - 11, 9)
  if (why === undefined) return record
  record.writeUInt16BE(15, 11)
  record.writeUInt16BE(2 + text.length, 13)
  record.writeUInt16BE(why.code, 15)
  text.copy(record, 17)
  return record
}

/** The name as it may stand in evidence: what a job put into it must not act on whoever reads it. */
function printableName(name: string): string {
  return name.replace(/[^a-z0-9._-]/g, char => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`).slice(0, 512) || '.'
}
