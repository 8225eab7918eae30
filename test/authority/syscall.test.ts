import { constants } from 'node:os'
import fc from 'fast-check'
import t from 'tap'
import { ANY, beyond, holds, negated, passes, type Condition } from '../../src/authority/arguments.ts'
import { everyOther, filterPlan } from '../../src/authority/seccomp.ts'
import { FAMILIES, NAMES, NEVER, PRIVILEGED, PROFILES } from '../../src/authority/syscall-profiles.ts'
import { seccompPlan, syscall } from '../../src/authority/syscall.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { coverage, refusedCall, started, syscalls } from './evidence.ts'

const used = (events: EvidenceBody[]) => {
  const all = syscall.nothingUsed()
  for (const event of events) syscall.observe(event, all)
  return all
}
const rows = (declared: unknown, events: EvidenceBody[], seen = coverage()) => syscall.compare(syscall.schema.parse(declared), used(events), seen)
const short = (...args: Parameters<typeof rows>) => rows(...args).map(row => `${row.grant}: ${row.outcome}`)
const planOf = (declared: unknown, programsListed = false) => seccompPlan(syscall.schema.parse(declared), { programsListed })
const narrow = (declared: unknown, events: EvidenceBody[]) => syscall.narrow(syscall.schema.parse(declared), used(events), coverage())

/** What libseccomp makes of a plan: the rule that fits decides, a rule of refusal and one of permission never both fit. */
function verdictOf(name: string, args: bigint[], plan = planOf({ profile: 'build' })): string | number {
  const u64 = (value: bigint): bigint => BigInt.asUintN(64, value)
  const fitting = plan.rules.filter(rule => rule.names.includes(name) && (rule.args ?? []).every(({ index, op, value, mask }) => {
    const given = u64(args[index] ?? 0n)
    if (op === 'masked-eq') return (given & mask!) === value
    if (op === 'eq') return given === value
    if (op === 'ne') return given !== value
    if (op === 'gt') return given > value
    throw new Error(`the plan uses ${op}, which this test does not know`)
  }))
  const actions = new Set(fitting.map(rule => (typeof rule.action === 'string' ? rule.action : rule.action.errno)))
  if (actions.size > 1) throw new Error(`${name}(${args.join(', ')}) is both ${[...actions].join(' and ')}`)
  return [...actions][0] ?? plan.defaultErrno
}
const { ENOSYS, EPERM, EAFNOSUPPORT, EPROTONOSUPPORT } = constants.errno

t.test('the profiles hold what jobs need and nothing that endangers the kernel', async t => {
  for (const name of PROFILES.strict) t.ok(PROFILES.build.has(name), `${name} is in build too`)
  for (const name of ['ptrace', 'process_vm_readv', 'pidfd_getfd', 'kcmp', 'bpf', 'perf_event_open', 'userfaultfd', 'keyctl', 'add_key', 'request_key', 'mount', 'umount2', 'pivot_root', 'fsopen', 'move_mount', 'mount_setattr', 'unshare', 'setns', 'io_uring_setup', 'init_module', 'kexec_load', 'reboot', 'swapon', 'clock_settime', 'open_by_handle_at', 'clone3', 'syslog', 'quotactl', 'fanotify_init']) {
    t.not(verdictOf(name, []), 'allow', name)
  }
  t.notOk(PROFILES.strict.has('memfd_create') || PROFILES.strict.has('connect') || PROFILES.strict.has('unlink') || PROFILES.strict.has('mkdir'))
  t.ok(FAMILIES.flat().every(name => NAMES.has(name)), 'families hold known calls')
  t.notOk(PRIVILEGED.some(name => PROFILES.build.has(name)))
})

t.test('what is refused says what programs expect to hear', async t => {
  t.equal(verdictOf('clone3', []), ENOSYS, 'C libraries fall back to clone')
  t.equal(verdictOf('io_uring_setup', []), ENOSYS)
  t.equal(verdictOf('unshare', []), EPERM)
  t.equal(verdictOf('read', []), 'allow')
  t.equal(verdictOf('connect', [], planOf({ profile: 'strict', allow: [] })), ENOSYS)
  t.equal(verdictOf('ptrace', [], planOf({ profile: 'strict', allow: ['ptrace'] })), 'allow', 'granted by name')
})

t.test('clone makes no namespaces', async t => {
  t.equal(verdictOf('clone', [0x1200011n]), 'allow', 'fork')
  t.equal(verdictOf('clone', [0x3d0f00n]), 'allow', 'a thread')
  for (const flag of [0x20000n, 0x2000000n, 0x4000000n, 0x8000000n, 0x10000000n, 0x20000000n, 0x40000000n]) {
    t.equal(verdictOf('clone', [flag | 17n]), EPERM)
    t.equal(verdictOf('clone', [flag | 17n | (1n << 40n)]), EPERM, 'whatever the upper half holds')
  }
})

t.test('sockets are of four families, and of protocols that load nothing', async t => {
  const UNIX = 1n, INET = 2n, INET6 = 10n, NETLINK = 16n, STREAM = 1n, DGRAM = 2n, RAW = 3n, SEQPACKET = 5n
  for (const args of [[UNIX, STREAM, 0n], [UNIX, SEQPACKET, 0n], [INET, STREAM | 0o2000000n, 0n], [INET, STREAM, 6n], [INET, STREAM, 262n], [INET6, DGRAM | 0o4000n, 17n], [INET, DGRAM, 1n], [NETLINK, RAW, 0n]]) {
    t.equal(verdictOf('socket', args), 'allow', String(args))
  }
  for (const family of [0n, 3n, 9n, 17n, 31n, 38n, 40n, 44n, 1n << 32n, (1n << 32n) | 2n]) t.equal(verdictOf('socket', [family, STREAM, 0n]), EAFNOSUPPORT, `family ${family}`)
  t.equal(verdictOf('socket', [NETLINK, RAW, 9n]), EPROTONOSUPPORT, 'audit: useradd and its like go on without')
  t.equal(verdictOf('socket', [INET, RAW, 1n]), EPERM)
  for (const [type, protocol] of [[STREAM, 132n], [SEQPACKET, 0n], [6n, 33n], [DGRAM, 136n]] as const) t.not(verdictOf('socket', [INET, type, protocol]), 'allow', `type ${type} protocol ${protocol}`)
  t.equal(verdictOf('socketpair', [UNIX, STREAM, 0n]), 'allow')
  t.not(verdictOf('socketpair', [30n, STREAM, 0n]), 'allow', 'TIPC')
  t.not(verdictOf('socket', [40n, STREAM, 0n], planOf({ profile: 'strict', allow: ['socket'] })), 'allow', 'granting the call by name keeps its limits')
})

t.test('a terminal takes no input from the job', async t => {
  for (const request of [0x5412n, 0x541cn, 0x5423n]) {
    t.equal(verdictOf('ioctl', [0n, request]), EPERM)
    t.doesNotThrow(() => fc.assert(fc.property(fc.bigInt(0n, (1n << 32n) - 1n), upper => verdictOf('ioctl', [0n, (upper << 32n) | request]) === EPERM)), 'whatever the upper half holds')
  }
  for (const request of [0x5401n, 0x5402n, 0x5410n, 0x5413n, 0x541bn, 0x5421n, 0x5422n, 0x5424n, 0x5451n, 0x80045430n, 0xc0045877n, 0x8912n]) t.equal(verdictOf('ioctl', [0n, request]), 'allow', request.toString(16))
  const refused = new Set([0x5412, 0x541c, 0x5423])
  t.doesNotThrow(() => fc.assert(fc.property(fc.integer({ min: 0, max: 0xffff }), low => (verdictOf('ioctl', [0n, BigInt(low)]) === 'allow') === !refused.has(low)), { numRuns: 2000 }))
})

t.test('every other number is exactly every other number', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(fc.uniqueArray(fc.nat(255), { minLength: 1, maxLength: 6 }), numbers => {
    const cover = everyOther(numbers, 8)
    for (let value = 0n; value < 256n; value++) {
      const hits = cover.filter(({ mask, value: wanted }) => (value & mask) === wanted).length
      if (hits !== (numbers.includes(Number(value)) ? 0 : 1)) return false
    }
    return true
  })))
})

t.test('no plan both allows and refuses one call', async t => {
  t.doesNotThrow(() => fc.assert(fc.property(fc.subarray([...NAMES]), fc.array(fc.bigInt(0n, (1n << 64n) - 1n), { minLength: 3, maxLength: 3 }), (names, args) => {
    const plan = filterPlan({ calls: new Map(names.map(name => [name, { allow: ANY, refuse: [] }])), refusals: [], fallback: null }, { programsListed: true })
    for (const name of ['clone', 'socket', 'socketpair', 'ioctl', 'personality', 'mount']) verdictOf(name, args, plan)
  })))
})

t.test('used calls have a row each; unused ones are those that narrowing takes away', async t => {
  const events = [syscalls({ read: { succeeded: 3 }, mkdir: { failed: 1 }, exit_group: { unfinished: 2 } })]
  t.same(short({ profile: 'strict', allow: ['mkdir', 'connect'] }, events), ['read: used', 'exit_group: used', 'mkdir: used', 'connect: unused'])
  t.same(narrow({ profile: 'build' }, events), { profile: 'strict', allow: ['mkdir', 'mkdirat'], deny: [] }, 'with the family, as far as it was declared')
  t.same(narrow({ profile: 'strict', allow: ['mkdir'] }, events), { profile: 'strict', allow: ['mkdir'], deny: [] })
  t.notOk(short({ profile: 'build' }, events).some(row => row.startsWith('futex:')), 'what every program may need is no over-authority')
})

t.test('what the filter stopped is denied', async t => {
  t.match(rows({ profile: 'build' }, [refusedCall('unshare'), syscalls({ unshare: { refused: 2 } })])[0], { grant: 'unshare', outcome: 'denied', declared: false, count: 2, proof: /EPERM for job/ })
  t.match(rows({ profile: 'build' }, [refusedCall('unshare')]).filter(row => row.outcome === 'denied'), [{ grant: 'unshare', count: 1 }], 'the event alone, of a log without the set')
  t.same(short({ profile: 'strict', allow: ['socket'] }, [syscalls({ socket: { succeeded: 1, refused: 1 } })]), ['socket: used', 'socket (with arguments outside its limits): denied'])
  t.same(short(undefined, [syscalls({ mount: { succeeded: 1 } })]), ['mount: undeclared'])
  t.same(short({ profile: 'strict', allow: ['mount'] }, [syscalls({ mount: { succeeded: 1, arch: 'i386' } })]), ['mount (i386): undeclared', 'mount: unused'], 'another way into the kernel is another call')
})

t.test('without the set, silence means nothing', async t => {
  t.same(short({ profile: 'strict', allow: ['mount'] }, []), ['1 other call: unobservable'])
  t.same(narrow({ profile: 'build' }, []), { profile: 'build', allow: [], deny: [] })
})

t.test('names that no filter knows, and calls that none can hold, are refused', async t => {
  t.match(syscall.schema.safeParse({ allow: ['opnat'] }).error?.issues[0]?.message, /did you mean openat\?/)
  for (const name of NEVER.keys()) t.match(syscall.schema.safeParse({ allow: [name] }).error?.issues[0]?.message, /can be granted by no contract/)
  t.notOk(syscall.schema.safeParse({ profile: 'all' }).success)
})

const TESTED = fc.constantFrom(0n, 1n, 2n, 3n, 16n, 0x12n, 0xffff_ffffn, 1n << 32n, (1n << 32n) | 2n, (1n << 64n) - 1n)
const condition: fc.Arbitrary<Condition> = fc.record({ index: fc.constantFrom(0, 0, 1), op: fc.constantFrom('eq', 'ne', 'lt', 'le', 'gt', 'ge', 'masked-eq' as const), value: TESTED, mask: TESTED })
  .map(({ mask, ...rest }) => (rest.op === 'masked-eq' ? { ...rest, mask, value: rest.value & mask } : rest))
const ways = fc.array(fc.array(condition, { minLength: 1, maxLength: 2 }), { maxLength: 3 })
const arbitraryRule = fc.record({ allow: fc.oneof(ways, fc.constant(ANY)), refuse: ways })
const words = fc.array(fc.oneof(TESTED, fc.bigInt(0n, (1n << 64n) - 1n)), { minLength: 6, maxLength: 6 })

t.test('what one rule lets through beyond another is found, with an example', async t => {
  let [within, found] = [0, 0]
  t.doesNotThrow(() => fc.assert(fc.property(arbitraryRule, arbitraryRule, fc.array(words, { minLength: 20, maxLength: 20 }), (inner, outer, samples) => {
    const seen = beyond(inner, outer)
    if (seen === 'unknown') return true
    if (seen !== null) {
      found++
      return passes(inner, seen) && !passes(outer, seen)
    }
    within++
    // The edges of the conditions are where a comparison goes wrong.
    const edges = [...inner.allow, ...inner.refuse, ...outer.allow, ...outer.refuse].flat().flatMap(({ value }) => [value, value + 1n, value - 1n].map(at => BigInt.asUintN(64, at)))
    const pairs = edges.flatMap(a => edges.map(b => [a, b, 0n, 0n, 0n, 0n]))
    return [...samples, ...pairs].every(args => !passes(inner, args) || passes(outer, args))
  }), { numRuns: 600 }))
  t.ok(within > 50 && found > 50, `${within} within, ${found} beyond`)
  t.equal(beyond({ allow: ANY, refuse: [] }, { allow: [[{ index: 0, op: 'masked-eq', mask: 1n, value: 0n }], [{ index: 0, op: 'masked-eq', mask: 1n, value: 1n }]], refuse: [] }), null, 'two halves are the whole')
  t.doesNotThrow(() => fc.assert(fc.property(condition, words, (one, args) => negated(one).filter(other => holds(other, args)).length === (holds(one, args) ? 0 : 1))), 'the negation of a condition is exactly that')
})

t.test('calls can be added and taken away by their arguments', async t => {
  const plan = planOf({ profile: 'strict', allow: ['connect', { name: 'socket', args: [{ index: 0, op: 'eq', value: 'AF_UNIX' }] }], deny: ['fork', { name: 'mprotect', args: [{ index: 2, op: 'masked-eq', mask: 'PROT_EXEC', value: 'PROT_EXEC' }] }] })
  t.equal(verdictOf('socket', [1n, 1n, 0n], plan), 'allow')
  t.not(verdictOf('socket', [2n, 1n, 0n], plan), 'allow')
  t.not(verdictOf('socket', [(1n << 32n) | 1n, 1n, 0n], plan), 'allow', 'the upper half is no way around')
  t.not(verdictOf('fork', [], plan), 'allow')
  t.equal(verdictOf('fork', [], planOf({ profile: 'strict' })), 'allow', 'which the profile has')
  t.equal(first(plan, 'mprotect', [0n, 0n, 5n]), EPERM)
  t.equal(first(plan, 'mprotect', [0n, 0n, 3n]), 'allow')
  const noNetlink = planOf({ deny: [{ name: 'socket', args: [{ index: 0, op: 'eq', value: 'AF_NETLINK' }] }] })
  t.equal(first(noNetlink, 'socket', [16n, 3n, 0n]), EPERM)
  t.equal(first(planOf({}), 'socket', [16n, 3n, 0n]), 'allow')
  t.equal(first(noNetlink, 'socket', [2n, 1n, 0n]), 'allow')
  const notFive = planOf({ profile: 'strict', allow: [{ name: 'setpriority', args: [{ index: 0, op: 'ne', value: 5 }] }] })
  t.not(first(notFive, 'setpriority', [(1n << 32n) | 5n]), 'allow', 'not this one, whatever its upper half')
  t.equal(first(notFive, 'setpriority', [4n]), 'allow')
  t.not(first(planOf({ deny: [{ name: 'setpriority', args: [{ index: 0, op: 'eq', value: 5 }] }] }), 'setpriority', [(1n << 32n) | 5n]), 'allow')

  const fault = (value: unknown): string | undefined => syscall.schema.safeParse(value).error?.issues[0]?.message
  t.match(fault({ allow: [{ name: 'socket', args: [{ index: 0, op: 'eq', value: 1 }] }] }), /the profile allows socket with any arguments already/)
  t.match(fault({ profile: 'strict', allow: [{ name: 'socket', args: [{ index: 0, op: 'gt', value: 1 }] }] }), /gt does not hold here: .*low half/)
  t.match(fault({ deny: [{ name: 'socket', args: [{ index: 0, op: 'lt', value: 1 }] }] }), /lt does not hold here/)
  t.match(fault({ deny: [{ name: 'sockt', args: [{ index: 0, op: 'eq', value: 1 }] }] }), /did you mean socket/)
  t.match(fault({ deny: [{ name: 'socket', args: [{ index: 0, op: 'eq', value: 'AF_VSOK' }] }] }), /must be a whole number.*AF_NETLINK/)
  t.match(fault({ deny: [{ name: 'socket', args: [{ index: 0, op: 'eq', value: 2 ** 60 }] }] }), /not kept exactly/)
  t.match(fault({ deny: [{ name: 'socket', args: [] }] }), /needs a condition/)
  t.match(fault({ deny: [{ name: 'socket', args: [{ index: 0, op: 'eq', value: 1 }, { index: 0, op: 'eq', value: 2 }] }] }), /two conditions/)
  t.match(fault({ deny: [{ name: 'socket', args: [{ index: 0, op: 'eq', value: 1 }], ars: [] }] }), /"ars" is not known/)
  t.match(fault({ deny: ['execve'] }), /without execve/)
})

/** The rule that decides: the first refusal with arguments, then permissions, then refusals by name (native/addon/system.cpp). */
function first(plan: ReturnType<typeof planOf>, name: string, args: bigint[]): string | number {
  const six = [...args, 0n, 0n, 0n, 0n, 0n, 0n].slice(0, 6)
  const fitting = plan.rules.filter(rule => rule.names.includes(name) && (rule.args ?? []).every(one => holds(one, six)))
  const rule = fitting.find(({ action, args: given }) => action !== 'allow' && given !== undefined) ?? fitting.find(({ action }) => action === 'allow') ?? fitting[0]
  return rule === undefined ? plan.defaultAction ?? plan.defaultErrno : typeof rule.action === 'string' ? rule.action : rule.action.errno
}

t.test('evidence counts calls and not their arguments: what depends on them is told of only where the cell\'s own filter can', async t => {
  const rule = { name: 'socket', args: [{ index: 0, op: 'eq', value: 1 }] }
  const declared = { profile: 'strict', allow: [rule, 'connect'] }
  const called = syscalls({ socket: { succeeded: 2 } })
  t.same(short(declared, [called]), ['socket: unobservable', 'connect: unused'])
  const under = (authority: unknown) => started({ spec: { authority: { syscall: authority } } })
  t.same(short(declared, [under(declared), called]), ['socket: used', 'connect: unused'])
  t.same(short(declared, [under({ profile: 'build' }), called]), ['socket: unobservable', 'connect: unused'])
  t.same(narrow(declared, [called]), { profile: 'strict', allow: [rule], deny: [] })
  t.same(narrow(declared, []), declared.allow.length === 2 ? { ...declared, deny: [] } : null)
  t.same(narrow(declared, [syscalls({ read: { succeeded: 1 } })]), { profile: 'strict', allow: [], deny: [] })
  t.match(short(declared, [under(declared), syscalls({ socket: { succeeded: 1, refused: 1 } })]), ['socket: used', 'socket (with arguments outside its limits): denied'])
})

t.test('the old name of strict is read, and absent means strict, not the default of what is written', async t => {
  t.equal(syscall.schema.parse({ profile: 'minimal' }).profile, 'strict')
  t.equal(syscall.schema.parse(undefined).profile, 'strict')
  t.equal(syscall.schema.parse({}).profile, 'build')
  t.match(syscall.schema.safeParse({ profile: 'oci:x.json' }).error?.issues[0]?.message, /"x\.json" was not handed over/)
})

t.test('a server gets sockets, and neither other processes nor the kernel\'s insides', async t => {
  const plan = planOf({ profile: 'network-service' })
  for (const name of ['accept4', 'epoll_wait', 'listen', 'rt_sigaction', 'sendfile', 'setgroups', 'fork']) t.equal(verdictOf(name, [0n], plan), 'allow', name)
  t.equal(verdictOf('socket', [2n, 1n, 0n], plan), 'allow')
  for (const name of ['ptrace', 'process_vm_readv', 'memfd_create', 'mknod', 'symlink', 'personality', 'execveat', 'mount', 'io_uring_setup', 'shmget', 'setxattr']) t.not(verdictOf(name, [], plan), 'allow', name)
})
