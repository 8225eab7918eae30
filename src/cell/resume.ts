import { closeSync } from 'node:fs'
import type { Contract } from '../contract/schema.ts'
import { FAMILIES, type EvidenceBody, type EvidenceRecord, type Family } from '../evidence/records.ts'
import type { CellLog } from '../evidence/store.ts'
import { AmbitError } from '../errors.ts'
import { openEgress, type Egress } from '../network/egress.ts'
import { follow, type Cell } from './follow.ts'
import type { CellHost, Reserved } from './reserve.ts'

export type ResumeRequest = {
  contract: Contract
  /** Milliseconds since the epoch. */
  started: number
  remainingMs: number
  /** What the log holds already. */
  records: readonly EvidenceRecord[]
  /** The eBPF programs went on without a daemon. */
  observed: boolean
  /** Calls of APIs were read, which takes a daemon. */
  apis: boolean
  log: CellLog
  revoke(): Promise<EvidenceBody[]>
}

/** Serves a cell's network again, tells of the gap, and follows the cell to its end. Throws if its log never began. */
export async function resumeCell(host: CellHost, reserved: Reserved, { contract, started, remainingMs, records, observed, apis, log, revoke }: ResumeRequest): Promise<Cell> {
  const last = records.at(-1)
  if (records[0]?.type !== 'cell.started' || last === undefined || last.type === 'cell.ended') {
    throw new AmbitError('EVIDENCE_UNREADABLE', { attempted: `go on with the evidence of cell ${reserved.id}`, why: 'it was being begun or closed when the daemon died', remedy: 'run the command again' })
  }
  log.append(gapOf(last, { observed, apis, full: log.full }))
  host.probes.route(reserved.cgroup.id, log)
  const { netns } = reserved.native
  let egress: Egress | undefined
  if (reserved.relay !== null) {
    const answered = records.flatMap(record => (record.type === 'dns' && record.decision === 'allowed' ? [{ name: record.name, addresses: record.answers }] : []))
    const answers = host.probes.relayAnswers(reserved.relay)
    egress = await openEgress({
      netns, answers, sockets: reserved.native, grants: contract.spec.authority.network, hosts: contract.spec.hosts, mode: contract.spec.mode,
      emit: body => log.append(body), answered,
    }).finally(() => { closeSync(answers) })
  }
  return follow(host, reserved, { contract, started, remainingMs, egress, log, revoke })
}

/** What nobody saw while there was no daemon. The kernel's own sets and the ring go on; relay, resolver and reader of API calls do not. */
export function gapOf(last: EvidenceRecord, { observed, apis, full }: { observed: boolean; apis: boolean; full: boolean }): EvidenceBody {
  // Connections that were open are cut, and were told only at their end; what came later waited to be accepted.
  const unobserved: readonly Family[] = !observed || full ? FAMILIES : ['network', 'dns', ...(apis ? ['api' as const] : [])]
  const seen = observed ? 'the eBPF programs went on and lost nothing but what the losses tell' : 'the eBPF programs had ended with it'
  return { type: 'gap', since: last.time, unobserved: [...unobserved], detail: `the daemon was gone; ${seen}; connections that it relayed were cut, and are not in the evidence` }
}
