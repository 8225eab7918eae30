import { closeSync, existsSync, readFileSync, realpathSync } from 'node:fs'
import { arch, hostname, release } from 'node:os'
import { dirname } from 'node:path'
import { execPaths, execPins } from '../authority/exec.ts'
import { namedAbsent, syscallSummary } from '../authority/syscall.ts'
import { some } from '../authority/words.ts'
import { ttlSeconds, type Contract } from '../contract/schema.ts'
import { contractDigest } from '../contract/write.ts'
import type { ApiReader } from '../evidence/api.ts'
import type { EvidenceBody, HookReport } from '../evidence/records.ts'
import type { CellLog } from '../evidence/store.ts'
import type { NativeAddon } from '../native.ts'
import { openEgress, type Egress } from '../network/egress.ts'
import { asCellError } from './failure.ts'
import { follow, type Cell } from './follow.ts'
import { launchPlan, programsHeld, type PlanRequest } from './plan.ts'
import { loadersAmong } from './programs.ts'
import type { CellHost, Reserved } from './reserve.ts'
import { linksFollowed, realpathOrNull } from './root.ts'
import { leadsTo, type Ids } from './see.ts'

export type CellRequest = Omit<PlanRequest, 'id' | 'slot'> & {
  /** What happened with credentials before the start: part of the evidence. */
  credentials: EvidenceBody[]
  credentialHooks: HookReport[]
  /** host or host:port of the APIs whose calls are to be seen; empty: TLS is not looked at. */
  apiHosts: readonly string[]
  /** The cell outlives the daemon. */
  lasts: boolean
  /** What is held, and what not, of the limits that the contract asks for. */
  limitEnforcers: { name: string; state: string }[]
}

/** The newest version of Landlock that cell-init knows (native/init/landlock.cpp). */
const LANDLOCK_KNOWN = 9

/**
 * Makes a reserved cell what its contract says, lets it go and follows it to its end. The log gets everything from
 * `cell.started` to `cell.ended`; whatever fails before the command starts leaves nothing behind but the log, if it was begun, and throws.
 */
export async function startCell(host: CellHost, reserved: Reserved, request: CellRequest, begin: (id: string) => CellLog, revoke: () => Promise<EvidenceBody[]>, mark: (phase: string) => void, beforeGo: (started: number) => void): Promise<Cell> {
  const { id, slot, cgroup } = reserved
  const { contract } = request
  const started = Date.now()

  let egress: Egress | undefined
  let held = false
  let log: CellLog | undefined
  /** What the network told before the first records were written. */
  const early: EvidenceBody[] = []
  try {
    const opened: number[] = []
    let built: Promise<number>
    try {
      built = host.spawner.prepare(launchPlan(host.native, { ...request, id, slot }, opened))
    } finally {
      for (const fd of opened) closeSync(fd)
    }
    mark('planned')
    // All this while the spawner and the cell's process 1 are at work.
    const listening = (async () => {
      const begun = begin(id)
      host.probes.watch(cgroup.id, await apiReader(request.apiHosts))
      held = host.probes.holdPrograms(cgroup.id, () => programsHeld(request))
      // The egress owns the sockets from the moment that it is asked to open, whether it can or not.
      const answers = host.probes.relayAnswers(reserved.relay!)
      reserved.socketsTaken()
      try {
        egress = await openEgress({
          netns: reserved.native.netns, answers, sockets: reserved.native, grants: contract.spec.authority.network, hosts: contract.spec.hosts, mode: contract.spec.mode,
          emit: body => { if (log === undefined) early.push(body); else log.append(body) },
        })
      } finally {
        closeSync(answers)
      }
      beforeGo(started)
      host.spawner.go(id)
      mark('served')
      return { begun, hooks: egress.hooks() }
    })()
    const [unheld, { begun, hooks }] = await both(built, listening)
    mark('built')
    log = begun
    log.append({
      type: 'cell.started', cell: id, mode: contract.spec.mode, contract, contractDigest: contractDigest(contract), argv: request.argv,
      host: hostname(), boot: bootId(), kernel: `${release()} ${arch()}`,
      pipeline: contract.metadata.pipeline ?? null, links: linksOf(contract, request.owner),
      ...(contract.spec.rootfs === undefined ? { loaders: loadersAmong(execPaths(contract.spec.authority.exec)) } : { rootfs: contract.spec.rootfs }),
      ...(request.programs.length === 0 ? {} : { programs: request.programs.map(({ path, sha256, dev, ino }) => ({ path, sha256, dev, ino })) }),
    })
    log.append({ type: 'coverage', hooks: [...host.probes.hooks(), ...hooks, ...request.credentialHooks], enforcers: [...enforcers(host.native, contract, held, unheld), { name: 'loss of the daemon', state: request.lasts ? 'the cell goes on, until its ttl' : 'the cell ends' }, ...request.limitEnforcers] })
    for (const event of request.credentials) log.append(event)
    for (const body of early.splice(0)) log.append(body)
    host.probes.route(cgroup.id, log)
  } catch (error) {
    await egress?.close()
    await reserved.release()
    throw asCellError(error)
  }

  return follow(host, reserved, { contract, started, remainingMs: ttlSeconds(contract.spec.ttl) * 1000, egress, log, revoke })
}

/** Waits for both; throws what made either fail, once neither is at work any more. */
async function both<A, B>(first: Promise<A>, second: Promise<B>): Promise<[A, B]> {
  const [a, b] = await Promise.allSettled([first, second])
  if (a.status === 'rejected') throw a.reason
  if (b.status === 'rejected') throw b.reason
  return [a.value, b.value]
}

let boot: string | undefined
function bootId(): string {
  return boot ??= readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
}

/** Loaded with the first cell that declares an API. */
async function apiReader(hosts: readonly string[]): Promise<ApiReader | null> {
  return hosts.length === 0 ? null : new (await import('../evidence/api.ts')).ApiReader(hosts)
}

/** Where the contract's paths lead, for those that are not the whole truth themselves ("/bin/sh": "/usr/bin/dash"). */
function linksOf(contract: Contract, owner: Ids): Record<string, string> {
  const { filesystem } = contract.spec.authority
  const exec = execPaths(contract.spec.authority.exec)
  const { rootfs } = contract.spec
  if (rootfs !== undefined) {
    const leads = [...exec, ...filesystem.read].filter(path => path.startsWith('/')).map(path => [path, leadsTo(path, owner, rootfs)] as const)
    return Object.fromEntries(leads.filter((pair): pair is readonly [string, string] => pair[1] !== null && pair[1] !== pair[0]))
  }
  // Only links of the host's packages are followed, and those are no secret.
  const leads = [...exec, ...filesystem.read].filter(path => dirname(path) === '/' || linksFollowed(realpathOrNull(dirname(path)) ?? '/')).map(path => [path, realpathOrNull(path)] as const)
  return Object.fromEntries(leads.filter((pair): pair is readonly [string, string] => pair[1] !== null && pair[1] !== pair[0]))
}

/** `unheld`: trees of the host whose file system cannot keep their sockets from being connected to. */
function enforcers(native: NativeAddon, contract: Contract, held: boolean, unheld: number): { name: string; state: string }[] {
  const enforce = contract.spec.mode === 'enforce'
  const { rootfs } = contract.spec
  const pins = execPins(contract.spec.authority.exec).length
  const abi = native.landlockAbi()
  return [
    { name: 'namespaces', state: 'user mount pid net ipc uts cgroup' },
    { name: 'capabilities', state: `${contract.spec.capabilities.length === 0 ? 'all dropped' : `${contract.spec.capabilities.join(' ')} in the cell's own user namespace, the others dropped`}, no_new_privs` },
    { name: 'seccomp', state: seccompState(native, contract.spec.authority.syscall) },
    { name: 'root', state: rootfs !== undefined ? imageState(contract) : enforce ? 'holds only what the contract declares' : 'the host read-only, without /run, /tmp, /proc, /sys and /dev' },
    { name: 'writes', state: writesState(contract) },
    { name: 'programs', state: !enforce || contract.spec.authority.exec.includes('*') ? 'any' : `by Landlock${held ? ', and by BPF LSM as files of the host, interpreters of scripts too' : ''}${pins === 0 ? '' : `; ${pins} of them with the content that the contract names, checked before the start`}; execve of memory and of what jobs write is refused; the loader can run what it can map` },
    { name: 'unix sockets', state: unixState(enforce, abi, unheld, contract) },
    { name: 'file locks', state: 'not held: a job can lock any file that it may open, and keep waiting whoever asks for that lock' },
    { name: 'landlock', state: !enforce ? 'off in observe' : abi === 0 ? 'the kernel has none' : `ABI ${abi}${abi < LANDLOCK_KNOWN ? `; what ${LANDLOCK_KNOWN} would add is not held` : abi > LANDLOCK_KNOWN ? `, used as ${LANDLOCK_KNOWN}` : ''}` },
    { name: 'egress', state: enforce ? 'declared names only, by relay and resolver' : 'any public name, by relay and resolver' },
  ]
}

/** Trees to be read hold no socket that can be connected to where their owners are unknown; of a tree to be written its owner's can be. */
function unixState(enforce: boolean, abi: number, unheld: number, { spec }: Contract): string {
  if (enforce && abi >= 9) return 'those of the cell\'s own processes and granted ones only, by Landlock'
  if (!enforce || spec.rootfs !== undefined || spec.system === 'overlay') return 'not held: sockets in directories that the cell shows can be connected to'
  const written = 'in what may be written, those of its owner can be connected to'
  return unheld === 0 ? `in what may only be read, granted ones only; ${written}` : `not held in ${unheld} of the trees that may only be read: their file systems cannot map owners; ${written}`
}

/** What is refused in every cell is refused under another engine's profile, too. */
function seccompState(native: NativeAddon, declared: Contract['spec']['authority']['syscall']): string {
  const absent = namedAbsent(declared, name => native.syscallState(name))
  return `${syscallSummary(declared)}; io_uring, clone3, openat2, set-id modes of the host's files and other architectures are refused in every cell${absent.length === 0 ? '' : `; this kernel lacks ${some(absent, 8)}`}`
}

function imageState({ spec }: Contract): string {
  const writes = spec.rootfsWrites === 'overlay' ? 'what is written is kept apart without a quota, and gone at the end' : 'read-only'
  return `the image ${spec.rootfs}, ${writes}; all of it is there, and Landlock alone holds what the contract does not grant`
}

/** Where writes go that the cell has not for itself. */
function writesState({ spec }: Contract): string {
  const workspace = { shared: 'workspace: to the caller\'s directory', overlay: 'workspace: kept apart, without a quota', none: 'no workspace' }[spec.workspace]
  const system = spec.system === 'overlay' ? '; granted directories of the host: to a copy without a quota, gone at the end' : ''
  return `${workspace}${system}${spec.noexec.length > 0 ? `; nothing executes in ${spec.noexec.join(', ')}` : ''}`
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
