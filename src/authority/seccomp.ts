import { constants } from 'node:os'
import type { Refusal, SeccompPlan } from '../native.ts'
import { product, type CallRule, type Ways } from './arguments.ts'
import { NEVER, PRIVILEGED } from './syscall-profiles.ts'

type Rule = SeccompPlan['rules'][number]
type Condition = NonNullable<Rule['args']>[number]

const LOW_32 = 0xffff_ffffn
const eq = (index: number, value: number): Condition => ({ index, op: 'eq', value: BigInt(value) })
const masked = (index: number, mask: bigint, value: bigint): Condition => ({ index, op: 'masked-eq', value, mask })

/** CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (include/uapi/linux/sched.h). CLONE_NEWTIME is not for clone(2). */
const CLONE_NEW = 0x7e02_0000n

const AF_UNIX = 1
const AF_INET = 2
const AF_INET6 = 10
const AF_NETLINK = 16
const NETLINK_ROUTE = 0
const SOCK_TYPE = 0xfn
const SOCK_STREAM = 1n
const SOCK_DGRAM = 2n
const SOCK_RAW = 3n
/** By kind of socket: the default, TCP and MPTCP; the default, UDP, and the echo sockets of ping. Not DCCP, SCTP, UDP-Lite or SMC, which load modules. */
const PROTOCOLS: readonly (readonly [type: bigint, protocols: readonly number[]])[] = [[SOCK_STREAM, [0, 6, 262]], [SOCK_DGRAM, [0, 1, 17, 58]]]

/** Pushing input into the terminal that the caller reads (CVE-2017-5226, CVE-2023-28100), and line disciplines, which load modules. */
const TIOCSTI = 0x5412
const TIOCLINUX = 0x541c
const TIOCSETD = 0x5423
const REFUSED_IOCTLS = [TIOCSTI, TIOCLINUX, TIOCSETD]

/** Plain Linux, its 32-bit view, the same with UNAME26, and the question which one it is: as container engines have it. No READ_IMPLIES_EXEC, no ADDR_NO_RANDOMIZE. */
const PERSONALITIES = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff]

/** Calls that are allowed with some arguments only, and those arguments: one list of conditions for each way. */
export const LIMITED: ReadonlyMap<string, readonly (readonly Condition[])[]> = new Map([
  ['clone', [[masked(0, CLONE_NEW, 0n)]]],
  ['socket', [
    [eq(0, AF_UNIX)],
    [eq(0, AF_NETLINK), eq(2, NETLINK_ROUTE)],
    ...[AF_INET, AF_INET6].flatMap(family => PROTOCOLS.flatMap(([type, protocols]) => protocols.map(protocol => [eq(0, family), masked(1, SOCK_TYPE, type), eq(2, protocol)]))),
  ]],
  ['socketpair', [[eq(0, AF_UNIX)]]],
  // The kernel looks at the low half of the request only, so must the filter (CVE-2019-10063). The low 16 bits are type and
  // number; no request shares them with one of these, and half as many bits make half as many rules.
  ['ioctl', everyOther(REFUSED_IOCTLS, 16).map(({ mask, value }) => [masked(1, mask, value)])],
  ['personality', PERSONALITIES.map(value => [masked(0, LOW_32, BigInt(value))])],
])

/**
 * All numbers but the given ones, by their low bits, as masks and values. An allow list has no "not equal under a mask": it is spelt
 * out as, at each bit where the numbers' tree does not go on, the branch that leaves it.
 */
export function everyOther(numbers: readonly number[], bits: number): { mask: bigint; value: bigint }[] {
  const out: { mask: bigint; value: bigint }[] = []
  const walk = (bit: number, mask: bigint, value: bigint, left: readonly bigint[]): void => {
    if (left.length === 0) {
      out.push({ mask, value })
      return
    }
    if (bit < 0) return
    const here = 1n << BigInt(bit)
    walk(bit - 1, mask | here, value, left.filter(number => (number & here) === 0n))
    walk(bit - 1, mask | here, value | here, left.filter(number => (number & here) !== 0n))
  }
  walk(bits - 1, 0n, 0n, numbers.map(BigInt))
  return out
}

/**
 * What the limited calls say to other arguments, where programs know an answer: libaudit, for one, gives up on ENOSYS from
 * socket and takes the others for a kernel without auditing. What is not listed gets the default.
 */
function answers(): { name: string; errno: number; args: Condition[] }[] {
  const { EPERM, EAFNOSUPPORT, EPROTONOSUPPORT, EOPNOTSUPP } = constants.errno
  const families = Array.from({ length: AF_NETLINK }, (_, family) => family).filter(family => ![AF_UNIX, AF_INET, AF_INET6].includes(family))
  const bits = Array.from({ length: 32 }, (_, bit) => 1n << BigInt(bit)).filter(bit => (CLONE_NEW & bit) !== 0n)
  return [
    ...bits.map(bit => ({ name: 'clone', errno: EPERM, args: [masked(0, bit, bit)] })),
    ...families.map(family => ({ name: 'socket', errno: EAFNOSUPPORT, args: [eq(0, family)] })),
    { name: 'socket', errno: EAFNOSUPPORT, args: [{ index: 0, op: 'gt', value: BigInt(AF_NETLINK) }] },
    { name: 'socket', errno: EPROTONOSUPPORT, args: [eq(0, AF_NETLINK), { index: 2, op: 'ne', value: BigInt(NETLINK_ROUTE) }] },
    ...[AF_INET, AF_INET6].map(family => ({ name: 'socket', errno: EPERM, args: [eq(0, family), masked(1, SOCK_TYPE, SOCK_RAW)] })),
    { name: 'socketpair', errno: EOPNOTSUPP, args: [{ index: 0, op: 'ne', value: BigInt(AF_UNIX) }] },
    ...REFUSED_IOCTLS.map(request => ({ name: 'ioctl', errno: EPERM, args: [masked(1, 0xffffn, BigInt(request))] })),
  ]
}

/** S_ISUID and S_ISGID of inode(7), each by itself: a mode may hold either. */
const SET_ID_BITS = [0o4000n, 0o2000n]
/** O_CREAT, and the bit of O_TMPFILE that O_DIRECTORY does not share (include/uapi/asm-generic/fcntl.h). */
const CREATING = [0o100n, 0o20_000_000n]
/** Calls that give a file its mode: the argument that holds it and, where the mode counts only sometimes, the one that holds the flags. */
const MODES: readonly { name: string; mode: number; flags?: number }[] = [
  { name: 'chmod', mode: 1 }, { name: 'fchmod', mode: 1 }, { name: 'fchmodat', mode: 2 }, { name: 'fchmodat2', mode: 2 },
  { name: 'creat', mode: 1 }, { name: 'mknod', mode: 1 }, { name: 'mknodat', mode: 2 },
  { name: 'open', mode: 2, flags: 1 }, { name: 'openat', mode: 3, flags: 2 },
]

/**
 * What a job leaves in the workspace belongs to whoever called ambit, root perhaps, and the mount's nosuid ends with the cell:
 * no file may get a set-id bit. A call that only opens has no mode, and what lies in its place does not count.
 */
function setIdRefusals(): { name: string; errno: number; args: Condition[] }[] {
  return MODES.flatMap(({ name, mode, flags }) => SET_ID_BITS.flatMap(bit => {
    const wanted = masked(mode, bit, bit)
    const ways = flags === undefined ? [[wanted]] : CREATING.map(creating => [masked(flags, creating, creating), wanted])
    return ways.map(args => ({ name, errno: constants.errno.EPERM, args }))
  }))
}

/** S_IFMT, S_IFCHR, S_IFBLK of inode(7). */
const FILE_TYPE = 0o170_000n
const DEVICES = [0o020_000n, 0o060_000n]

/**
 * The kernel makes no device nodes for a user namespace; that the filter says so first is what the evidence tells. Number 0 is no
 * device, but how overlays mark a removed file.
 */
function deviceRefusals(): { name: string; errno: number; args: Condition[] }[] {
  return [{ name: 'mknod', mode: 1 }, { name: 'mknodat', mode: 2 }].flatMap(({ name, mode }) => DEVICES.map(type =>
    ({ name, errno: constants.errno.EPERM, args: [masked(mode, FILE_TYPE, type), { index: mode + 1, op: 'ne' as const, value: 0n }] })))
}

/** A memfd is a program without a path, which no list of programs could name: it must be sealed against execution (MFD_NOEXEC_SEAL, Linux 6.3). */
const EXECUTABLE_MEMFD = { name: 'memfd_create', errno: constants.errno.EACCES, args: [masked(1, 8n, 0n)] }

/** Calls of which some arguments are refused to every cell, and memfd_create, of which some are to cells with a list of programs. */
export const WITH_LIMITS: ReadonlySet<string> = new Set([...LIMITED.keys(), ...MODES.map(({ name }) => name), EXECUTABLE_MEMFD.name])

/** Arguments that no contract can grant, of a call that it can. */
export function neverWith(name: string, programsListed: boolean): Ways {
  return [...setIdRefusals(), ...deviceRefusals(), ...(programsListed ? [EXECUTABLE_MEMFD] : [])].filter(one => one.name === name).map(({ args }) => args)
}

/** Calls that give a process its user, and how many ids each takes. */
const USERS = [['setuid', 1], ['setreuid', 2], ['setresuid', 3]] as const

/** Whoever has the user of a cell's process 1 may re-prioritise it, and with CAP_SETUID a job could be anybody of the cell. */
function userRefusals(user: number): { name: string; errno: number; args: Condition[] }[] {
  return USERS.flatMap(([name, ids]) => Array.from({ length: ids }, (_, index) => ({ name, errno: constants.errno.EPERM, args: [masked(index, LOW_32, BigInt(user))] })))
}

/** What a cell may call, whatever way a contract says it. */
export type Calls = {
  calls: ReadonlyMap<string, CallRule>
  /** How calls are refused that a profile of another's making refuses in a way of its own. */
  refusals: readonly { name: string; ways: Ways; action: Refusal }[]
  /** For calls that nobody speaks of; null: as a kernel without them, or without the right, would. */
  fallback: Refusal | null
}

/**
 * `programsListed`: the contract lists what may be executed. `setIdHarmless`: nothing that the job writes is ever a file of the
 * host. `keptUser`: an id of the cell that the job could become, and must not.
 */
export type About = { programsListed: boolean; setIdHarmless?: boolean; keptUser?: number }

/**
 * The filter for a set of allowed calls. What it does not allow gets ENOSYS, as a kernel without the call would say: C
 * libraries then fall back to an older call (clone3, openat2, faccessat2). Only what every kernel has and programs know as
 * privileged gets EPERM, so that their messages are the right ones. What no contract can grant is refused before all else.
 */
export function filterPlan({ calls, refusals, fallback }: Calls, { programsListed, setIdHarmless = false, keptUser }: About): SeccompPlan {
  const { ENOSYS, EPERM } = constants.errno
  const rules: Rule[] = []
  const refuse = (name: string, args: readonly Condition[], action: Refusal): void => {
    rules.push({ names: [name], action, ...(args.length === 0 ? {} : { args: [...args] }) })
  }
  for (const { name, errno, args } of [...answers(), ...(setIdHarmless ? [] : setIdRefusals()), ...deviceRefusals(), ...(programsListed ? [EXECUTABLE_MEMFD] : []), ...(keptUser === undefined ? [] : userRefusals(keptUser))]) if (calls.has(name)) refuse(name, args, { errno })
  const own = refusals.filter(({ name }) => !NEVER.has(name))
  const told = new Set<readonly Condition[]>()
  for (const { name, ways, action } of own) {
    for (const way of ways) {
      told.add(way)
      if (way.length > 0 && calls.has(name)) refuse(name, way, action)
    }
  }
  for (const [name, rule] of calls) for (const way of rule.refuse) if (!told.has(way)) refuse(name, way, { errno: EPERM })

  const free: string[] = []
  for (const [name, { allow }] of calls) {
    const ways = product([allow, LIMITED.get(name) ?? [[]]])
    if (ways.some(way => way.length === 0)) free.push(name)
    else rules.push(...ways.map((args): Rule => ({ names: [name], action: 'allow', args: [...args] })))
  }
  const plain = new Map(own.filter(({ name, ways }) => !free.includes(name) && ways.some(way => way.length === 0)).map(({ name, action }) => [name, action]))
  for (const [name, action] of plain) refuse(name, [], action)
  const privileged = fallback === null ? PRIVILEGED.filter(name => !calls.has(name) && !plain.has(name)) : []
  const ending = typeof fallback === 'string' ? { defaultAction: fallback } : {}
  return {
    defaultErrno: typeof fallback === 'object' && fallback !== null ? fallback.errno : ENOSYS, ...ending,
    rules: [{ names: free, action: 'allow' }, ...rules, { names: [...NEVER.keys()], action: { errno: ENOSYS } }, { names: privileged, action: { errno: EPERM } }],
  }
}
