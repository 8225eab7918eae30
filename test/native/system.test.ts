import { execFileSync, spawnSync } from 'node:child_process'
import { closeSync, constants, linkSync, mkdirSync, openSync, readFileSync, readSync, renameSync, symlinkSync, writeFileSync } from 'node:fs'
import { constants as os } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { native, type SeccompPlan } from '../../src/native.ts'

const { EPERM, EACCES, EBADF, ENOSYS, EAFNOSUPPORT } = os.errno
const addon = native()
const dir = t.testdir({})
const probe = join(dir, 'probe')
execFileSync('gcc', ['-O1', '-Wall', '-o', probe, join(import.meta.dirname, 'seccomp-probe.c')])

type Rules = SeccompPlan['rules']
/** What the probe itself needs. */
const OWN: Rules = [{ names: ['write', 'exit_group', 'exit'], action: 'allow' }]
let files = 0

/** 0, a negative errno, or the signal that killed the probe. */
function run(rules: Rules | null, how: 'call' | 'int80' | 'x32', nr: number, ...args: (number | bigint)[]): number | string {
  let filter = 'none'
  if (rules !== null) {
    filter = join(dir, `filter${files++}`)
    writeFileSync(filter, addon.buildSeccomp({ defaultErrno: EPERM, rules: [...OWN, ...rules] }))
  }
  const { stdout, signal, status } = spawnSync(probe, [filter, how, String(nr), ...args.map(String)], { encoding: 'utf8' })
  if (signal !== null) return signal
  if (status !== 0) throw new Error(`the probe ended with ${status}`)
  return Number(stdout)
}

const nr = (name: string): number => {
  const number = addon.syscallNumber(name)
  if (number === null) throw new Error(`no number for ${name}`)
  return number
}

t.test('a call that no rule allows gets the default errno, and works without the filter', async t => {
  t.equal(run(null, 'call', nr('getppid')), 0)
  t.equal(run([], 'call', nr('getppid')), -EPERM)
  t.equal(run([{ names: ['getppid'], action: 'allow' }], 'call', nr('getppid')), 0)
  t.equal(run([{ names: ['getppid'], action: { errno: EACCES } }], 'call', nr('getppid')), -EACCES)
})

t.test('arguments are compared in all 64 bits', async t => {
  const unix: Rules = [{ names: ['socket'], action: 'allow', args: [{ index: 0, op: 'eq', value: 1n }] }]
  t.equal(run(null, 'call', nr('socket'), 2, 1, 0), 0, 'INET works without the filter')
  t.equal(run(unix, 'call', nr('socket'), 1, 1, 0), 0)
  t.equal(run(unix, 'call', nr('socket'), 2, 1, 0), -EPERM)
  t.equal(run(null, 'call', nr('socket'), 0x1_0000_0001n, 1, 0), 0, 'the kernel ignores the upper half')
  t.equal(run(unix, 'call', nr('socket'), 0x1_0000_0001n, 1, 0), -EPERM, 'an allowance does not')
  const datagrams: Rules = [{ names: ['socket'], action: 'allow', args: [{ index: 1, op: 'masked-eq', mask: 0xfn, value: 2n }] }]
  t.equal(run(datagrams, 'call', nr('socket'), 1, 2 | 0o2000000, 0), 0, 'SOCK_DGRAM with SOCK_CLOEXEC')
  t.equal(run(datagrams, 'call', nr('socket'), 1, 1, 0), -EPERM)
  t.equal(run(null, 'call', nr('socket'), 40, 1, 0) === -EAFNOSUPPORT || run(null, 'call', nr('socket'), 40, 1, 0) === 0, true, 'AF_VSOCK reaches the kernel without the filter')
  t.equal(run([{ names: ['socket'], action: 'allow', args: [{ index: 0, op: 'le', value: 2n }] }], 'call', nr('socket'), 40, 1, 0), -EPERM)
})

t.test('a refusal with arguments outranks an allowance without, in either order', async t => {
  const TIOCSTI = 0x5412n
  const allow: Rules = [{ names: ['ioctl'], action: 'allow' }]
  const refuse: Rules = [{ names: ['ioctl'], action: { errno: EACCES }, args: [{ index: 1, op: 'masked-eq', mask: 0xffff_ffffn, value: TIOCSTI }] }]
  t.equal(run(null, 'call', nr('ioctl'), -1, TIOCSTI, 0), -EBADF, 'the call is made without the filter')
  t.equal(run(allow, 'call', nr('ioctl'), -1, TIOCSTI, 0), -EBADF)
  for (const rules of [[...allow, ...refuse], [...refuse, ...allow]]) {
    t.equal(run(rules, 'call', nr('ioctl'), -1, TIOCSTI, 0), -EACCES)
    t.equal(run(rules, 'call', nr('ioctl'), -1, 0x1_0000_5412n, 0), -EACCES, 'the upper half is no way around')
    t.equal(run(rules, 'call', nr('ioctl'), -1, 0x5413n, 0), -EBADF)
  }
})

t.test('32-bit and x32 calls kill the process, whatever they are', async t => {
  const all: Rules = [{ names: ['getpid', 'getppid', 'read', 'ioctl'], action: 'allow' }]
  t.equal(run(null, 'int80', 20), 0, 'getpid of i386 works without the filter')
  t.equal(run(all, 'int80', 20), 'SIGSYS')
  t.not(run(null, 'x32', 39), 'SIGSYS', 'getpid of x32 comes back without the filter')
  t.equal(run(all, 'x32', 39), 'SIGSYS')
  const refusing: Rules = [...all, { names: ['ioctl'], action: { errno: EACCES }, args: [{ index: 1, op: 'eq', value: 1n }] }]
  t.equal(run(refusing, 'int80', 20), 'SIGSYS', 'also behind refusals with arguments')
  t.equal(run(refusing, 'x32', 16, 0, 1), 'SIGSYS')
})

t.test('calls that libseccomp has no name for can be allowed', async t => {
  t.not(run(null, 'call', 452, -1, 0, 0, 0), -ENOSYS, 'this kernel has fchmodat2')
  t.equal(run([], 'call', nr('fchmodat2'), -1, 0, 0, 0), -EPERM)
  t.equal(run([{ names: ['fchmodat2'], action: 'allow' }], 'call', nr('fchmodat2'), -1, 0, 0, 0), run(null, 'call', 452, -1, 0, 0, 0))
  t.equal(run([{ names: ['no_such_call', 'socketcall'], action: 'allow' }], 'call', nr('getppid')), -EPERM, 'unknown names change nothing')
})

const ARCH_X86_64 = 0xc000003e
const KILL = 0x80000000
const ALLOW = 0x7fff0000
const ERRNO = 0x00050000

/** Classic BPF as the kernel runs it on struct seccomp_data. */
function evaluate(filter: Buffer, arch: number, nr: number, args: readonly bigint[]): number {
  const data = Buffer.alloc(64)
  data.writeUInt32LE(nr, 0)
  data.writeUInt32LE(arch, 4)
  args.forEach((value, i) => data.writeBigUInt64LE(value, 16 + 8 * i))
  let a = 0
  for (let pc = 0; ; pc++) {
    const code = filter.readUInt16LE(pc * 8)
    const k = filter.readUInt32LE(pc * 8 + 4)
    const jump = (taken: boolean): number => filter[pc * 8 + (taken ? 2 : 3)]!
    switch (code) {
      case 0x20: a = data.readUInt32LE(k); break
      case 0x54: a = (a & k) >>> 0; break
      case 0x05: pc += k; break
      case 0x15: pc += jump(a === k); break
      case 0x25: pc += jump(a > k); break
      case 0x35: pc += jump(a >= k); break
      case 0x45: pc += jump((a & k) !== 0); break
      case 0x06: return k
      default: throw new Error(`instruction ${code.toString(16)}`)
    }
  }
}

t.test('the filter decides as the plan says, for any rules and arguments', async () => {
  const word = fc.oneof(fc.constantFrom(0n, 1n, 2n, 0xffff_ffffn, 0x1_0000_0000n, 0x1_0000_0001n, 0xffff_ffff_ffff_ffffn), fc.bigInt({ min: 0n, max: 0xffff_ffff_ffff_ffffn }))
  const argument = fc.record({ index: fc.integer({ min: 0, max: 5 }), op: fc.constantFrom('eq', 'ne', 'lt', 'le', 'gt', 'ge', 'masked-eq' as const), value: word, mask: word })
    .map(({ mask, ...rest }) => (rest.op === 'masked-eq' ? { ...rest, mask, value: rest.value & mask } : rest))
  const args = fc.array(argument, { maxLength: 3 })
  const NAMES = ['socket', 'ioctl', 'clone', 'bpf', 'fchmodat2', 'mseal']
  const refusal = fc.record({ names: fc.subarray(NAMES, { minLength: 1 }), action: fc.record({ errno: fc.integer({ min: 2, max: 40 }) }), args: args.filter(list => list.length > 0) })
  const allowance = fc.record({ names: fc.subarray(NAMES, { minLength: 1 }), action: fc.constant('allow' as const), args })
  // One call is refused with another errno than the default unless its arguments allow it.
  const fallback: Rules[number] = { names: ['bpf'], action: { errno: EACCES } }
  const holds = (list: Rules[number]['args'], values: readonly bigint[]): boolean => (list ?? []).every(({ index, op, value, mask }) => {
    const given = values[index]!
    return { 'eq': given === value, 'ne': given !== value, 'lt': given < value, 'le': given <= value, 'gt': given > value, 'ge': given >= value, 'masked-eq': (given & (mask ?? 0n)) === value }[op]
  })
  fc.assert(fc.property(fc.array(fc.oneof(refusal, allowance), { maxLength: 8 }), fc.array(fc.array(word, { minLength: 6, maxLength: 6 }), { minLength: 1, maxLength: 8 }), (rules, calls) => {
    const filter = addon.buildSeccomp({ defaultErrno: ENOSYS, rules: [...rules, ...(rules.some(rule => rule.names.includes('bpf') && rule.args?.length === 0) ? [] : [fallback])] })
    // The values of the rules themselves are where a comparison goes wrong.
    const edges = rules.flatMap(rule => rule.args ?? []).flatMap(({ index, value }) => [value, (value + 1n) & 0xffff_ffff_ffff_ffffn].map(at => [0n, 0n, 0n, 0n, 0n, 0n].map((zero, i) => (i === index ? at : zero))))
    for (const name of NAMES) {
      for (const values of [...calls, ...edges]) {
        const own = rules.filter(rule => rule.names.includes(name) && holds(rule.args, values))
        const refused = own.find(rule => rule.action !== 'allow')
        const expected = refused !== undefined ? ERRNO | (refused.action as { errno: number }).errno : own.length > 0 ? ALLOW : ERRNO | (name === 'bpf' ? EACCES : ENOSYS)
        if (evaluate(filter, ARCH_X86_64, nr(name), values) !== expected) return false
        if (evaluate(filter, 0x40000003, nr(name), values) !== KILL || evaluate(filter, ARCH_X86_64, nr(name) | 0x40000000, values) !== KILL) return false
      }
    }
    return true
  }), { numRuns: 150 })
})

t.test('all conditions of the longest rule count', async t => {
  const args = Array.from({ length: 40 }, (_, value) => ({ index: 0, op: 'ne' as const, value: BigInt(value) }))
  const filter = addon.buildSeccomp({ defaultErrno: EPERM, rules: [{ names: ['ioctl'], action: 'allow', args }] })
  t.same([0n, 20n, 39n, 40n].map(value => evaluate(filter, ARCH_X86_64, nr('ioctl'), [value])), [ERRNO | EPERM, ERRNO | EPERM, ERRNO | EPERM, ALLOW])
})

t.test('a call can be refused by ending who makes it', async t => {
  const plan = (rules: Rules, defaultAction?: 'kill-process' | 'trap'): Buffer => addon.buildSeccomp({ defaultErrno: EPERM, ...(defaultAction ? { defaultAction } : {}), rules })
  const TRAP = 0x00030000
  const rules: Rules = [{ names: ['bpf'], action: 'kill-process' }, { names: ['socket'], action: 'trap' }, { names: ['ioctl'], action: 'kill-thread', args: [{ index: 1, op: 'eq', value: 1n }] }, { names: ['ioctl'], action: 'allow' }]
  const ask = (filter: Buffer, name: string, ...args: bigint[]): number => evaluate(filter, ARCH_X86_64, nr(name), [...args, 0n, 0n, 0n, 0n, 0n, 0n].slice(0, 6))
  const filter = plan(rules)
  t.same(['bpf', 'socket', 'clone'].map(name => ask(filter, name)), [KILL, TRAP, ERRNO | EPERM])
  t.same([ask(filter, 'ioctl', 0n, 1n), ask(filter, 'ioctl', 0n, 2n)], [0, ALLOW])
  t.same([ask(plan(rules, 'kill-process'), 'clone'), ask(plan(rules, 'trap'), 'clone')], [KILL, TRAP])
  t.throws(() => plan(rules, 'allow' as never), TypeError, 'a default that allows is none')
})

t.test('what is known of a name', async t => {
  t.same(['read', 'openat2', 'chown32', 'opnat', 'riscv_hwprobe', ''].map(addon.syscallState), ['present', 'present', 'foreign', 'unknown', 'unknown', 'unknown'])
  for (let number = 424; number <= 471; number++) {
    const state = addon.syscallState(addon.syscallName(0, number)!)
    t.ok(['present', 'absent'].includes(state), `${addon.syscallName(0, number)}: ${state}`)
  }
  t.equal(addon.syscallState('cachestat') === 'absent', run(null, 'call', nr('cachestat'), -1, 0, 0, 0) === -ENOSYS, 'as the call itself says')
})

t.test('the kernel\'s own way back from a probed function is always open', async t => {
  const filter = addon.buildSeccomp({ defaultErrno: ENOSYS, rules: [] })
  t.equal(evaluate(filter, ARCH_X86_64, nr('uretprobe'), []), ALLOW)
  t.equal(evaluate(filter, ARCH_X86_64, nr('uprobe'), []), ALLOW)
  t.equal(evaluate(filter, ARCH_X86_64, nr('read'), []), ERRNO | ENOSYS)
})

t.test('a plan that contradicts itself or is not one is refused with the rule\'s name', async t => {
  const build = (rules: unknown, defaultErrno: unknown = EPERM): Buffer => addon.buildSeccomp({ defaultErrno, rules } as SeccompPlan)
  t.throws(() => build([{ names: ['read'], action: 'allow' }, { names: ['write', 'read'], action: { errno: 1 } }]), { code: 'NATIVE', message: /plan\.rules\[1\] \(read\) contradicts/ })
  t.doesNotThrow(() => build([{ names: ['read'], action: 'allow' }, { names: ['read'], action: 'allow' }]))
  const bad: [unknown, RegExp][] = [
    ['x', /plan\.rules must be an array/], [[3], /plan\.rules\[0\] must be an object/],
    [[{ names: 'read', action: 'allow' }], /plan\.rules\[0\]\.names must be an array/], [[{ names: [7], action: 'allow' }], /names\[0\] must be a string/],
    [[{ names: ['read'], action: 'deny' }], /action must be "allow", "kill-process", "kill-thread", "trap" or \{errno\}/], [[{ names: ['read'], action: { errno: 5000 } }], /errno must be a whole number from 1 to 4095/],
    [[{ names: ['read'], action: 'allow', args: [{ index: 6, op: 'eq', value: 0n }] }], /args\[0\]\.index/],
    [[{ names: ['read'], action: 'allow', args: [{ index: 0, op: 'is', value: 0n }] }], /none of eq/],
    [[{ names: ['read'], action: 'allow', args: [{ index: 0, op: 'eq', value: 3 }] }], /must be a bigint/],
    [[{ names: ['read'], action: 'allow', args: [{ index: 0, op: 'eq', value: -1n }] }], /from 0 to 2\^64 - 1/],
    [[{ names: ['read'], action: 'allow', args: [{ index: 0, op: 'masked-eq', value: 1n }] }], /mask is missing/],
    [[{ names: ['read'], action: 'allow', args: [{ index: 0, op: 'eq', value: 1n, mask: 1n }] }], /mask belongs to masked-eq only/],
    [[{ names: ['read'], action: 'allow', args: [{ index: 0, op: 'masked-eq', value: 2n, mask: 1n }] }], /could never match/],
    [[{ names: ['read'], action: 'allow', args: Array.from({ length: 41 }, () => ({ index: 0, op: 'ne', value: 2n })) }], /more than 40 conditions/],
  ]
  for (const [rules, message] of bad) t.throws(() => build(rules), { name: 'TypeError', message }, String(message))
  t.throws(() => build([], 0), { message: /plan\.defaultErrno/ })
  t.throws(() => addon.buildSeccomp(undefined as never), { message: /plan must be an object/ })
})

t.test('calls have names and numbers on every architecture', async t => {
  for (let number = 424; number <= 471; number++) {
    const name = addon.syscallName(0, number)
    t.type(name, 'string', `${number} is ${name}`)
    t.equal(addon.syscallNumber(name!), number)
    if (number >= 451) for (const arch of [1, 2, 3, 4]) t.equal(addon.syscallName(arch, number), name, `${name} has one number everywhere`)
  }
  const known: [number, number, string | null][] = [
    [0, 0, 'read'], [0, 334, 'rseq'], [0, 335, 'uretprobe'], [1, 20, 'getpid'], [1, 336, 'perf_event_open'], [3, 335, null], [2, 512, 'rt_sigaction'], [2, 0x40000000 | 520, 'execve'], [3, 63, 'read'], [4, 3, 'read'],
    [0xc000003e, 59, 'execve'], [0x40000003, 11, 'execve'], [0x4000003e, 520, 'execve'], [0xc00000b7, 221, 'execve'], [0x40000028, 11, 'execve'],
    [0, -1, null], [0, 499, null], [0, 0xffffffff, null], [0, 0x40000000, null], [5, 0, null],
  ]
  for (const [arch, number, name] of known) t.equal(addon.syscallName(arch, number), name, `${arch} ${number}`)
  t.equal(addon.syscallNumber('openat'), 257)
  t.equal(addon.syscallNumber('socketcall'), null, 'known by name, but not on this architecture')
  t.equal(addon.syscallNumber('no such'), null)
  t.throws(() => addon.syscallName('x' as never, 0), { name: 'TypeError' })
  t.throws(() => addon.syscallName(0, 0.5), { name: 'TypeError' })
  t.throws(() => addon.syscallNumber(3 as never), { name: 'TypeError' })
  t.throws(() => addon.syscallNumber('re\0ad'), { message: /NUL/ })
})

t.test('Landlock\'s ABI is what the kernel says', async t => {
  const LANDLOCK_CREATE_RULESET_VERSION = 1
  t.equal(addon.landlockAbi() > 0, run(null, 'call', nr('landlock_create_ruleset'), 0, 0, LANDLOCK_CREATE_RULESET_VERSION) === 0)
})

t.test('openBeneath never leaves its directory', async t => {
  const root = t.testdir({ inside: { file: 'inside', sub: { deep: 'deep' } }, secret: 'outside' })
  const base = join(root, 'inside')
  symlinkSync('../secret', join(base, 'up'))
  symlinkSync('file', join(base, 'link'))
  symlinkSync('/etc/passwd', join(base, 'passwd'))
  symlinkSync('/proc/self/root/etc', join(base, 'magic'))
  const fd = openSync(base, constants.O_RDONLY | constants.O_DIRECTORY)
  t.teardown(() => closeSync(fd))
  const read = (path: string): string => {
    const opened = addon.openBeneath(fd, path, constants.O_RDONLY, 0)
    const buffer = Buffer.alloc(64)
    try { return buffer.toString('utf8', 0, readSync(opened, buffer)) } finally { closeSync(opened) }
  }
  t.equal(read('file'), 'inside')
  t.equal(read('sub/deep'), 'deep')
  t.equal(read('sub/../file'), 'inside')
  for (const [path, errno] of [['../secret', os.errno.EXDEV], ['sub/../../secret', os.errno.EXDEV], [join(root, 'secret'), os.errno.EXDEV], ['up', os.errno.ELOOP], ['link', os.errno.ELOOP], ['passwd', os.errno.ELOOP], ['magic/passwd', os.errno.ELOOP], ['none', os.errno.ENOENT]] as const) {
    if (path !== 'none') t.doesNotThrow(() => closeSync(openSync(path.startsWith('/') ? path : join(base, path), 'r')), `${path} opens by path`)
    t.throws(() => read(path), { code: 'NATIVE', errno, syscall: 'openat2' }, path)
  }
  const made = addon.openBeneath(fd, 'new', constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY, 0o640)
  t.match(readFileSync(`/proc/self/fdinfo/${made}`, 'utf8'), /flags:\s+0?2\d+/, 'close-on-exec')
  closeSync(made)
  mkdirSync(join(base, 'a'))
  linkSync(join(root, 'secret'), join(base, 'a', 'hard'))
  t.equal(read('a/hard'), 'outside', 'a hard link is a file of the directory')
  renameSync(join(base, 'a'), join(root, 'gone'))
  t.throws(() => read('a/hard'), { code: 'NATIVE', errno: os.errno.ENOENT })
  t.throws(() => addon.openBeneath(9999, 'x', 0, 0), { code: 'NATIVE', errno: EBADF })
  t.throws(() => addon.openBeneath(fd, 'x\0y', 0, 0), { name: 'TypeError' })
  t.throws(() => addon.openBeneath(-1, 'x', 0, 0), { name: 'TypeError' })
  t.throws(() => addon.openBeneath(fd, 'x', 0, 0o10000), { name: 'TypeError' })
})
