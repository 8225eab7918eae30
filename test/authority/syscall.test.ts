import { constants } from 'node:os'
import fc from 'fast-check'
import t from 'tap'
import { everyOther, filterPlan } from '../../src/authority/seccomp.ts'
import { FAMILIES, NAMES, NEVER, PRIVILEGED, PROFILES } from '../../src/authority/syscall-profiles.ts'
import { seccompPlan, syscall } from '../../src/authority/syscall.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { coverage, refusedCall, syscalls } from './evidence.ts'

const used = (events: EvidenceBody[]) => {
  const all = syscall.nothingUsed()
  for (const event of events) syscall.observe(event, all)
  return all
}
const rows = (declared: unknown, events: EvidenceBody[], seen = coverage()) => syscall.compare(syscall.schema.parse(declared), used(events), seen)
const short = (...args: Parameters<typeof rows>) => rows(...args).map(row => `${row.grant}: ${row.outcome}`)
const narrow = (declared: unknown, events: EvidenceBody[]) => syscall.narrow(syscall.schema.parse(declared), used(events), coverage())

/** What libseccomp makes of a plan: the rule that fits decides, a rule of refusal and one of permission never both fit. */
function verdictOf(name: string, args: bigint[], plan = seccompPlan({ profile: 'build', allow: [] }, { programsListed: false })): 'allow' | number {
  const u64 = (value: bigint): bigint => BigInt.asUintN(64, value)
  const fitting = plan.rules.filter(rule => rule.names.includes(name) && (rule.args ?? []).every(({ index, op, value, mask }) => {
    const given = u64(args[index] ?? 0n)
    if (op === 'masked-eq') return (given & mask!) === value
    if (op === 'eq') return given === value
    if (op === 'ne') return given !== value
    if (op === 'gt') return given > value
    throw new Error(`the plan uses ${op}, which this test does not know`)
  }))
  const actions = new Set(fitting.map(rule => (rule.action === 'allow' ? 'allow' : rule.action.errno)))
  if (actions.size > 1) throw new Error(`${name}(${args.join(', ')}) is both ${[...actions].join(' and ')}`)
  return [...actions][0] ?? plan.defaultErrno
}
const { ENOSYS, EPERM, EAFNOSUPPORT, EPROTONOSUPPORT } = constants.errno

t.test('the profiles hold what jobs need and nothing that endangers the kernel', async t => {
  for (const name of PROFILES.minimal) t.ok(PROFILES.build.has(name), `${name} is in build too`)
  for (const name of ['ptrace', 'process_vm_readv', 'pidfd_getfd', 'kcmp', 'bpf', 'perf_event_open', 'userfaultfd', 'keyctl', 'add_key', 'request_key', 'mount', 'umount2', 'pivot_root', 'fsopen', 'move_mount', 'mount_setattr', 'unshare', 'setns', 'io_uring_setup', 'init_module', 'kexec_load', 'reboot', 'swapon', 'clock_settime', 'open_by_handle_at', 'clone3', 'syslog', 'quotactl', 'fanotify_init']) {
    t.not(verdictOf(name, []), 'allow', name)
  }
  t.notOk(PROFILES.minimal.has('memfd_create') || PROFILES.minimal.has('connect') || PROFILES.minimal.has('unlink') || PROFILES.minimal.has('mkdir'))
  t.ok(FAMILIES.flat().every(name => NAMES.has(name)), 'families hold known calls')
  t.notOk(PRIVILEGED.some(name => PROFILES.build.has(name)))
})

t.test('what is refused says what programs expect to hear', async t => {
  t.equal(verdictOf('clone3', []), ENOSYS, 'C libraries fall back to clone')
  t.equal(verdictOf('io_uring_setup', []), ENOSYS)
  t.equal(verdictOf('unshare', []), EPERM)
  t.equal(verdictOf('read', []), 'allow')
  t.equal(verdictOf('connect', [], seccompPlan({ profile: 'minimal', allow: [] }, { programsListed: false })), ENOSYS)
  t.equal(verdictOf('ptrace', [], seccompPlan({ profile: 'minimal', allow: ['ptrace'] }, { programsListed: false })), 'allow', 'granted by name')
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
  t.not(verdictOf('socket', [40n, STREAM, 0n], seccompPlan({ profile: 'minimal', allow: ['socket'] }, { programsListed: false })), 'allow', 'granting the call by name keeps its limits')
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
    const plan = filterPlan(new Set(names), { programsListed: true })
    for (const name of ['clone', 'socket', 'socketpair', 'ioctl', 'personality', 'mount']) verdictOf(name, args, plan)
  })))
})

t.test('used calls have a row each; unused ones are those that narrowing takes away', async t => {
  const events = [syscalls({ read: { succeeded: 3 }, mkdir: { failed: 1 }, exit_group: { unfinished: 2 } })]
  t.same(short({ profile: 'minimal', allow: ['mkdir', 'connect'] }, events), ['read: used', 'exit_group: used', 'mkdir: used', 'connect: unused'])
  t.same(narrow({ profile: 'build' }, events), { profile: 'minimal', allow: ['mkdir', 'mkdirat'] }, 'with the family, as far as it was declared')
  t.same(narrow({ profile: 'minimal', allow: ['mkdir'] }, events), { profile: 'minimal', allow: ['mkdir'] })
  t.notOk(short({ profile: 'build' }, events).some(row => row.startsWith('futex:')), 'what every program may need is no over-authority')
})

t.test('what the filter stopped is denied', async t => {
  t.match(rows({ profile: 'build' }, [refusedCall('unshare'), syscalls({ unshare: { refused: 2 } })])[0], { grant: 'unshare', outcome: 'denied', declared: false, count: 2, proof: /EPERM for job/ })
  t.match(rows({ profile: 'build' }, [refusedCall('unshare')]).filter(row => row.outcome === 'denied'), [{ grant: 'unshare', count: 1 }], 'the event alone, of a log without the set')
  t.same(short({ profile: 'minimal', allow: ['socket'] }, [syscalls({ socket: { succeeded: 1, refused: 1 } })]), ['socket: used', 'socket (with arguments outside its limits): denied'])
  t.same(short({}, [syscalls({ mount: { succeeded: 1 } })]), ['mount: undeclared'])
  t.same(short({ profile: 'minimal', allow: ['mount'] }, [syscalls({ mount: { succeeded: 1, arch: 'i386' } })]), ['mount (i386): undeclared', 'mount: unused'], 'another way into the kernel is another call')
})

t.test('without the set, silence means nothing', async t => {
  t.same(short({ profile: 'minimal', allow: ['mount'] }, []), ['1 other call: unobservable'])
  t.same(narrow({ profile: 'build' }, []), { profile: 'build', allow: [] })
})

t.test('names that no filter knows, and calls that none can hold, are refused', async t => {
  t.match(syscall.schema.safeParse({ allow: ['opnat'] }).error?.issues[0]?.message, /did you mean openat\?/)
  for (const name of NEVER.keys()) t.match(syscall.schema.safeParse({ allow: [name] }).error?.issues[0]?.message, /can be granted by no contract/)
  t.notOk(syscall.schema.safeParse({ profile: 'all' }).success)
})
