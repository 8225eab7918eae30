import { closeSync } from 'node:fs'
import type { Logger } from 'pino'
import type { Cell, CellEnd } from '../cell/follow.ts'
import { resumeCell } from '../cell/resume.ts'
import { formerOverlays } from '../cell/overlays.ts'
import { adoptReserved, type CellHost } from '../cell/reserve.ts'
import { readContract } from '../contract/read.ts'
import { revokeTokens } from '../credentials/grant.ts'
import type { Issuers } from '../credentials/config.ts'
import type { EvidenceStore } from '../evidence/store.ts'
import type { CellExit } from '../native.ts'
import { bootMs, handedProfile } from './hold.ts'
import type { FormerCell } from './former.ts'

/** A cell of a former daemon, from now on one of this. */
export type Resumed = {
  cell: Cell
  slot: number
  uid: number
  gid: number
  /** Resolves once its evidence is sealed; `changes`: where what it wrote to an overlay workspace is kept. */
  done: Promise<CellEnd & { changes: string | null }>
}

export type ResumeHost = { store: EvidenceStore; issuers: Issuers; changesDir: string; log: Logger }

/**
 * Goes on with a cell that a former daemon let go: its evidence, its way out, its time, its credentials. Throws if its evidence
 * or anything else of it cannot be gone on with; `endFormer` is then to be called.
 */
export async function resume(host: CellHost, former: FormerCell, { store, issuers, changesDir, log: daemonLog }: ResumeHost): Promise<Resumed> {
  const { record, native } = former
  const contract = readContract(record.contract, 'contract', handedProfile(record))
  const cgroup = { ...record.cgroup, id: BigInt(record.cgroup.id) }
  const overlays = formerOverlays(changesDir, { id: record.id, contract, owner: { uid: record.uid, gid: record.gid }, workspace: former.workspace ?? -1 }, new Date(record.started))
  const own: CellHost = { ...host, spawner: former.spawner }
  const observed = host.probes.knows(cgroup.id)
  if (!observed) host.probes.addCell(cgroup.id, native?.pid ?? 0)
  let relay: number | null = null
  if (native !== null) {
    relay = former.relay === null ? host.probes.attachRelay(native.netns, native.relay4, native.relay6, native.udp4, native.udp6) : host.probes.adoptRelay(former.relay.link, former.relay.answers)
  } else if (former.relay !== null) {
    for (const fd of Object.values(former.relay)) closeSync(fd)
  }
  const exit: Promise<CellExit> = former.exit === null ? host.exitOf(record.id) : Promise.resolve(former.exit)
  const reserved = adoptReserved(own, { id: record.id, slot: record.slot, cgroup, native, relay, exit })
  try {
    const { log, records } = store.resume(record.id)
    const cell = await resumeCell(own, reserved, {
      contract, started: record.started, remainingMs: Math.max(0, record.deadline - bootMs()), records, observed, apis: record.apis, log,
      revoke: () => revokeTokens(record.tokens, issuers),
    })
    const done = (async () => {
      try {
        const end = await cell.ended
        return { ...end, changes: await overlays.keep() }
      } finally {
        await store.finish(log, contract)
        if (former.workspace !== null) closeSync(former.workspace)
      }
    })()
    // Whoever asks for it hears of a failure; nobody may.
    done.catch(error => daemonLog.error({ err: error, cell: record.id }, 'a resumed cell failed'))
    return { cell, slot: record.slot, uid: record.uid, gid: record.gid, done }
  } catch (error) {
    await reserved.release()
    throw error
  }
}

/**
 * Ends a cell that nobody can go on with: no daemon would hold it to its time, and none observes it. Resolves when none of its
 * processes is left and what it was given is taken back.
 */
export async function endFormer(host: CellHost, { record }: FormerCell, issuers: Issuers): Promise<void> {
  host.cgroups.killCell(record.id)
  host.probes.removeCell(BigInt(record.cgroup.id))
  await revokeTokens(record.tokens, issuers)
  await host.cgroups.removeCell(record.id)
}
