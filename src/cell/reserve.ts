import { closeSync } from 'node:fs'
import type { Probes } from '../evidence/probes.ts'
import type { CellExit, NativeAddon, NativeSpawner, ReservedCell } from '../native.ts'
import type { CellLimits, Cgroups } from './cgroup.ts'
import { asCellError } from './failure.ts'
import { idsOf } from './plan.ts'

export type CellHost = {
  native: NativeAddon
  spawner: NativeSpawner
  cgroups: Cgroups
  probes: Probes
  /** Resolves when the spawner reports the cell's end. */
  exitOf(id: string): Promise<CellExit>
  /** The cell was never built: nobody waits for its end. */
  forget(id: string): void
}

/** A cell that nothing is known of but its id: namespaces, cgroups, sockets, and process 1 waiting for a plan. */
export type Reserved = {
  readonly id: string
  readonly slot: number
  readonly cgroup: ReturnType<Cgroups['createCell']>
  readonly native: ReservedCell
  readonly relay: number | null
  /** Resolves when its process 1 is gone; not if `prepare` was refused, which tells the same. */
  readonly exit: Promise<CellExit>
  /** The relay's and the resolver's sockets have an owner: `release` leaves them alone. */
  socketsTaken(): void
  /** Ends it and leaves nothing behind. Also after its end, and a second time. */
  release(): Promise<void>
}

/** Makes all that a cell takes before its contract is known, or without its limits; whatever fails leaves nothing behind. */
export async function reserveCell(host: CellHost, id: string, slot: number, limits: CellLimits | null): Promise<Reserved> {
  const undo: (() => unknown)[] = []
  const unwind = async (): Promise<void> => { for (const step of undo.splice(0).reverse()) await step() }
  const exit = host.exitOf(id)
  undo.push(() => host.forget(id))
  try {
    const cgroup = host.cgroups.createCell(id, limits)
    undo.push(() => host.cgroups.removeCell(id))
    const native = await host.spawner.reserve({ id, cgroups: cgroup, ids: idsOf(slot) })
    const { pidfd, netns, relay4, relay6, dnsUdp4, dnsUdp6, dnsTcp4, dnsTcp6, udp4, udp6 } = native
    let sockets = [relay4, relay6, dnsUdp4, dnsUdp6, dnsTcp4, dnsTcp6, udp4, udp6].filter(fd => fd >= 0)
    undo.push(() => { for (const fd of [pidfd, netns, ...sockets]) closeSync(fd) }, () => host.cgroups.killCell(id))
    host.probes.addCell(cgroup.id, native.pid)
    undo.push(() => host.probes.removeCell(cgroup.id))
    const relay = host.probes.attachRelay(netns, relay4, relay6, udp4, udp6)
    undo.push(() => host.probes.detachRelay(relay))
    return { id, slot, cgroup, native, relay, exit, socketsTaken() { sockets = [] }, release: unwind }
  } catch (error) {
    await unwind()
    throw asCellError(error)
  }
}

/** A cell that a former daemon let go; of one that ended meanwhile there is only what it did. `relay` is the relay's handle. */
export function adoptReserved(host: CellHost, { id, slot, cgroup, native, relay, exit }: {
  id: string; slot: number; cgroup: Reserved['cgroup']; native: ReservedCell | null; relay: number | null; exit: Promise<CellExit>
}): Reserved {
  const undo: (() => unknown)[] = [() => host.forget(id), () => host.cgroups.removeCell(id)]
  if (native !== null) undo.push(() => { for (const fd of [native.pidfd, native.netns]) closeSync(fd) }, () => host.cgroups.killCell(id))
  undo.push(() => host.probes.removeCell(cgroup.id))
  if (relay !== null) undo.push(() => host.probes.detachRelay(relay))
  return {
    id, slot, cgroup, relay, exit, native: native ?? NOTHING, socketsTaken() {},
    async release() { for (const step of undo.splice(0).reverse()) await step() },
  }
}

const NOTHING: ReservedCell = { pid: -1, pidfd: -1, netns: -1, relay4: -1, relay6: -1, dnsUdp4: -1, dnsUdp6: -1, dnsTcp4: -1, dnsTcp6: -1, udp4: -1, udp6: -1 }
