import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { execFileSync } from 'node:child_process'
import { release } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { AmbitError } from '../errors.ts'

/** `cpus`: processors' worth of time. `io`: bytes a second, on each of the disks ("MAJOR:MINOR", whole ones). Absent: no limit. */
export type CellLimits = { memoryBytes: number; pids: number; cpus?: number; io?: { disks: readonly string[]; read?: number; write?: number } }

/** Limits that a host may be unable to hold. */
export type OptionalLimit = 'cpus' | 'io read' | 'io write'

/** `memoryAtLimit`: all memory of the limit was in use at some time; `heldBackMs`: how long the cell waited for its share of the processors. */
export type LimitEvents = { oomKills: number; memoryAtLimit: boolean; pidsMax: number; heldBackMs: number }

/** Where a daemon's cells have their groups: what a next one must know to go on with them. */
export type CgroupPlace = { name: string; parentV2: string; v1: Record<string, string> }

export type Cgroups = {
  readonly place: CgroupPlace
  /** Depth of a cell's group below the root of the v2 hierarchy. */
  readonly level: number
  /** The v2 folder that holds every cell of this process. */
  readonly parentV2: string
  /** Which hierarchy does what on this host, for people. */
  readonly layout: string
  /** Makes a cell's groups with their limits; `id` is the kernel's id of the v2 one. Makes all or none. Null: without any, for now. */
  createCell(id: string, limits: CellLimits | null): { id: bigint; v2: string; v1: string[] }
  /** Gives limits to groups that were made without: of memory and pids only, others are hierarchies of their own on v1. */
  setLimits(id: string, limits: CellLimits): void
  /** Resolves when the groups are gone; one that is gone already is no error. Waits for processes that are ending, then throws. */
  removeCell(id: string): Promise<void>
  /** Kills every process of the cell at once; does nothing if the cell is gone. */
  killCell(id: string): void
  /** Ids on the host of the processes in the cell, cell-init's among them. */
  processes(id: string): number[]
  /** Why this host cannot hold such a limit; null: it can. */
  lacks(limit: OptionalLimit): string | null
  /** How often a limit was hit since the cell began. */
  /** Whether memory or pids were at an end: two short reads. */
  limitsHit(id: string): boolean
  events(id: string): LimitEvents
  /** Goes on with these cells of a former daemon; what else it left is killed, and removed in time. */
  adopt(ids: readonly string[]): void
  /** Removes what is left of this process's groups. */
  close(): Promise<void>
}

/** What is asked of the host; replaced in tests of layouts that the machine does not have. */
export type CgroupHost = {
  /** /proc/self/mountinfo */
  mounts: string
  /** /proc/self/cgroup */
  own: string
  /** What /proc/self/ns/cgroup leads to. */
  namespace: string
  /** Whether systemd left the unit's group to the unit (Delegate=). */
  isDelegated(unit: string): boolean
  /** Where this process and others like it write down which groups they made. */
  records: string
  /** Kernels before 5.14 have no cgroup.kill. */
  hasKill: boolean
}

type Controller = 'memory' | 'pids' | 'cpu' | 'io'
const CONTROLLERS: readonly Controller[] = ['memory', 'pids']
/** Only cells that ask for such a limit are put into groups of theirs. */
const OPTIONAL: readonly Controller[] = ['cpu', 'io']
/** What v1 calls them. */
const V1_NAME: Record<Controller, string> = { memory: 'memory', pids: 'pids', cpu: 'cpu', io: 'blkio' }
/** The kernel's own default, microseconds: shares are given out anew that often. */
const CPU_PERIOD_US = 100_000
/** include/linux/proc_ns.h: the inode of the first cgroup namespace. */
const FIRST_NAMESPACE = 'cgroup:[4026531835]'
const HUGE_PAGE = 2 * 1024 * 1024
const REMOVE_MS = 10_000

/** `former`: the place of a daemon that died, whose cells go on; this one uses it, too. */
export function openCgroups(host: CgroupHost = thisHost(), former?: CgroupPlace): Cgroups {
  const name = former?.name ?? `ambit-${process.pid}`
  if (host.namespace !== FIRST_NAMESPACE) {
    throw lacks('this process is in a cgroup namespace, where the depth of a group that eBPF programs need cannot be known', 'run the daemon outside of containers, or in one with the host\'s cgroup namespace')
  }
  removeStale(host.records, former?.name)
  const mounts = parseMounts(host.mounts)
  const v2Mount = mounts.find(mount => mount.type === 'cgroup2')
  if (v2Mount === undefined) throw lacks('no cgroup v2 hierarchy is mounted', 'mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified')

  const base = baseOfV2(v2Mount, host)
  const offered = words(join(base, 'cgroup.controllers'))
  const onV2 = CONTROLLERS.filter(controller => offered.includes(controller))
  const parentV2 = former?.parentV2 ?? join(base, name)
  // Below the group that this process is in: what was given to the daemon is not escaped.
  const v1ParentOf = (controller: Controller): string | undefined => {
    if (former !== undefined) return former.v1[controller]
    const mount = mounts.find(({ type, options }) => type === 'cgroup' && options.includes(V1_NAME[controller]))
    return mount === undefined ? undefined : join(folderOf(mount, ownPath(host.own, V1_NAME[controller])), name)
  }
  const v1Parents = new Map<Controller, string>()
  for (const controller of CONTROLLERS) {
    if (onV2.includes(controller)) continue
    const parent = v1ParentOf(controller)
    if (parent === undefined) throw lacks(`the ${controller} controller is on no hierarchy`, `enable it: cgroup_enable=${controller} on the kernel's command line`)
    v1Parents.set(controller, parent)
  }
  /** Every cell has a group in each. */
  const parents = [...new Set([parentV2, ...v1Parents.values()])]
  const missing = new Map<Controller, string>()
  for (const controller of OPTIONAL) {
    const parent = v1ParentOf(controller)
    if (offered.includes(controller)) onV2.push(controller)
    else if (parent !== undefined) v1Parents.set(controller, parent)
    else missing.set(controller, `the ${controller} controller is on no hierarchy of this host`)
  }
  const allParents = [...new Set([...parents, ...v1Parents.values()])]

  const made: string[] = []
  try {
    const handOn = (folder: string): void => {
      enable(folder, onV2.filter(controller => CONTROLLERS.includes(controller)))
      for (const controller of onV2.filter(one => OPTIONAL.includes(one))) {
        try {
          enable(folder, [controller])
        } catch (error) {
          missing.set(controller, `the kernel does not hand the ${controller} controller on to ${folder}: ${(error as NodeJS.ErrnoException).code}`)
        }
      }
    }
    handOn(base)
    for (const parent of allParents) {
      if (former !== undefined && existsSync(parent)) continue
      mkdirSync(parent)
      made.push(parent)
    }
    handOn(parentV2)
    record(host.records, name, allParents)
  } catch (cause) {
    for (const parent of made.reverse()) rmdirSync(parent)
    throw new AmbitError('KERNEL_LACKS', {
      attempted: `make the cgroup ${name}`, why: (cause as Error).message,
      remedy: (cause as NodeJS.ErrnoException).code === 'EEXIST'
        ? 'this process made one already, or another made a folder of that name: remove it if it is empty'
        : 'run as root on a host whose cgroups can be written; under systemd with Delegate=yes',
      cause,
    })
  }

  const cells = new Set<string>()
  const kill = host.hasKill ? 'kill' : 'kill by freezing'
  const folderIn = (parent: string, id: string): string => {
    if (!/^[A-Za-z0-9_-]{1,63}$/.test(id)) throw new AmbitError('INTERNAL', { attempted: 'name the cgroup of a cell', why: `"${id}" is no id of a cell`, remedy: 'this is a defect in ambit' })
    return join(parent, id)
  }
  const parentOf = (controller: Controller): string => v1Parents.get(controller) ?? parentV2

  const setLimits = (id: string, limits: CellLimits): void => {
    const memory = folderIn(parentOf('memory'), id)
    if (v1Parents.has('memory')) {
      writeFileSync(join(memory, 'memory.limit_in_bytes'), String(limits.memoryBytes))
      // Memory and swap together; missing where swap is not accounted.
      const both = join(memory, 'memory.memsw.limit_in_bytes')
      if (existsSync(both)) writeFileSync(both, String(limits.memoryBytes))
    } else {
      writeFileSync(join(memory, 'memory.max'), String(limits.memoryBytes))
      const swap = join(memory, 'memory.swap.max')
      if (existsSync(swap)) writeFileSync(swap, '0')
    }
    // One more for cell-init, which is in the group and not of the job.
    writeFileSync(join(folderIn(parentOf('pids'), id), 'pids.max'), String(limits.pids + 1))
    if (limits.cpus !== undefined) {
      const folder = folderIn(parentOf('cpu'), id)
      const quota = Math.round(limits.cpus * CPU_PERIOD_US)
      if (v1Parents.has('cpu')) {
        writeFileSync(join(folder, 'cpu.cfs_period_us'), String(CPU_PERIOD_US))
        writeFileSync(join(folder, 'cpu.cfs_quota_us'), String(quota))
      } else {
        writeFileSync(join(folder, 'cpu.max'), `${quota} ${CPU_PERIOD_US}`)
      }
    }
    const { disks, read, write } = limits.io ?? { disks: [] }
    for (const disk of disks) {
      const folder = folderIn(parentOf('io'), id)
      if (!v1Parents.has('io')) {
        writeFileSync(join(folder, 'io.max'), `${disk}${read === undefined ? '' : ` rbps=${read}`}${write === undefined ? '' : ` wbps=${write}`}`)
        continue
      }
      if (read !== undefined) writeFileSync(join(folder, 'blkio.throttle.read_bps_device'), `${disk} ${read}`)
      if (write !== undefined) writeFileSync(join(folder, 'blkio.throttle.write_bps_device'), `${disk} ${write}`)
    }
  }

  const oomKills = (id: string): number => keyed(join(folderIn(parentOf('memory'), id), v1Parents.has('memory') ? 'memory.oom_control' : 'memory.events'), 'oom_kill')
  const pidsMax = (id: string): number => keyed(join(folderIn(parentOf('pids'), id), 'pids.events'), 'max')

  const parentsFor = (limits: CellLimits): string[] => {
    const asked: Controller[] = [...(limits.cpus === undefined ? [] : ['cpu' as const]), ...(limits.io === undefined ? [] : ['io' as const])]
    return [...new Set([...parents, ...asked.map(parentOf)])]
  }

  const removeCell = async (id: string): Promise<void> => {
    const folders = allParents.map(parent => folderIn(parent, id))
    const end = Date.now() + REMOVE_MS
    for (let wait = 1; ; wait = Math.min(wait * 2, 50)) {
      const left = folders.filter(folder => !removeTree(folder))
      if (left.length === 0) break
      if (Date.now() > end) {
        const pids = left.flatMap(folder => words(join(folder, 'cgroup.procs')))
        throw new AmbitError('CELL_FAILED', { attempted: `remove the cgroup of cell ${id}`, why: pids.length > 0 ? `processes are still in it: ${pids.join(' ')}` : `the kernel still holds ${left.join(', ')}`, remedy: 'look at those processes: one that ended but is not gone waits for a device' })
      }
      await sleep(wait)
    }
    cells.delete(id)
  }

  return {
    place: { name, parentV2, v1: Object.fromEntries(v1Parents) },
    adopt(ids) {
      for (const id of ids) cells.add(id)
      const left = new Set(allParents.flatMap(parent => readdirOrNothing(parent)).filter(id => !cells.has(id)))
      for (const id of left) {
        killGroup(folderIn(parentV2, id), host.hasKill)
        void removeCell(id).catch(() => {})
      }
    },
    level: depth(v2Mount.root) + depth(parentV2.slice(v2Mount.folder.length)) + 1,
    parentV2,
    layout: [
      v1Parents.size === 0 ? `v2 at ${v2Mount.folder}: ${[...onV2, kill].join(', ')}` : `hybrid; v2 at ${v2Mount.folder}: ${[...onV2, kill].join(', ')}`,
      ...[...v1Parents].map(([controller, parent]) => `v1 ${V1_NAME[controller]} at ${parent.slice(0, -name.length - 1)}`),
    ].join('; '),
    createCell(id, limits) {
      const folders = (limits === null ? parents : parentsFor(limits)).map(parent => folderIn(parent, id))
      const done: string[] = []
      try {
        for (const folder of folders) {
          mkdirSync(folder)
          done.push(folder)
        }
        if (limits !== null) setLimits(id, limits)
      } catch (cause) {
        for (const folder of done.reverse()) rmdirSync(folder)
        throw new AmbitError('CELL_FAILED', { attempted: `make the cgroup of cell ${id}`, why: (cause as Error).message, remedy: '`ambit doctor` shows the hierarchies of this host', cause })
      }
      cells.add(id)
      const [v2, ...v1] = folders as [string, ...string[]]
      return { id: statSync(v2, { bigint: true }).ino, v2, v1 }
    },
    setLimits(id, limits) {
      try {
        setLimits(id, limits)
      } catch (cause) {
        throw new AmbitError('CELL_FAILED', { attempted: `limit the cgroup of cell ${id}`, why: (cause as Error).message, remedy: '`ambit doctor` shows the hierarchies of this host', cause })
      }
    },
    removeCell,
    killCell: id => killGroup(folderIn(parentV2, id), host.hasKill),
    processes: id => processesIn(folderIn(parentV2, id)),
    lacks(limit) {
      if (limit === 'cpus') return missing.get('cpu') ?? null
      if (limit === 'io write' && v1Parents.has('io')) return 'the blkio controller of cgroup v1 sees a write only where it is direct: what the kernel writes back later is nobody\'s'
      return missing.get('io') ?? null
    },
    limitsHit: id => oomKills(id) > 0 || pidsMax(id) > 0,
    events(id) {
      const memory = folderIn(parentOf('memory'), id)
      const most = Math.max(...['memory.max_usage_in_bytes', 'memory.memsw.max_usage_in_bytes'].map(file => Number(words(join(memory, file))[0] ?? 0)))
      const limit = Number(words(join(memory, 'memory.limit_in_bytes'))[0] ?? Infinity)
      const cpu = join(folderIn(parentOf('cpu'), id), 'cpu.stat')
      return {
        oomKills: oomKills(id),
        // v1's count of failures stays 0 on some kernels; what was refused last may be as large as a huge page.
        memoryAtLimit: v1Parents.has('memory') ? most + HUGE_PAGE >= limit : keyed(join(memory, 'memory.events'), 'max') > 0,
        pidsMax: pidsMax(id),
        heldBackMs: v1Parents.has('cpu') ? keyed(cpu, 'throttled_time') / 1e6 : keyed(cpu, 'throttled_usec') / 1e3,
      }
    },
    async close() {
      for (const id of cells) await removeCell(id)
      for (const parent of [...allParents].reverse()) removeTree(parent)
      if (allParents.every(parent => !existsSync(parent))) rmSync(join(host.records, `${name}.json`), { force: true })
    },
  }
}

function thisHost(): CgroupHost {
  return {
    mounts: readFileSync('/proc/self/mountinfo', 'utf8'),
    own: readFileSync('/proc/self/cgroup', 'utf8'),
    namespace: readlinkSync('/proc/self/ns/cgroup'),
    isDelegated(unit) {
      if (!existsSync('/run/systemd/system')) return false
      try {
        return execFileSync('systemctl', ['show', '--property=Delegate', '--value', '--', unit], { encoding: 'utf8', timeout: 5000 }).trim() === 'yes'
      } catch {
        return false
      }
    },
    records: '/run/ambit/cgroups',
    hasKill: kernelHasKill(),
  }
}

/** The root has no such file, and groups are not made to find out. */
function kernelHasKill(): boolean {
  const [major, minor] = release().split('.').map(Number) as [number, number]
  return major > 5 || (major === 5 && minor >= 14)
}

type CgroupMount = { folder: string; root: string; type: string; options: string[] }

/** proc_pid_mountinfo(5): ID PARENT DEV ROOT FOLDER OPTIONS [TAG…] - TYPE SOURCE SUPER-OPTIONS, with blanks as octal. */
function parseMounts(text: string): CgroupMount[] {
  return text.split('\n').flatMap(line => {
    const [before, after] = line.split(' - ')
    const [, , , root, folder] = (before ?? '').split(' ')
    const [type, , options] = (after ?? '').split(' ')
    if (root === undefined || folder === undefined || type === undefined || !type.startsWith('cgroup')) return []
    return [{ root: unescapeOctal(root), folder: unescapeOctal(folder), type, options: (options ?? '').split(',') }]
  })
}

function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(parseInt(digits, 8)))
}

/** The path in /proc/self/cgroup of the hierarchy with this controller, as v1 names it; of v2 for null. */
function ownPath(own: string, controller: string | null): string {
  for (const line of own.split('\n')) {
    const [, number, controllers, path] = /^(\d+):([^:]*):(.*)$/.exec(line) ?? []
    if (path === undefined) continue
    if (controller === null ? number === '0' && controllers === '' : controllers!.split(',').includes(controller)) return path
  }
  return '/'
}

/** Where a group's folder is, if the mount shows it; otherwise the mount's own. */
function folderOf(mount: CgroupMount, path: string): string {
  const below = mount.root === '/' ? path : path === mount.root || path.startsWith(`${mount.root}/`) ? path.slice(mount.root.length) : '/'
  const folder = join(mount.folder, below)
  return existsSync(folder) ? folder : mount.folder
}

/**
 * The group to make ours in. Processes and controllers for children exclude each other in every group but the root, so
 * it is the root, unless systemd left our unit's group to us: then this process steps aside, into a group of its own.
 */
function baseOfV2(mount: CgroupMount, host: CgroupHost): string {
  const path = ownPath(host.own, null)
  const unit = path.split('/').at(-1)!
  if (!/\.(service|scope)$/.test(unit) || !host.isDelegated(unit)) return mount.folder
  const folder = folderOf(mount, path)
  if (folder === mount.folder) return folder
  const others = words(join(folder, 'cgroup.procs')).filter(pid => pid !== String(process.pid))
  if (others.length > 0) return mount.folder
  const aside = join(folder, 'daemon')
  mkdirSync(aside, { recursive: true })
  writeFileSync(join(aside, 'cgroup.procs'), String(process.pid))
  return folder
}

function enable(folder: string, controllers: readonly Controller[]): void {
  const file = join(folder, 'cgroup.subtree_control')
  const missing = controllers.filter(controller => !words(file).includes(controller))
  if (missing.length > 0) writeFileSync(file, missing.map(controller => `+${controller}`).join(' '))
}

/**
 * Kills every process of a group and of those in it. Kernels before 5.14 have no cgroup.kill: there the group is frozen first,
 * so that nothing in it forks, and no number changes its owner, between being read and being killed (cgroup-v2.rst, cgroup.freeze).
 */
function killGroup(folder: string, hasKill: boolean): void {
  try {
    if (hasKill) {
      writeFileSync(join(folder, 'cgroup.kill'), '1')
      return
    }
    writeFileSync(join(folder, 'cgroup.freeze'), '1')
    for (let round = 0; round < FREEZE_ROUNDS; round++) {
      const frozen = keyed(join(folder, 'cgroup.events'), 'frozen') === 1
      for (const pid of processesIn(folder)) {
        try {
          process.kill(pid, 'SIGKILL')
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
        }
      }
      if (frozen) break
    }
  } catch (error) {
    if (!isGone(error)) throw error
  }
}

/** Each takes well under a millisecond; a process that the kernel cannot freeze for long waits for a device. */
const FREEZE_ROUNDS = 1000

function processesIn(folder: string): number[] {
  const own = words(join(folder, 'cgroup.procs')).map(Number)
  const folders = readdirOrNothing(folder)
  return [...own, ...folders.flatMap(name => processesIn(join(folder, name)))]
}

function readdirOrNothing(folder: string): string[] {
  try {
    return readdirSync(folder, { withFileTypes: true }).filter(entry => entry.isDirectory()).map(entry => entry.name)
  } catch (error) {
    if (isGone(error)) return []
    throw error
  }
}

/** Removes a group and those in it, if they are empty of processes. True when nothing is left. */
function removeTree(folder: string): boolean {
  try {
    for (const entry of readdirSync(folder, { withFileTypes: true })) if (entry.isDirectory()) removeTree(join(folder, entry.name))
    rmdirSync(folder)
    return true
  } catch (error) {
    if (isGone(error)) return true
    if ((error as NodeJS.ErrnoException).code === 'EBUSY' || (error as NodeJS.ErrnoException).code === 'ENOTEMPTY') return false
    throw error
  }
}

const recordSchema = z.object({
  pid: z.number().int().positive().describe('who made the groups'),
  start: z.string().describe('when that process began, in ticks since boot: with the pid, it names one process'),
  folders: z.array(z.object({ path: z.string().startsWith('/'), inode: z.string() })),
})

function record(records: string, name: string, folders: string[]): void {
  mkdirSync(join(records, '..'), { recursive: true, mode: 0o755 })
  mkdirSync(records, { recursive: true, mode: 0o700 })
  const entry: z.infer<typeof recordSchema> = {
    pid: process.pid, start: startOf(process.pid) ?? '', folders: folders.map(path => ({ path, inode: String(statSync(path, { bigint: true }).ino) })),
  }
  writeFileSync(join(records, `${name}.json`), JSON.stringify(entry), { mode: 0o600 })
}

/** Groups of processes that died without removing them: only what a record names, and only if it is still that very group. */
function removeStale(records: string, except?: string): void {
  if (!existsSync(records)) return
  for (const file of readdirSync(records).filter(name => /^ambit-\d+\.json$/.test(name))) {
    const entry = readRecord(join(records, file))
    if (entry === null || startOf(entry.pid) === entry.start || file === `${except}.json`) continue
    let left = false
    for (const { path, inode } of entry.folders) {
      const there = statSync(path, { bigint: true, throwIfNoEntry: false })
      if (there !== undefined && String(there.ino) === inode && !removeTree(path)) left = true
    }
    if (!left) rmSync(join(records, file), { force: true })
  }
}

function readRecord(file: string): z.infer<typeof recordSchema> | null {
  try {
    return recordSchema.parse(JSON.parse(readFileSync(file, 'utf8')))
  } catch {
    return null
  }
}

/** Field 22 of /proc/PID/stat; the command's name before it may hold blanks and brackets. */
function startOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? null
  } catch {
    return null
  }
}

function words(file: string): string[] {
  try {
    return readFileSync(file, 'utf8').split(/\s+/).filter(Boolean)
  } catch (error) {
    if (isGone(error)) return []
    throw error
  }
}

function keyed(file: string, key: string): number {
  const at = words(file)
  const index = at.indexOf(key)
  return index < 0 ? 0 : Number(at[index + 1])
}

function isGone(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException).code
  return code === 'ENOENT' || code === 'ENODEV'
}

function depth(path: string): number {
  return path.split('/').filter(Boolean).length
}

function lacks(why: string, remedy: string): AmbitError {
  return new AmbitError('KERNEL_LACKS', { attempted: 'set up the cgroups of cells', why, remedy })
}
