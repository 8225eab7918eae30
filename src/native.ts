import { createRequire } from 'node:module'
import { AmbitError } from './errors.ts'

/**
 * The one importer of the addon, and the types of everything that crosses into it. Descriptors are plain
 * numbers; whoever receives one owns it and closes it. Errors from the addon are `Error`s with
 * `{code: 'NATIVE', errno: number, syscall: string}`.
 */

export type Mount =
  /** A detached copy of `source` (host path, or a descriptor of the daemon), always nosuid and nodev. */
  | { type: 'bind'; source: string | number; target: string; readonly: boolean; recursive: boolean; noexec?: boolean;
      /** Resolve `source` with this host user's rights (setfsuid), not root's. */
      asUser?: { uid: number; gid: number }
      /** Files of this host owner appear as the cell's 0:0 and files the cell makes belong to that owner. */
      idmapOwner?: { uid: number; gid: number }
      /** A missing source is skipped, not an error. */
      optional?: boolean
      /** It must be a Unix socket; its owner is mapped where the file system can. */
      socket?: boolean
      /** No owner is known in it, so that no socket in it can be connected to; where its file system can. */
      nobody?: boolean }
  /**
   * `lower`, the top one first, under `upper`, which takes the writes and holds the folders "upper" and "work"; without it
   * nothing can be written. Always nosuid and nodev. "/" makes it the cell's root, as the first mount only. `fromJobs`: jobs of
   * before may have written what it shows, so no rule follows a link in it.
   */
  | { type: 'overlay'; target: string; upper?: Layer; lower: Layer[]; noexec?: boolean; fromJobs?: boolean }
  | { type: 'tmpfs'; target: string; sizeBytes: number; mode: number; noexec?: boolean }
  | { type: 'directory'; target: string; mode: number }
  | { type: 'file'; target: string; content: string; mode: number }
  | { type: 'symlink'; target: string; to: string }

/** One layer of an overlay: a detached copy of `source`, without what is mounted below it. */
export type Layer = {
  source: string | number
  asUser?: { uid: number; gid: number }
  idmapOwner?: { uid: number; gid: number }
  /** Every owner on disk, root too, keeps its number in the cell. */
  idmapAll?: boolean
}

export type LandlockAccess = 'read' | 'write' | 'execute'

/** What a cell's namespaces take, before anybody knows what will run in them. */
export type Reservation = {
  id: string
  /** Absolute cgroup folders that exist already: the v2 one is entered by CLONE_INTO_CGROUP, v1 ones through their `tasks` file. */
  cgroups: { v2: string; v1: string[] }
  /** Host id of the cell's id 0, and how many follow. Never 0. */
  ids: { base: number; count: number }
}

export type LaunchPlan = {
  /** Of a reserved cell. */
  id: string
  argv: string[]
  /** NAME=value */
  env: string[]
  /** In the cell. */
  cwd: string
  /** Descriptors of the daemon; duplicated, so the daemon may close them after `prepare` returns. */
  stdio: [number, number, number]
  /** As they were reserved. */
  ids: { base: number; count: number }
  hostname: string
  /** Above /proc and /dev with its terminals, which every cell has. */
  mounts: Mount[]
  /** From `buildSeccomp`; null only in tests. */
  seccomp: Buffer | null
  /** Paths in the cell; null where the kernel has no Landlock. `write` covers making, removing, truncating; refer included. Missing paths are skipped. */
  landlock: { rules: { path: string; access: LandlockAccess[] }[] } | null
  /** What the command keeps, in the cell's user namespace (src/contract/capabilities.ts); absent: none. */
  capabilities?: readonly string[]
  rlimits: { name: 'nofile' | 'nproc' | 'core' | 'fsize' | 'stack' | 'memlock'; soft: number; hard: number }[]
  /** Whether the cell's processes may make user namespaces in their own, where the filter lets them ask. */
  userNamespaces: boolean
  /** Ids in the cell that the command runs as. */
  uid: number
  gid: number
}

/**
 * A cell's namespaces, with its process 1 waiting for a plan. All listening sockets live in the cell's network namespace;
 * those of IPv6 are -1 on a host without it.
 */
export type ReservedCell = {
  /** cell-init on the host: process 1 of the cell. */
  pid: number
  pidfd: number
  netns: number
  /** Listening TCP sockets on 127.0.0.1 and ::1 that sk_lookup hands every non-loopback connection to. */
  relay4: number
  relay6: number
  /** Port 53 of every address: UDP and TCP. */
  dnsUdp4: number
  dnsUdp6: number
  dnsTcp4: number
  dnsTcp6: number
  /** UDP sockets that sk_lookup hands every datagram to that is neither for loopback nor for port 53. */
  udp4: number
  udp6: number
}

export type CellExit = {
  id: string
  /** Of the command. Exactly one of both is set, unless `failed` is. */
  code: number | null
  signal: number | null
  /** cell-init could not do its work: the step in words, and errno. */
  failed: { step: string; errno: number } | null
  /** Its time ran out while no daemon was there, and the spawner ended it. */
  timeOver: boolean
  userUs: number
  systemUs: number
  maxRssKiB: number
}

export interface NativeSpawner {
  /** Makes the namespaces of a cell. */
  reserve(reservation: Reservation): Promise<ReservedCell>
  /** Builds a reserved cell as planned; nothing of the job runs yet. After a refusal the cell is gone, or of no use: kill its group. */
  prepare(plan: LaunchPlan): Promise<number>
  /** Lets the command start as soon as the cell is built; may be called while `prepare` is under way. */
  go(id: string): void
  /** Sends a signal to the command, or to `all` processes of the cell, through cell-init, which is not otherwise reachable. */
  signal(id: string, signal: number, all?: boolean): void
  /** The cell outlives this process, until the deadline: milliseconds since boot (CLOCK_BOOTTIME). */
  hold(id: string, deadline: number): void
  /** A copy of the descriptor is kept under this name for the next daemon: as long as the cell or, with an empty id, as any cell that is held. */
  keep(id: string, name: string, fd: number): void
  /** Of a spawner that was taken over: what it has. Ask once, at once. */
  taken(): Promise<TakenCells>
  close(): void
}

/** What a former daemon's spawner hands over. Whoever receives it owns every descriptor in it. */
export type TakenCells = {
  cells: (ReservedCell & { id: string })[]
  ended: CellExit[]
  kept: { id: string; name: string; fd: number }[]
}

export type PeerCredentials = { pid: number; uid: number; gid: number }

export interface NativeControl {
  send(connection: number, message: Buffer): void
  disconnect(connection: number): void
  close(): void
}

/** Who ended a flow of a relay before both of its ways had ended; null: nobody. */
export type RelayCulprit = 'client' | 'server' | 'cut' | null

/**
 * Carries bytes between connected TCP sockets on one thread of its own, without JavaScript. Flows are numbers, never used twice.
 * Naming one that has ended is no error: `onEnd` is on its way. Both sockets are reset unless both ways end in order.
 */
export interface NativeRelay {
  /** Duplicates both descriptors and carries from server to client from now on. `group`: pipes are shared out among groups. */
  open(client: number, server: number, group: number): number
  /** Carries from client to server from now on, `first` before all else. What was read of the client elsewhere must be in it. */
  send(flow: number, first: Buffer): void
  /** The way to the server was carried elsewhere and is over. `errno` other than 0: the server broke it off. */
  sent(flow: number, errno: number): void
  /** Shows all that comes from the server, first an empty Buffer: what follows it was not yet read when this was called. */
  watch(flow: number): void
  unwatch(flow: number): void
  cut(flow: number): void
  /** Resets every flow; nothing is called any more. Idempotent. The other methods throw afterwards. */
  close(): void
}

export type ProbeReport = { name: string; family: string; state: 'attached' | 'fallback' | 'missing'; detail: string }

export type RawSyscallCount = { arch: number; nr: number; succeeded: number; failed: number; refused: number; unfinished: number }

export interface NativeProbes {
  /** Loads every object; attaches nothing. */
  load(): ProbeReport[]
  /** Attach or detach the host-wide programs; called with the first and after the last cell. Returns the state of each hook. */
  attach(): ProbeReport[]
  detach(): void
  /** Registers a cell by its v2 cgroup id (inode of the folder) and its init's pid, whose own acts are not evidence. */
  addCell(cgroupId: bigint, initPid: number): void
  /** Reads the lossless sets. May be called at any time; does not drain. */
  readCell(cgroupId: bigint): { syscalls: RawSyscallCount[]; outOfRange: number; counters: { event: string; produced: number; delivered: number; dropped: number }[] }
  removeCell(cgroupId: bigint): void
  /**
   * From here on the cell executes only these: triples of device (major << 20 | minor), inode, and 1 for all that lies below it,
   * 0 for the file itself. For attached programs, before the cell starts, once. False: this kernel has no hook for it.
   */
  holdPrograms(cgroupId: bigint, programs: BigUint64Array): boolean
  /** Hands every pending event over before it returns control to `onBatch`; resolves when the ring is empty. */
  flush(): Promise<void>
  /** Uprobes on a TLS library or binary, by inode, for every cell. Idempotent per inode. */
  attachTls(path: string, flavour: 'openssl' | 'gnutls'): ProbeReport[]
  detachTls(): void
  /** Gives every TCP connection and datagram of the namespace that is not meant for loopback to the relay's sockets; -1: there is none. Returns a handle. */
  attachRelay(netns: number, relay4: number, relay6: number, udp4: number, udp6: number): number
  /** The map that lets a relay's answers to datagrams through, as a descriptor of the caller's own. */
  relayAnswers(handle: number): number
  detachRelay(handle: number): void
  /** The relay that a former daemon attached, by the descriptors of its link and of the map of its answers, which are owned from now on; returns a handle. */
  adoptRelay(link: number, answers: number): number
  /** What goes on counting while it is open, by name: "map NAME", "link PROGRAM", "relay HANDLE". The descriptors stay the probes'. */
  keepable(): Record<string, number>
  /** Cells that are known, by cgroup id; after `load`, those of a former daemon. */
  inherited(): bigint[]
  close(): void
}

/** How a call is refused: with an error, by ending the thread or the process, or with SIGSYS, which the program may catch. */
export type Refusal = { errno: number } | 'kill-thread' | 'kill-process' | 'trap'

export type DatagramEnd = {
  /** Of the payload alone. */
  bytesOut: number
  bytesIn: number
  /** What ended it, as a clause; empty: silence, or the cell's end. `errno` 0: no error. */
  why: string
  errno: number
}

/** One thread that carries the datagrams of every cell. A flow is one pair of client and destination. */
export interface NativeDatagrams {
  /** Owns `udp4` and `udp6` from then on; -1: there is none. `netns` and `answers` (relayAnswers) stay the caller's. Returns the cell's number. */
  add(netns: number, udp4: number, udp6: number, answers: number): number
  /** Lets the flow's datagrams go to the address, or refuses them with "port unreachable" where `target` is null. */
  rule(flow: number, target: string | null, port?: number): void
  /** Ends every flow of the cell; `onRemoved` is called after their ends. */
  remove(cell: number): void
  close(): void
}

export type SeccompPlan = {
  /** Errno of calls that no rule allows; ENOSYS makes C libraries fall back. */
  defaultErrno: number
  /** Instead of that errno. */
  defaultAction?: Exclude<Refusal, object>
  /** Log refusals (SECCOMP_FILTER_FLAG_LOG is set by cell-init). */
  rules: { names: string[]; action: 'allow' | Refusal; args?: { index: number; op: 'eq' | 'ne' | 'lt' | 'le' | 'gt' | 'ge' | 'masked-eq'; value: bigint; mask?: bigint }[] }[]
}

export interface NativeAddon {
  /**
   * Starts the small spawner process. `onExit` is called once for each reserved cell that no call is waiting for, after its last
   * process is gone; `onEnd` if the spawner ends by itself. At `nextPath` it waits for the next daemon, if this one dies and cells
   * are held. With null as the first argument, the second is such a path, and the spawner there is taken over.
   */
  Spawner: new (spawnerPath: string | null, initPath: string, onExit: (exit: CellExit) => void, onEnd?: () => void, nextPath?: string) => NativeSpawner
  /** A SOCK_SEQPACKET server; `onMessage` owns `fds`. Messages above 256 KiB and more than 8 descriptors are refused. */
  Control: new (path: string, mode: number, gid: number,
    onMessage: (connection: number, peer: PeerCredentials, message: Buffer, fds: number[]) => void,
    onClose: (connection: number) => void) => NativeControl
  /**
   * `onEnd` is called once for each flow; `errno` 0 unless a side broke it off. `onHeard`: see `watch`; null: no more comes.
   * `bytesIn` counts what was read of the server, `bytesOut` what its socket took from here.
   */
  Relay: new (onEnd: (flow: number, bytesOut: number, bytesIn: number, culprit: RelayCulprit, errno: number) => void,
    onHeard: (flow: number, bytesIn: number, bytes: Buffer | null) => void) => NativeRelay
  /**
   * `onBatch`: one Buffer per wake-up, records as in bpf/events.h back to back. `level`: depth of cells' cgroups below the
   * v2 root; they are direct children of `parentCgroup`. `ringBytes`: a power of two; the objects' own size if left out. `kept`: what `keepable`
   * told of a former daemon's probes, as descriptors that are owned from now on.
   */
  Probes: new (objectDir: string, level: number, parentCgroup: string, onBatch: (events: Buffer) => void, ringBytes?: number, kept?: Record<string, number>) => NativeProbes
  /**
   * `onFlow` must be answered with `rule`; `onEnd` is called for each flow that was told, `onRemoved` last, with the number of
   * datagrams that came too fast to be ruled on. `flows`: of one cell at once; beyond it the one that was silent longest ends.
   */
  Datagrams: new (idleMs: number, flows: number,
    onFlow: (cell: number, flow: number, address: string, port: number) => void,
    onEnd: (cell: number, flow: number, end: DatagramEnd) => void,
    onRemoved: (cell: number, unheard: number) => void) => NativeDatagrams
  buildSeccomp(plan: SeccompPlan): Buffer
  /** `arch`: place in `syscallCount.arch` (0 x86_64, 1 i386, 2 x32, 3 aarch64, 4 arm). Null: the number has no name. */
  syscallName(arch: number, nr: number): string | null
  /** Every call that this libseccomp and kernel know, by name. */
  syscallNumber(name: string): number | null
  /** What is known of a name: a call of this machine's, one that its kernel answers with ENOSYS, another architecture's, or nothing. */
  syscallState(name: string): 'present' | 'absent' | 'foreign' | 'unknown'
  landlockAbi(): number
  /** What a descriptor is of; never blocks. */
  descriptorKind(fd: number): { kind: 'file' | 'directory' | 'pipe' | 'character' | 'unix-socket' | 'socket' | 'other'; pathOnly: boolean }
  /** An extended attribute of what a descriptor is of; null: none of that name. */
  attributeOf(fd: number, name: string): string | null
  setAttribute(fd: number, name: string, text: string): void
  /** A descriptor of memory that can be written and read like a file (memfd_create(2)). */
  makeMemory(name: string): number
  /** Takes an exclusive lock on a file, made if need be; null: another process has it. Held until the descriptor is closed. */
  lockFile(path: string): number | null
  /** openat2 under `dirfd` with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS; returns a descriptor. */
  openBeneath(dirfd: number, path: string, flags: number, mode: number): number
}

let loaded: NativeAddon | undefined

export function native(): NativeAddon {
  if (loaded === undefined) {
    try {
      loaded = createRequire(import.meta.url)('#addon') as NativeAddon
    } catch (cause) {
      throw new AmbitError('NATIVE_MISSING', {
        attempted: 'load the native addon',
        why: (cause as Error).message.split('\n')[0]!,
        remedy: 'build it with `npm run setup` in the folder that holds ambit\'s package.json',
        cause,
      })
    }
  }
  return loaded
}
