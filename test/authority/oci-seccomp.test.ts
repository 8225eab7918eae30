import { existsSync, readFileSync } from 'node:fs'
import { constants } from 'node:os'
import t from 'tap'
import { seccompPlan, syscall } from '../../src/authority/syscall.ts'
import { holds } from '../../src/authority/arguments.ts'
import { resolved, type OciProfile } from '../../src/authority/oci-seccomp.ts'
import type { SeccompPlan } from '../../src/native.ts'
import { coverage, syscalls } from './evidence.ts'

const { EPERM, ENOSYS, EACCES } = constants.errno
const fault = (oci: unknown): string | undefined => syscall.schema.safeParse({ profile: { oci } }).error?.issues[0]?.message
const planOf = (oci: unknown, more: object = {}): SeccompPlan => seccompPlan(syscall.schema.parse({ profile: { oci }, ...more }), { programsListed: false })
const basic = (...syscalls: object[]) => ({ defaultAction: 'SCMP_ACT_ERRNO', syscalls: [{ names: ['execve', 'read', 'exit_group'], action: 'SCMP_ACT_ALLOW' }, ...syscalls] })

/** In the order that the filter decides in (native/addon/system.cpp). */
function decide(plan: SeccompPlan, name: string, ...args: bigint[]): string | number {
  const six = [...args, 0n, 0n, 0n, 0n, 0n, 0n].slice(0, 6)
  const fitting = plan.rules.filter(rule => rule.names.includes(name) && (rule.args ?? []).every(one => holds(one, six)))
  const rule = fitting.find(({ action, args: given }) => action !== 'allow' && given !== undefined) ?? fitting.find(({ action }) => action === 'allow') ?? fitting[0]
  return rule === undefined ? plan.defaultAction ?? plan.defaultErrno : typeof rule.action === 'string' ? rule.action : rule.action.errno
}

t.test('the profile that Podman ships is read, and what a cell never may stays refused on top of it', async t => {
  const path = '/usr/share/containers/seccomp.json'
  t.ok(existsSync(path), 'golang-github-containers-common is installed')
  const plan = planOf(JSON.parse(readFileSync(path, 'utf8')))
  for (const name of ['read', 'execve', 'mkdir', 'futex']) t.equal(decide(plan, name), 'allow', name)
  for (const name of ['openat2', 'clone3', 'io_uring_setup', 'io_uring_enter', 'io_uring_register']) t.equal(decide(plan, name), ENOSYS, name)
  for (const name of ['bpf', 'setns', 'perf_event_open', 'kexec_load']) t.not(decide(plan, name), 'allow', `${name} needs a capability that no cell has`)
  t.equal(decide(plan, 'chmod', 0n, 0o4755n), EPERM)
  t.equal(decide(planOf(basic({ names: ['mkdir'], action: 'SCMP_ACT_ALLOW' }, { names: ['mkdir'], action: 'SCMP_ACT_TRAP' })), 'mkdir'), 'trap', 'of both, the refusal')
  t.equal(decide(plan, 'clone', 0x1000_0000n), EPERM, 'no user namespace')
  t.equal(decide(plan, 'socket', 1n, 1n, 0n), 'allow')
  t.not(decide(plan, 'socket', 40n, 1n, 0n), 'allow', 'no vsock')
  t.equal(plan.defaultErrno, ENOSYS, 'its own default')
})

t.test('each action and each comparison is kept', async t => {
  const ops: [string, object, bigint[], bigint[]][] = [
    ['EQ', { value: 5 }, [5n], [4n, 6n]], ['NE', { value: 5 }, [4n], [5n]], ['LT', { value: 5 }, [4n], [5n]], ['LE', { value: 5 }, [5n], [6n]],
    ['GT', { value: 5 }, [6n], [5n]], ['GE', { value: 5 }, [5n], [4n]], ['MASKED_EQ', { value: 0xf0, valueTwo: 0x10 }, [0x1fn, 0x10n], [0x20n, 0n]],
  ]
  for (const [op, values, inside, outside] of ops) {
    const plan = planOf(basic({ names: ['mkdir'], action: 'SCMP_ACT_ALLOW', args: [{ index: 1, op: `SCMP_CMP_${op}`, ...values }] }))
    for (const value of inside) t.equal(decide(plan, 'mkdir', 0n, value), 'allow', `${op} ${value}`)
    for (const value of outside) t.equal(decide(plan, 'mkdir', 0n, value), EPERM, `${op} ${value}`)
  }
  const actions: [string, unknown][] = [['SCMP_ACT_ALLOW', 'allow'], ['SCMP_ACT_LOG', 'allow'], ['SCMP_ACT_KILL', 'kill-thread'], ['SCMP_ACT_KILL_THREAD', 'kill-thread'], ['SCMP_ACT_KILL_PROCESS', 'kill-process'], ['SCMP_ACT_TRAP', 'trap'], ['SCMP_ACT_ERRNO', EACCES]]
  for (const [action, expected] of actions) {
    const act = { action, ...(action === 'SCMP_ACT_ERRNO' ? { errnoRet: EACCES } : {}) }
    t.equal(decide(planOf(basic({ names: ['mkdir'], ...act })), 'mkdir'), expected, action)
    t.equal(decide(planOf(basic({ names: ['mkdir'], action: 'SCMP_ACT_ALLOW' }, { names: ['mkdir'], ...act, args: [{ index: 0, op: 'SCMP_CMP_EQ', value: 7 }] })), 'mkdir', 7n), expected, `${action} by argument`)
    if (expected !== 'allow') t.equal(decide(planOf({ defaultAction: action, defaultErrnoRet: EACCES, syscalls: [{ name: 'execve', action: 'SCMP_ACT_ALLOW' }] }), 'mkdir'), expected, `${action} by default`)
  }
  t.equal(decide(planOf({ ...basic(), defaultErrno: 'ENOSYS' }), 'mkdir'), ENOSYS, 'an error by its name')
  t.match(fault(basic({ names: ['mkdir'], action: 'SCMP_ACT_NOTIFY' })), /SCMP_ACT_NOTIFY cannot be kept: there is no supervisor/)
  t.match(fault(basic({ names: ['mkdir'], action: 'SCMP_ACT_TRACE' })), /SCMP_ACT_TRACE cannot be kept/)
  t.match(fault({ ...basic(), listenerPath: '/x' }), /listenerPath: no supervisor/)
})

t.test('two conditions on one argument are two rules, as the engines have it', async t => {
  const plan = planOf(basic({ names: ['mkdir'], action: 'SCMP_ACT_ALLOW', args: [{ index: 0, op: 'SCMP_CMP_EQ', value: 1 }, { index: 0, op: 'SCMP_CMP_EQ', value: 2 }] }))
  t.same([1n, 2n, 3n].map(value => decide(plan, 'mkdir', value)), ['allow', 'allow', EPERM])
})

t.test('conditions on capabilities, architecture and kernel are those of a cell on this host', async t => {
  const rule = (filter: object) => ({ names: ['mkdir'], action: 'SCMP_ACT_ALLOW', ...filter })
  const applies = (filter: object): boolean => resolved({ defaultAction: 'SCMP_ACT_ERRNO', syscalls: [rule(filter)] } as never, { arch: 'amd64', kernel: '6.1.0-13-amd64' }).syscalls.length > 0
  const rows: [object, boolean][] = [
    [{}, true], [{ includes: {}, excludes: {} }, true], [{ includes: { caps: ['CAP_SYS_ADMIN'] } }, false], [{ excludes: { caps: ['CAP_SYS_ADMIN'] } }, true],
    [{ includes: { arches: ['amd64', 'x32'] } }, true], [{ includes: { arches: ['s390x'] } }, false], [{ excludes: { arches: ['amd64'] } }, false], [{ excludes: { arches: ['s390x'] } }, true],
    [{ includes: { minKernel: '4.8' } }, true], [{ includes: { minKernel: '6.1' } }, true], [{ includes: { minKernel: '6.10' } }, false], [{ includes: { minKernel: '7.0' } }, false], [{ excludes: { minKernel: '4.8' } }, false],
  ]
  for (const [filter, expected] of rows) t.equal(applies(filter), expected, JSON.stringify(filter))
})

t.test('a profile that allows by default allows the calls that are known, and no more', async t => {
  const plan = planOf({ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ names: ['mkdir'], action: 'SCMP_ACT_ERRNO' }, { names: ['socket'], action: 'SCMP_ACT_KILL_PROCESS', args: [{ index: 0, op: 'SCMP_CMP_EQ', value: 2 }] }] })
  t.same(['read', 'mkdir', 'clone3'].map(name => decide(plan, name)), ['allow', EPERM, ENOSYS])
  t.equal(decide(plan, 'socket', 2n, 1n, 0n), 'kill-process')
  t.not(decide(plan, 'socket', (1n << 32n) | 2n, 1n, 0n), 'allow', 'the kernel looks at the low half')
  t.match(fault({ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [{ names: ['frobnicate_all'], action: 'SCMP_ACT_ERRNO' }] }), /is refused, and nobody here knows such a call/)
})

t.test('a contract adds to a profile and takes away from it', async t => {
  const plan = planOf(basic({ names: ['mkdir'], action: 'SCMP_ACT_ERRNO', errnoRet: EACCES }, { names: ['rmdir', 'chdir'], action: 'SCMP_ACT_ALLOW' }), { allow: ['mkdir', 'ptrace'], deny: ['rmdir', { name: 'chdir', args: [{ index: 0, op: 'eq', value: 0 }] }] })
  t.same(['mkdir', 'ptrace', 'rmdir'].map(name => decide(plan, name)), ['allow', 'allow', EPERM])
  t.same([0n, 1n].map(value => decide(plan, 'chdir', value)), [EPERM, 'allow'])
})

t.test('what is no profile is refused with its place, and a slip with the name that was meant', async t => {
  const rows: [unknown, RegExp][] = [
    [{}, /defaultAction/], ['x', /expected object/], [{ defaultAction: 'SCMP_ACT_SHRUG' }, /"SCMP_ACT_SHRUG" is no action/],
    [{ ...basic(), sycalls: [] }, /the key "sycalls" is not known/], [basic({ names: ['mkdri'], action: 'SCMP_ACT_ALLOW' }), /"mkdri" is no system call; did you mean mkdir\?/],
    [basic({ names: ['mkdir'], action: 'SCMP_ACT_ALLOW', args: [{ index: 7, op: 'SCMP_CMP_EQ', value: 1 }] }), /syscalls\[1\]\.args\[0\]\.index: a call has six arguments/],
    [basic({ names: ['mkdir'], action: 'SCMP_ACT_ALLOW', args: [{ index: 0, op: 'SCMP_CMP_EQ', value: 2 ** 60 }] }), /2\^53/],
    [basic({ names: ['mkdir'], action: 'SCMP_ACT_ALLOW', args: [{ index: 0, op: 'SCMP_CMP_MASKED_EQ', value: 1, valueTwo: 2 }] }), /outside of value/],
    [basic({ names: ['mkdir'], action: 'SCMP_ACT_KILL' }, { names: ['mkdir'], action: 'SCMP_ACT_TRAP' }), /mkdir is refused twice/],
    [{ defaultAction: 'SCMP_ACT_ERRNO', syscalls: [] }, /without execve/],
  ]
  for (const [oci, why] of rows) t.match(fault(oci) ?? 'accepted', why)
  t.equal(fault(basic({ names: ['riscv_hwprobe', 'chown32'], action: 'SCMP_ACT_ALLOW' })), undefined, 'a call of another architecture is none')
})

t.test('what was read reads back the same, and narrows to a profile within it', async t => {
  const declared = syscall.schema.parse({ profile: { oci: JSON.parse(readFileSync('/usr/share/containers/seccomp.json', 'utf8')) } })
  t.same(syscall.schema.parse(structuredClone(declared)), declared)
  const used = syscall.nothingUsed()
  syscall.observe(syscalls({ mkdir: { succeeded: 1 }, read: { succeeded: 2 } }), used)
  const narrowed = syscall.narrow(declared, used, coverage())
  const names = (profile: unknown): string[] => (profile as { oci: OciProfile }).oci.syscalls.filter(rule => rule.action === 'SCMP_ACT_ALLOW').flatMap(rule => rule.names)
  t.ok(syscall.within(narrowed, declared))
  t.notOk(syscall.within(declared, narrowed))
  t.ok(names(narrowed.profile).includes('mkdir') && !names(narrowed.profile).includes('rename'))
  t.ok(names(declared.profile).includes('rename'))
})
