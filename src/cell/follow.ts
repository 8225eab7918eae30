import { constants } from 'node:os'
import type { Contract } from '../contract/schema.ts'
import type { EvidenceBody } from '../evidence/records.ts'
import type { CellLog } from '../evidence/store.ts'
import type { Egress } from '../network/egress.ts'
import { launchFailure } from './failure.ts'
import { limitNotice, limitRecords, named, running } from './limits.ts'
import type { CellHost, Reserved } from './reserve.ts'

export type EndReason = Extract<EvidenceBody, { type: 'cell.ended' }>['reason']
/** `notice`: the limits that were reached, and by whom, in one line for a person. */
export type CellEnd = { code: number | null; signal: number | null; reason: EndReason; notice: string | null }

export type Cell = {
  readonly id: string
  signal(signal: number): void
  /** Ends every process of the cell; the end is reported with this reason. */
  kill(reason: EndReason): void
  /** Resolves once none of the cell's processes is left: soon where nothing but the command's end is to be told. */
  exited: Promise<CellEnd>
  /** Resolves once nothing of the cell is left but its evidence, to which `beforeLast` may still add. */
  ended: Promise<CellEnd>
}

export type Followed = {
  contract: Contract
  /** Milliseconds since the epoch. */
  started: number
  /** Of its time. */
  remainingMs: number
  /** Undefined: it ended before anybody could serve it. */
  egress: Egress | undefined
  log: CellLog
  revoke(): Promise<EvidenceBody[]>
}

/** TERM first, so that a job can tidy up; KILL of the whole group after this many milliseconds. */
const GRACE_MS = 3000

/** Sees a running cell to its end, and its evidence to `cell.ended`. */
export function follow(host: CellHost, reserved: Reserved, { contract, started, remainingMs, egress, log, revoke }: Followed): Cell {
  const { id, cgroup } = reserved
  let reason: EndReason = 'exited'
  let over = false
  const kill = (why: EndReason): void => {
    if (over) return
    if (reason === 'exited') reason = why
    host.cgroups.killCell(id)
  }
  const told: Extract<EvidenceBody, { type: 'limit' }>[] = []
  const ttl = setTimeout(() => {
    if (over || reason !== 'exited') return
    reason = 'ttl'
    const by = running(host.cgroups.processes(id), reserved.native.pid)
    told.push({ type: 'limit', limit: 'ttl', by: by.slice(0, 64), detail: `time limit of ${contract.spec.ttl} reached by ${named(by, 1)}` })
    log.append(told.at(-1)!)
    host.spawner.signal(id, constants.signals.SIGTERM, true)
    // One that was stopped hears it only now.
    host.spawner.signal(id, constants.signals.SIGCONT, true)
    setTimeout(() => kill('ttl'), GRACE_MS).unref()
  }, remainingMs)

  const ending = (async () => {
    const end = await reserved.exit
    over = true
    clearTimeout(ttl)
    if (end.timeOver) {
      reason = 'ttl'
      told.push({ type: 'limit', limit: 'ttl', by: [], detail: `time limit of ${contract.spec.ttl} reached while no daemon was there` })
      log.append(told.at(-1)!)
    }
    return { end, limited: host.cgroups.limitsHit(id) }
  })()

  const finish = async (): Promise<CellEnd> => {
    const { end } = await ending
    const hits = host.cgroups.events(id)
    host.cgroups.killCell(id)
    if (reserved.relay !== null) host.probes.detachRelay(reserved.relay)
    await egress?.close()
    await host.probes.flush()
    const records = limitRecords(contract.spec.limits, hits, host.probes.hits(cgroup.id))
    for (const record of host.probes.finalSets(cgroup.id)) log.append(record)
    for (const record of records) log.append(record)
    told.push(...records)
    if (reason === 'exited' && end.signal === constants.signals.SIGKILL && records.some(({ limit }) => limit === 'memory')) reason = 'memory'
    for (const event of await revoke()) log.append(event)
    await reserved.release()
    if (end.failed !== null) reason = 'launch-failed'
    log.append({
      type: 'cell.ended', code: end.code, signal: end.signal === null ? null : signalName(end.signal), reason,
      wallMs: Date.now() - started, userMs: end.userUs / 1000, systemMs: end.systemUs / 1000, maxRssKiB: end.maxRssKiB,
    })
    if (end.failed !== null) throw launchFailure(end.failed)
    return { code: end.code, signal: end.signal, reason, notice: limitNotice(told) }
  }
  const ended = finish()
  // Where a limit was hit or the cell was ended from outside, the reason is known with the evidence only.
  const exited = ending.then(({ end, limited }): CellEnd | Promise<CellEnd> => {
    const quiet = end.failed === null && reason === 'exited' && !limited
    return quiet ? { code: end.code, signal: end.signal, reason, notice: null } : ended
  })
  // Whoever waits for the whole end alone hears of a failure there.
  exited.catch(() => {})
  return { id, kill, signal: signal => { if (!over) host.spawner.signal(id, signal) }, exited, ended }
}

export function signalName(number: number): string {
  return Object.entries(constants.signals).find(([, value]) => value === number)?.[0] ?? `SIG${number}`
}
