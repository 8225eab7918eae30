import { existsSync, fstatSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { memoryBytes, type Contract } from '../contract/schema.ts'
import { AmbitError } from '../errors.ts'
import type { Culprit, EvidenceBody } from '../evidence/records.ts'
import { printable } from '../text.ts'
import type { CellLimits, Cgroups, LimitEvents, OptionalLimit } from './cgroup.ts'

type Enforcer = { name: string; state: string }
export type HeldLimits = { limits: CellLimits; enforcers: Enforcer[] }

/**
 * The limits of a contract as this host can hold them. One that it cannot hold is refused in enforce (CELL_FAILED) and told as
 * not held in observe. `workspace` is a descriptor; null: the cell has none.
 */
export function heldLimits(contract: Contract, cgroups: Pick<Cgroups, 'lacks'>, workspace: number | null): HeldLimits {
  const { memory, pids, cpus, io } = contract.spec.limits
  const limits: CellLimits = { memoryBytes: memoryBytes(memory), pids }
  const enforcers: Enforcer[] = []
  const holds = (limit: OptionalLimit, asked: string, extra: string | null = null): boolean => {
    const why = cgroups.lacks(limit) ?? extra
    if (why !== null && contract.spec.mode === 'enforce') {
      throw new AmbitError('CELL_FAILED', { attempted: `hold the cell to ${limit} ${asked}`, why, remedy: `boot the host with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1), or leave the limit out of the contract; in observe mode it is told as not held` })
    }
    enforcers.push({ name: `limit of ${limit}`, state: why === null ? asked : `not held: ${why}` })
    return why === null
  }
  if (cpus !== undefined && holds('cpus', String(cpus))) limits.cpus = cpus
  if (io !== undefined) {
    const disks = disksOf([...(workspace === null ? [] : [fstatSync(workspace).dev]), statSync('/').dev])
    const none = disks.length > 0 ? null : 'neither the workspace nor the root is on a disk of its own that could be held'
    const read = io.read !== undefined && holds('io read', `${io.read} a second on ${disks.join(', ')}`, none) ? memoryBytes(io.read) : undefined
    const write = io.write !== undefined && holds('io write', `${io.write} a second on ${disks.join(', ')}`, none) ? memoryBytes(io.write) : undefined
    if (read !== undefined || write !== undefined) limits.io = { disks, ...(read !== undefined && { read }), ...(write !== undefined && { write }) }
  }
  return { limits, enforcers }
}

/**
 * The whole disks ("MAJOR:MINOR") that these devices are on: limits are not taken for a partition (block/blk-cgroup.c). A file
 * system without a disk, such as tmpfs, overlay or btrfs with its made-up numbers, has none.
 */
export function disksOf(devices: readonly number[], sys = '/sys/dev/block'): string[] {
  return [...new Set(devices.flatMap(device => {
    const folder = join(sys, majorMinor(device))
    if (!existsSync(folder)) return []
    const disk = existsSync(join(folder, 'partition')) ? join(realpathSync(folder), '..') : folder
    return [readFileSync(join(disk, 'dev'), 'utf8').trim()]
  }))]
}

/** As glibc's makedev packs st_dev: 12 bits of minor's 20 are above major's first 12 (bits/sysmacros.h). */
function majorMinor(device: number): string {
  const bits = BigInt(device)
  const major = (bits >> 8n & 0xfffn) | (bits >> 32n & ~0xfffn)
  const minor = (bits & 0xffn) | (bits >> 12n & ~0xffn)
  return `${major}:${minor}`
}

type LimitRecord = Extract<EvidenceBody, { type: 'limit' }>

/** Who ran into limits, as the probes saw it. */
export type LimitHits = { oom: readonly Culprit[]; forks: readonly Culprit[] }

/** What the kernel's counters and the probes say of a cell's limits, in words that name who ran into them. */
export function limitRecords({ memory, pids, cpus }: Contract['spec']['limits'], events: LimitEvents, hits: LimitHits): LimitRecord[] {
  const records: LimitRecord[] = []
  if (events.oomKills > 0) {
    const by = [...hits.oom]
    records.push({
      type: 'limit', limit: 'memory', by,
      detail: events.memoryAtLimit
        ? `memory limit of ${memory} reached by ${named(by, events.oomKills)}: killed`
        : `the host itself was out of memory, the cell not at its limit of ${memory}: ${named(by, events.oomKills)} killed`,
    })
  }
  if (events.pidsMax > 0) {
    const by = [...hits.forks]
    records.push({ type: 'limit', limit: 'pids', by, detail: `limit of ${pids} processes reached by ${named(by, 1)}: ${events.pidsMax} ${events.pidsMax === 1 ? 'fork was' : 'forks were'} refused` })
  }
  if (cpus !== undefined && events.heldBackMs > 0) {
    records.push({ type: 'limit', limit: 'cpu', by: [], detail: `held back for ${(events.heldBackMs / 1000).toFixed(2)} s by the limit of ${cpus} processors` })
  }
  return records
}

const NAMED = 4

/** "node[412]", "sh[1], cc1[2] and 3 more", in one line whatever they call themselves; `count`: how many there were at least, seen or not. */
export function named(culprits: readonly Culprit[], count: number): string {
  const shown = culprits.slice(0, NAMED).map(({ comm, pid }) => `${printable(comm)}[${pid}]`)
  const more = Math.max(culprits.length, count) - shown.length
  if (shown.length === 0) return count === 1 ? 'a process that was not seen' : `${count} processes that were not seen`
  return more > 0 ? `${shown.join(', ')} and ${more} more` : shown.length === 1 ? shown[0]! : `${shown.slice(0, -1).join(', ')} and ${shown.at(-1)}`
}

/** What a person at the terminal is told at the end, in one line; null: no limit was hit that changed what the command did. */
export function limitNotice(records: readonly LimitRecord[]): string | null {
  const told = records.filter(({ limit }) => limit !== 'cpu').map(({ detail }) => detail)
  return told.length === 0 ? null : told.join('; ')
}

/** Who is in the cell now, without its first process; for a record of what its time ran out on. */
export function running(pids: readonly number[], init: number): Culprit[] {
  return pids.filter(pid => pid !== init).flatMap(pid => {
    try {
      return [{ pid, comm: readFileSync(`/proc/${pid}/comm`, 'utf8').trimEnd() }]
    } catch {
      return []
    }
  })
}
