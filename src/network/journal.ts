import type { EvidenceBody } from '../evidence/records.ts'

type Flow = Extract<EvidenceBody, { type: 'flow' }>
type Dns = Extract<EvidenceBody, { type: 'dns' }>

export type Journal = {
  flow(flow: Flow): void
  dns(dns: Dns): void
  /** Datagrams that were dropped before anybody could rule on them: what they were is lost. */
  unheard(count: number): void
  /** Tells what was held back. What comes after it is not told. */
  close(): void
}

export type JournalLimits = {
  /**
   * Distinct acts (name, address, port, reason) of each family and decision; further ones are lost, and told as lost. Counted
   * apart, so that a flood of refused acts does not hide an allowed one.
   */
  kinds: number
  /** Flows of one kind that get a record each, and of all kinds; further ones are told together at the end. */
  each: number
  all: number
}

const LIMITS: JournalLimits = { kinds: 4096, each: 1000, all: 10_000 }
/** Answers of one name that are remembered as told; a name with more is told once more for each new one only up to here. */
const MAX_ANSWERS = 64

/**
 * Keeps a flood of connections or look-ups from flooding the log: every distinct act is told, repetitions beyond the limits are
 * summed, and only what is beyond even that counts as lost.
 */
export function openJournal(emit: (body: EvidenceBody) => void, limits: JournalLimits = LIMITS): Journal {
  const flows = new Map<string, { told: number; rest: Flow | null; summed: number }>()
  const names = new Map<string, Set<string>>()
  const counts = { flow: { produced: 0, dropped: 0 }, dns: { produced: 0, dropped: 0 } }
  const kinds = { flow: { allowed: 0, refused: 0 }, dns: { allowed: 0, refused: 0 } }
  let records = 0
  let closed = false
  return {
    flow(flow) {
      if (closed) return
      counts.flow.produced += 1
      const key = JSON.stringify([flow.decision, flow.name, flow.nameSource, flow.address, flow.port, flow.protocol, flow.reason])
      let kind = flows.get(key)
      if (kind === undefined) {
        if (kinds.flow[flow.decision]++ >= limits.kinds) {
          counts.flow.dropped += 1
          return
        }
        kind = { told: 0, rest: null, summed: 0 }
        flows.set(key, kind)
      }
      if (kind.told < limits.each && (kind.told === 0 || records < limits.all)) {
        kind.told += 1
        records += 1
        emit(flow)
        return
      }
      kind.summed += 1
      if (kind.rest === null) kind.rest = { ...flow }
      else {
        kind.rest.bytesOut += flow.bytesOut
        kind.rest.bytesIn += flow.bytesIn
        kind.rest.durationMs += flow.durationMs
      }
    },
    dns(dns) {
      if (closed) return
      const key = JSON.stringify([dns.decision, dns.name, dns.rrtype, dns.reason])
      const told = names.get(key)
      const fresh = told === undefined ? dns.answers : dns.answers.filter(answer => !told.has(answer))
      if (told !== undefined && (fresh.length === 0 || told.size >= MAX_ANSWERS)) return
      counts.dns.produced += 1
      if (told === undefined && kinds.dns[dns.decision]++ >= limits.kinds) {
        counts.dns.dropped += 1
        return
      }
      names.set(key, new Set([...(told ?? []), ...fresh]))
      emit(dns)
    },
    unheard(count) {
      counts.flow.produced += count
      counts.flow.dropped += count
    },
    close() {
      closed = true
      for (const { rest, summed } of flows.values()) {
        if (rest !== null) emit(summed === 1 ? rest : { ...rest, reason: `${rest.reason} (${summed} connections, told together)` })
      }
      for (const [event, family] of [['flow', 'network'], ['dns', 'dns']] as const) {
        const { produced, dropped } = counts[event]
        if (dropped > 0) emit({ type: 'loss', event, family, produced, delivered: produced - dropped, dropped })
      }
    },
  }
}
