import { lstatSync } from 'node:fs'
import { constants } from 'node:os'
import { AmbitError } from '../errors.ts'
import type { NativeAddon, NativeProbes, ProbeReport } from '../native.ts'
import type { ApiReader } from './api.ts'
import { decode, DecodeError, type RawEvent } from './decode.ts'
import { FAMILIES, syscallCount, type Culprit, type EvidenceBody, type Family, type HookReport, type SyscallCount } from './records.ts'
import type { CellLog } from './store.ts'

export type ProbesOptions = {
  native: NativeAddon
  /** Holds NAME.bpf.o. */
  objectDir: string
  /** Depth of the cells' cgroups below the v2 root. */
  level: number
  /** Absolute folder of the v2 cgroup that holds every cell. */
  parentCgroup: string
  /** Looked at while a cell that declares an API runs. `optional`: a program that may have a TLS library in itself, or not. */
  tls: readonly { path: string; flavour: 'openssl' | 'gnutls'; optional?: boolean }[]
  /** What a former daemon's probes left running. */
  inherited?: Inherited
  /** Size of the ring between kernel and daemon: a power of two, in bytes. The objects' own size is 8 MiB. */
  ringBytes?: number
}

/** How much of a cell's events came through; what a next daemon must know, so that nothing is lost silently. */
export type Progress = { delivered: Record<string, number>; hits: { oom: Culprit[]; forks: Culprit[] } }

export type Inherited = {
  /** By the names of `NativeProbes.keepable`; owned from now on. */
  kept: Record<string, number>
  cells: { cgroupId: bigint; progress: Progress }[]
}

export type Probes = {
  /** Makes a cell known to the programs, before anything of it runs. */
  addCell(cgroupId: bigint, initPid: number): void
  /** From here on the cell is looked at. `api` reads the requests to its declared APIs; null: TLS is not looked at. */
  watch(cgroupId: bigint, api: ApiReader | null): void
  removeCell(cgroupId: bigint): void
  /** After `watch`: from here on the cell executes only these (as in NativeProbes). False: this kernel has no hook for it. */
  holdPrograms(cgroupId: bigint, programs: () => BigUint64Array | null): boolean
  /** A cell that was added, or that a former daemon's programs went on observing. */
  knows(cgroupId: bigint): boolean
  /** Descriptors of the cell's network namespace and of the relay's listening sockets; returns a handle. */
  attachRelay(netns: number, relay4: number, relay6: number, udp4: number, udp6: number): number
  relayAnswers(handle: number): number
  detachRelay(handle: number): void
  /** Where the events of a cell go from now on, those that came before it first. */
  route(cgroupId: bigint, log: Pick<CellLog, 'append'>): void
  hooks(): HookReport[]
  /** What goes on observing while it is open, by name. The descriptors stay the probes' own. */
  keepable(): Record<string, number>
  /** The relay's link in a cell's namespace, as `keepable` has it; undefined: it has none. */
  relayLink(handle: number): number | undefined
  adoptRelay(link: number, answers: number): number
  /** Calls `save` after the cell's log took in what came, for as long as there is the cell. */
  onProgress(cgroupId: bigint, save: (progress: Progress) => void): void
  /** Resolves once everything that the kernel had told when it was called is in the cells' logs. */
  flush(): Promise<void>
  /** Who ran into a limit so far; the first 64 of each. */
  hits(cgroupId: bigint): { oom: readonly Culprit[]; forks: readonly Culprit[] }
  /** The records that close a cell's evidence: what the API reader still held, the syscall set, one `loss` per kind of event. */
  finalSets(cgroupId: bigint): EvidenceBody[]
  close(): void
}

/** Events of a cell that nobody has asked for yet; more are lost, and told so. */
const WAITING_EVENTS = 10_000

/** More are counted by the kernel alone. */
const HITS = 64

/** By the numbers of enum ambit_arch (bpf/arch.h), which `syscallName` takes too. */
const ARCHES = syscallCount.shape.arch.options

const FAMILY_OF: Record<string, Family> = {
  'exec': 'exec', 'exec.failed': 'exec', 'fork': 'process', 'fork.failed': 'process', 'exit': 'process', 'file': 'file', 'file.failed': 'file',
  'connect': 'network', 'syscall.refused': 'syscall', 'tls': 'api', 'syscalls': 'syscall',
}

/** What holds listed programs. */
const PROGRAMS_HOOK = 'lsm/bprm_check_security'
/** How long the programs stay attached after the last cell, ms: the next one of a row is not held up by attaching them again. */
const LINGER_MS = 2000

type Route = {
  watched: boolean
  log: Pick<CellLog, 'append'> | null
  waiting: EvidenceBody[]
  /** By kind of event: came here and, where it is evidence, into the log or among those that wait. */
  delivered: Map<string, number>
  api: ApiReader | null
  /** Failed attempts of cell-init's child to start the command, by pid: evidence only if none succeeds. */
  attempts: Map<number, EvidenceBody[]>
  hits: { oom: Culprit[]; forks: Culprit[] }
  save: ((progress: Progress) => void) | null
}

/**
 * Loads the eBPF programs and tries to attach each once, so that `hooks` tells what is true. They stay attached only while
 * there are cells: a syscall tracepoint costs every process of the host.
 *
 * Throws KERNEL_LACKS if not one object loads; a program that is missing alone is only reported.
 */
export function openProbes(options: ProbesOptions): Probes {
  const cells = new Map<bigint, Route>()
  const progressed = new Set<Route>()
  const saveSoon = (): void => {
    if (progressed.size === 0) return
    // After the logs, which asked for their turn before.
    setImmediate(() => {
      for (const route of progressed) route.save?.({ delivered: Object.fromEntries(route.delivered), hits: route.hits })
      progressed.clear()
    })
  }
  const onBatch = (batch: Buffer): void => {
    try {
      for (const event of decode(batch)) {
        const route = cells.get(event.cell)
        if (route === undefined || !take(options.native, route, event)) continue
        route.delivered.set(event.kind, (route.delivered.get(event.kind) ?? 0) + 1)
        if (route.save !== null) progressed.add(route)
      }
    } catch (error) {
      // What follows in this batch was produced and is not counted as delivered: the cells' losses tell of it.
      if (!(error instanceof DecodeError)) throw error
    }
    saveSoon()
  }
  const probes: NativeProbes = new options.native.Probes(options.objectDir, options.level, options.parentCgroup, onBatch, options.ringBytes, options.inherited?.kept)
  let reports: ProbeReport[]
  try {
    reports = probes.load()
    if (!reports.some(report => report.state === 'attached')) {
      throw new AmbitError('KERNEL_LACKS', { attempted: 'load the eBPF programs', why: reports.find(report => report.state === 'missing')?.detail ?? 'there are none', remedy: 'run `ambit doctor` to see what this kernel offers' })
    }
    reports = probes.attach()
    const wanted = new Set(options.inherited?.cells.map(({ cgroupId }) => cgroupId))
    for (const id of probes.inherited()) if (!wanted.has(id)) probes.removeCell(id)
    for (const { cgroupId, progress } of options.inherited?.cells ?? []) {
      if (probes.inherited().includes(cgroupId)) cells.set(cgroupId, { ...newRoute(), watched: true, delivered: new Map(Object.entries(progress.delivered)), hits: progress.hits })
    }
    if (cells.size === 0) probes.detach()
  } catch (error) {
    probes.close()
    throw error
  }
  let tls: ProbeReport[] = []
  let apiCells = 0
  let watched = cells.size
  let lingering: NodeJS.Timeout | null = null

  return {
    addCell(cgroupId, initPid) {
      probes.addCell(cgroupId, initPid)
      cells.set(cgroupId, newRoute())
    },
    watch(cgroupId, api) {
      const route = known(cells, cgroupId)
      if (lingering !== null) clearTimeout(lingering)
      lingering = null
      reports = probes.attach()
      route.watched = true
      watched++
      route.api = api
      if (api !== null && apiCells++ === 0) tls = options.tls.flatMap(library => attachTls(probes, library))
    },
    removeCell(cgroupId) {
      const route = cells.get(cgroupId)
      if (route === undefined) return
      cells.delete(cgroupId)
      probes.removeCell(cgroupId)
      if (route.api !== null && --apiCells === 0) {
        probes.detachTls()
        tls = []
      }
      if (route.watched && --watched === 0) {
        lingering = setTimeout(() => {
          lingering = null
          probes.detach()
        }, LINGER_MS).unref()
      }
    },
    holdPrograms(cgroupId, programs) {
      // Where no hook could hold them they are not even looked for.
      if (!reports.some(({ name, state }) => name === PROGRAMS_HOOK && state === 'attached')) return false
      const list = programs()
      return list !== null && probes.holdPrograms(cgroupId, list)
    },
    knows: cgroupId => cells.has(cgroupId),
    attachRelay: (...sockets) => probes.attachRelay(...sockets),
    relayAnswers: handle => probes.relayAnswers(handle),
    detachRelay: handle => probes.detachRelay(handle),
    route(cgroupId, log) {
      const route = known(cells, cgroupId)
      route.log = log
      for (const body of route.waiting.splice(0)) log.append(body)
    },
    hooks: () => [...reports, ...tls].map(hookReport),
    keepable: () => probes.keepable(),
    relayLink: handle => probes.keepable()[`relay ${handle}`],
    adoptRelay: (link, answers) => probes.adoptRelay(link, answers),
    onProgress(cgroupId, save) {
      const route = known(cells, cgroupId)
      route.save = save
      progressed.add(route)
      saveSoon()
    },
    flush: () => probes.flush(),
    hits: cgroupId => known(cells, cgroupId).hits,
    finalSets(cgroupId) {
      const route = known(cells, cgroupId)
      const { syscalls, outOfRange, counters } = probes.readCell(cgroupId)
      const calls: SyscallCount[] = syscalls.map(({ arch, nr, ...counts }) => ({ arch: ARCHES[arch]!, nr, name: options.native.syscallName(arch, nr), ...counts }))
      const losses = counters.map(({ event, produced, dropped }): EvidenceBody => {
        // The programs count what they could not send; what was sent and did not arrive is as lost. "syscalls" sends nothing.
        const delivered = event === 'syscalls' ? produced - dropped : route.delivered.get(event) ?? 0
        return { type: 'loss', event, family: FAMILY_OF[event] ?? 'process', produced, delivered, dropped: produced - delivered }
      })
      return [...(route.api?.end() ?? []), { type: 'syscalls', calls, outOfRange }, ...losses]
    },
    close() {
      if (lingering !== null) clearTimeout(lingering)
      cells.clear()
      probes.close()
    },
  }
}

function newRoute(): Route {
  return { log: null, watched: false, waiting: [], delivered: new Map(), api: null, attempts: new Map(), hits: { oom: [], forks: [] }, save: null }
}

/** A program without a single function of the library uses the shared one: that is no gap. */
function attachTls(probes: NativeProbes, { path, flavour, optional }: ProbesOptions['tls'][number]): ProbeReport[] {
  const reports = probes.attachTls(path, flavour)
  return optional === true && reports.every(report => report.state === 'missing') ? [] : reports
}

function known(cells: Map<bigint, Route>, cgroupId: bigint): Route {
  const route = cells.get(cgroupId)
  if (route === undefined) throw new AmbitError('INTERNAL', { attempted: 'follow a cell', why: `no cell with cgroup ${cgroupId} was added`, remedy: 'this is a defect in ambit' })
  return route
}

function hookReport({ name, family, state, detail }: ProbeReport): HookReport {
  const named = FAMILIES.find(each => each === family)
  if (named === undefined) throw new AmbitError('INTERNAL', { attempted: 'report a hook', why: `${name} is of the family "${family}", which does not exist`, remedy: 'this is a defect in ambit' })
  return { name, family: named, state, ...(detail === '' ? {} : { detail }) }
}

/** Turns an event into evidence, or holds it until it is known whether it is any. False: there was no room for it. */
function take(native: NativeAddon, route: Route, event: RawEvent): boolean {
  const { pid } = event.process
  if (event.kind === 'exec.failed' && event.setup) {
    route.attempts.set(pid, [...(route.attempts.get(pid) ?? []), ...bodies(native, event)])
    return true
  }
  if (event.kind === 'exit' && event.setup) {
    // The command never started: what was tried is what the evidence must say.
    const attempts = route.attempts.get(pid) ?? []
    route.attempts.delete(pid)
    return give(route, attempts)
  }
  if (event.kind === 'exec') route.attempts.delete(pid)
  if (event.kind === 'exit' && event.oom) remember(route.hits.oom, event.process)
  if (event.kind === 'fork.failed') remember(route.hits.forks, event.process)
  return give(route, event.kind === 'tls' ? route.api?.read(event) ?? [] : bodies(native, event))
}

function remember(list: Culprit[], { pid, comm }: Culprit): void {
  if (list.length < HITS) list.push({ pid, comm })
}

function give(route: Route, list: EvidenceBody[]): boolean {
  if (route.log === null) {
    if (route.waiting.length + list.length > WAITING_EVENTS) return false
    route.waiting.push(...list)
    return true
  }
  for (const body of list) route.log.append(body)
  return true
}

function bodies(native: NativeAddon, event: Exclude<RawEvent, { kind: 'tls' }>): EvidenceBody[] {
  const { process } = event
  switch (event.kind) {
    case 'exec': {
      const { path, argv, argvTruncated, dev, ino, unlinked, script } = event
      const ran: EvidenceBody = { type: 'exec', process, parent: event.ppid, path, argv, argvTruncated, dev, ino, unlinked }
      // A script must be executable as much as its interpreter. By the time of the event only its name is left: device and inode 0.
      return script === null ? [ran] : [{ ...ran, path: script, dev: '0:0', ino: '0', unlinked: false }, ran]
    }
    case 'exec.failed': return [{ type: 'exec.failed', process, path: event.path, errno: errnoName(event.errno), onHost: onHost(event.path), ...(event.byLsm && { by: 'lsm' as const }) }]
    case 'fork': return [{ type: 'fork', process, child: event.child }]
    case 'fork.failed': return [{ type: 'fork.failed', process, errno: errnoName(event.errno) }]
    case 'exit': return [{ type: 'exit', process, code: event.code, signal: event.signal, ...(event.oom && { oom: true as const }) }]
    case 'file': {
      const { path, access, created, dev, ino, source } = event
      return [{ type: 'file', process, path, access, created, dev, ino, source, ...(event.spokenTo ? { socket: true } : {}), ...(event.owner !== undefined && { owner: event.owner }) }]
    }
    case 'file.failed': return [{ type: 'file.failed', process, path: event.path, access: event.access, errno: errnoName(event.errno), onHost: onHost(event.path), ...(event.spokenTo ? { socket: true } : {}) }]
    case 'connect': return [{ type: 'connect', process, address: event.address, port: event.port, protocol: event.protocol }]
    case 'syscall.refused': {
      const { arch, nr, errno } = event
      return [{ type: 'syscall.refused', process, arch: ARCHES[arch] ?? String(arch), nr, name: native.syscallName(arch, nr), errno: errno === 0 ? 'SIGSYS' : errnoName(errno) }]
    }
  }
}

const ERRNO_NAMES = new Map(Object.entries(constants.errno).map(([name, number]) => [number, name]))
function errnoName(errno: number): string {
  return ERRNO_NAMES.get(errno) ?? `errno ${errno}`
}

/**
 * Whether the host has something at this path, by the daemon's lstat: the cell's root may just lack it. Says nothing for paths
 * that are not absolute and plain, nor below /proc, where each process sees its own.
 */
function onHost(path: string): boolean {
  if (!path.startsWith('/') || path === '/proc' || path.startsWith('/proc/') || path.startsWith('/dev/fd/')) return false
  try {
    return lstatSync(path, { throwIfNoEntry: false }) !== undefined
  } catch {
    return false
  }
}
