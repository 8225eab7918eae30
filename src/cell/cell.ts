import { closeSync, existsSync, readFileSync, realpathSync } from 'node:fs'
import { arch, constants, hostname, release } from 'node:os'
import { dirname } from 'node:path'
import { ttlSeconds, type Contract } from '../contract/schema.ts'
import { contractDigest } from '../contract/write.ts'
import { AmbitError } from '../errors.ts'
import type { EvidenceBody, HookReport } from '../evidence/records.ts'
import type { Probes } from '../evidence/probes.ts'
import type { CellLog } from '../evidence/store.ts'
import type { CellExit, NativeAddon, NativeSpawner, PreparedCell } from '../native.ts'
import { openEgress, type Egress } from '../network/egress.ts'
import type { Cgroups } from './cgroup.ts'
import { heldLimits, limitNotice, limitRecords, named, running } from './limits.ts'
import { launchPlan, type PlanRequest } from './plan.ts'
import { linksFollowed, realpathOrNull } from './root.ts'

export type CellRequest = Omit<PlanRequest, 'cgroups'> & {
  /** What happened with credentials before the start: part of the evidence. */
  credentials: EvidenceBody[]
  credentialHooks: HookReport[]
  /** host or host:port of the APIs whose calls are to be seen; empty: TLS is not looked at. */
  apiHosts: readonly string[]
}

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

export type EndReason = Extract<EvidenceBody, { type: 'cell.ended' }>['reason']
/** `notice`: the limits that were reached, and by whom, in one line for a person. */
export type CellEnd = { code: number | null; signal: number | null; reason: EndReason; notice: string | null }

export type Cell = {
  readonly id: string
  signal(signal: number): void
  /** Ends every process of the cell; the end is reported with this reason. */
  kill(reason: EndReason): void
  /** Resolves once nothing of the cell is left but its evidence, to which `beforeLast` may still add. */
  ended: Promise<CellEnd>
}

/** TERM first, so that a job can tidy up; KILL of the whole group after this many milliseconds. */
const GRACE_MS = 3000

/**
 * Builds a cell, lets it go and follows it to its end. The log gets everything from `cell.started` to `cell.ended`;
 * whatever fails before the command starts leaves nothing behind and throws.
 */
export async function startCell(host: CellHost, request: CellRequest, log: CellLog, revoke: () => Promise<EvidenceBody[]>): Promise<Cell> {
  const { id, contract } = request
  const { limits, enforcers: limitEnforcers } = heldLimits(contract, host.cgroups, contract.spec.workspace === 'none' ? null : request.workspace)
  const started = Date.now()
  const undo: (() => unknown)[] = []
  const rollback = async (): Promise<void> => {
    host.forget(id)
    for (const step of undo.reverse()) await step()
  }

  let prepared: PreparedCell
  let egress: Egress
  let cgroup: ReturnType<Cgroups['createCell']>
  let relay: number
  const exit = host.exitOf(id)
  try {
    cgroup = host.cgroups.createCell(id, limits)
    undo.push(() => host.cgroups.removeCell(id))
    const opened: number[] = []
    try {
      prepared = await host.spawner.prepare(launchPlan(host.native, { ...request, cgroups: { v2: cgroup.v2, v1: cgroup.v1 } }, opened))
    } finally {
      for (const fd of opened) closeSync(fd)
    }
    const { pidfd, netns, relay4, relay6, dnsUdp4, dnsUdp6, dnsTcp4, dnsTcp6 } = prepared
    // The egress owns the sockets from the moment that it is asked to open, whether it can or not.
    let sockets = [relay4, relay6, dnsUdp4, dnsUdp6, dnsTcp4, dnsTcp6].filter(fd => fd >= 0)
    undo.push(() => { for (const fd of [pidfd, netns, ...sockets]) closeSync(fd) }, () => host.cgroups.killCell(id))
    await host.probes.addCell(cgroup.id, prepared.pid, request.apiHosts)
    undo.push(() => host.probes.removeCell(cgroup.id))
    relay = host.probes.attachRelay(prepared.netns, prepared.relay4, prepared.relay6)
    undo.push(() => host.probes.detachRelay(relay))
    sockets = []
    egress = await openEgress({
      sockets: prepared, grants: contract.spec.authority.network, hosts: contract.spec.hosts, mode: contract.spec.mode,
      emit: body => log.append(body),
    })
    undo.push(() => egress.close())
    host.probes.route(cgroup.id, log)
    log.append({
      type: 'cell.started', cell: id, mode: contract.spec.mode, contract, contractDigest: contractDigest(contract), argv: request.argv,
      host: hostname(), boot: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(), kernel: `${release()} ${arch()}`,
      pipeline: contract.metadata.pipeline ?? null, links: linksOf(contract),
    })
    log.append({ type: 'coverage', hooks: [...host.probes.hooks(), ...egress.hooks(), ...request.credentialHooks], enforcers: [...enforcers(host.native, contract), ...limitEnforcers] })
    for (const event of request.credentials) log.append(event)
    host.spawner.go(id)
  } catch (error) {
    await rollback()
    throw asCellError(error)
  }

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
    const by = running(host.cgroups.processes(id), prepared.pid)
    told.push({ type: 'limit', limit: 'ttl', by: by.slice(0, 64), detail: `time limit of ${contract.spec.ttl} reached by ${named(by, 1)}` })
    log.append(told.at(-1)!)
    host.spawner.signal(id, constants.signals.SIGTERM, true)
    // One that was stopped hears it only now.
    host.spawner.signal(id, constants.signals.SIGCONT, true)
    setTimeout(() => kill('ttl'), GRACE_MS).unref()
  }, ttlSeconds(contract.spec.ttl) * 1000)

  const finish = async (): Promise<CellEnd> => {
    const end = await exit
    over = true
    clearTimeout(ttl)
    host.cgroups.killCell(id)
    host.probes.detachRelay(relay)
    await egress.close()
    await host.probes.flush()
    const records = limitRecords(contract.spec.limits, host.cgroups.events(id), host.probes.hits(cgroup.id))
    for (const record of host.probes.finalSets(cgroup.id)) log.append(record)
    host.probes.removeCell(cgroup.id)
    for (const record of records) log.append(record)
    told.push(...records)
    if (reason === 'exited' && end.signal === constants.signals.SIGKILL && records.some(({ limit }) => limit === 'memory')) reason = 'memory'
    for (const event of await revoke()) log.append(event)
    await host.cgroups.removeCell(id)
    closeSync(prepared.pidfd)
    closeSync(prepared.netns)
    if (end.failed !== null) reason = 'launch-failed'
    log.append({
      type: 'cell.ended', code: end.code, signal: end.signal === null ? null : signalName(end.signal), reason,
      wallMs: Date.now() - started, userMs: end.userUs / 1000, systemMs: end.systemUs / 1000, maxRssKiB: end.maxRssKiB,
    })
    if (end.failed !== null) throw launchFailure(end.failed)
    return { code: end.code, signal: end.signal, reason, notice: limitNotice(told) }
  }

  return { id, kill, signal: signal => { if (!over) host.spawner.signal(id, signal) }, ended: finish() }
}

/** Where the contract's paths lead, for those that are not the whole truth themselves ("/bin/sh": "/usr/bin/dash"). */
function linksOf(contract: Contract): Record<string, string> {
  const { exec, filesystem } = contract.spec.authority
  // Only links of the host's packages are followed, and those are no secret.
  const leads = [...exec, ...filesystem.read].filter(path => dirname(path) === '/' || linksFollowed(realpathOrNull(dirname(path)) ?? '/')).map(path => [path, realpathOrNull(path)] as const)
  return Object.fromEntries(leads.filter((pair): pair is readonly [string, string] => pair[1] !== null && pair[1] !== pair[0]))
}

function enforcers(native: NativeAddon, contract: Contract): { name: string; state: string }[] {
  const enforce = contract.spec.mode === 'enforce'
  const abi = native.landlockAbi()
  return [
    { name: 'namespaces', state: 'user mount pid net ipc uts cgroup' },
    { name: 'capabilities', state: 'all dropped, no_new_privs' },
    { name: 'seccomp', state: `profile ${contract.spec.authority.syscall.profile}, ${contract.spec.authority.syscall.allow.length} more by name` },
    { name: 'root', state: enforce ? 'holds only what the contract declares' : 'the host read-only, without /run, /tmp, /proc, /sys and /dev' },
    { name: 'programs', state: !enforce || contract.spec.authority.exec.includes('*') ? 'any' : 'by Landlock; execve of memory and of what jobs write is refused; the loader can run what it can map' },
    { name: 'unix sockets', state: 'not held: sockets in directories that the cell shows can be connected to' },
    { name: 'landlock', state: !enforce ? 'off in observe' : abi === 0 ? 'the kernel has none' : `ABI ${Math.min(abi, 7)}` },
    { name: 'egress', state: enforce ? 'declared names only, by relay and resolver' : 'any public name, by relay and resolver' },
  ]
}

function launchFailure(failed: { step: string; errno: number }): AmbitError {
  return new AmbitError('CELL_FAILED', {
    attempted: `build the cell (${failed.step})`, why: errnoName(failed.errno),
    remedy: 'run `ambit doctor` to see what this kernel offers; the step that failed is named above',
  })
}

function asCellError(error: unknown): unknown {
  const failure = error as { code?: string; errno?: number; syscall?: string; message?: string }
  if (error instanceof AmbitError || failure.code !== 'NATIVE') return error
  return new AmbitError('CELL_FAILED', {
    attempted: `build the cell (${failure.syscall ?? 'native step'})`,
    why: failure.message ?? 'unknown',
    remedy: failure.errno === constants.errno.ELOOP
      ? 'a path that the contract grants leads through a link: name where it leads'
      : 'check the paths that the contract names; `ambit doctor` shows what this kernel offers',
    cause: error,
  })
}

export function signalName(number: number): string {
  return Object.entries(constants.signals).find(([, value]) => value === number)?.[0] ?? `SIG${number}`
}

function errnoName(errno: number): string {
  return Object.entries(constants.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`
}

/** The TLS libraries, and programs that may hold one of their own, whose plain text is looked at while a cell that declares an API runs. */
export function tlsLibraries(programs: readonly string[]): { path: string; flavour: 'openssl' | 'gnutls'; optional: boolean }[] {
  const folders = ['/usr/lib/x86_64-linux-gnu', '/usr/lib/aarch64-linux-gnu', '/usr/lib64', '/usr/lib', '/lib/x86_64-linux-gnu', '/usr/local/lib']
  const found = folders.flatMap(folder => [
    { path: `${folder}/libssl.so.3`, flavour: 'openssl' as const, optional: false },
    { path: `${folder}/libssl.so.1.1`, flavour: 'openssl' as const, optional: false },
    { path: `${folder}/libgnutls.so.30`, flavour: 'gnutls' as const, optional: false },
  ])
  const there = [...found, ...programs.map(path => ({ path, flavour: 'openssl' as const, optional: true }))].filter(({ path }) => existsSync(path))
  // /lib is a link to /usr/lib on most systems: one library, one entry.
  return [...new Map(there.map(library => [realpathSync(library.path), library])).values()]
}
