import fc from 'fast-check'
import t from 'tap'
import { holds, passes } from '../../src/authority/arguments.ts'
import { ociProfile, ociText, type OciSeccomp } from '../../src/authority/oci-export.ts'
import { LIMITED, neverWith } from '../../src/authority/seccomp.ts'
import { NAMES, NEVER } from '../../src/authority/syscall-profiles.ts'
import { callsOf, syscall } from '../../src/authority/syscall.ts'
import { CASES } from './arbitraries.ts'

const OPS: Record<string, 'eq' | 'ne' | 'lt' | 'le' | 'gt' | 'ge' | 'masked-eq'> = { SCMP_CMP_EQ: 'eq', SCMP_CMP_NE: 'ne', SCMP_CMP_LT: 'lt', SCMP_CMP_LE: 'le', SCMP_CMP_GT: 'gt', SCMP_CMP_GE: 'ge', SCMP_CMP_MASKED_EQ: 'masked-eq' }
function allowed({ syscalls }: OciSeccomp, name: string, args: readonly bigint[]): boolean {
  return syscalls.some(rule => rule.action === 'SCMP_ACT_ALLOW' && rule.names.includes(name) && (rule.args ?? []).every(({ index, op, value, valueTwo }) =>
    holds(op === 'SCMP_CMP_MASKED_EQ' ? { index, op: 'masked-eq', mask: value, value: valueTwo! } : { index, op: OPS[op]!, value }, args)))
}

t.test('a written profile allows exactly what the cell\'s own filter allows', async t => {
  const word = fc.oneof(fc.constantFrom(0n, 1n, 2n, 3n, 10n, 16n, 0o100n, 0o4755n, 0o2644n, 0x5412n, 1n << 32n, (1n << 32n) | 1n), fc.bigInt(0n, (1n << 64n) - 1n))
  const call = fc.record({ name: fc.constantFrom('read', 'socket', 'socketpair', 'connect', 'rename', 'openat', 'open', 'chmod', 'ioctl', 'clone', 'mkdir', 'memfd_create', 'ptrace', 'clone3', 'personality'), args: fc.array(word, { minLength: 6, maxLength: 6 }) })
  let [yes, no, unsaid] = [0, 0, 0]
  t.doesNotThrow(() => fc.assert(fc.property(CASES['syscall']!.declared, fc.boolean(), fc.array(call, { minLength: 20, maxLength: 20 }), (raw, programsListed, calls) => {
    const declared = syscall.schema.parse(raw)
    let profile: OciSeccomp
    try {
      profile = ociProfile(declared, { programsListed })
    } catch (error) {
      // Some declarations cannot be said in such a profile: that is told, and nothing is written.
      if ((error as { code?: string }).code !== 'USAGE') throw error
      unsaid++
      return true
    }
    const rules = callsOf(declared).calls
    for (const { syscalls } of [profile]) for (const rule of syscalls) if (new Set((rule.args ?? []).map(one => one.index)).size !== (rule.args ?? []).length) return false
    return calls.every(({ name, args }) => {
      const rule = rules.get(name)
      const meets = (way: readonly Parameters<typeof holds>[0][]): boolean => way.every(one => holds(one, args))
      const expected = rule !== undefined && passes(rule, args) && (LIMITED.get(name) ?? [[]]).some(meets) && !neverWith(name, programsListed).some(meets)
      if (expected) yes++
      else no++
      return allowed(profile, name, args) === expected
    })
  }), { numRuns: 100 }))
  t.ok(yes > 100 && no > 100 && unsaid < 10, `${yes} allowed, ${no} not, ${unsaid} of 100 declarations not said`)
})

t.test('no call that a contract cannot grant is in it, and words stay whole', async t => {
  const all = ociProfile(syscall.schema.parse({ profile: 'build', allow: [...NAMES], deny: [{ name: 'mmap', args: [{ index: 1, op: 'eq', value: '0xfffffffffffffffe' }] }] }), { programsListed: true })
  for (const name of NEVER.keys()) t.notOk(allowed(all, name, [0n, 0n, 0n, 0n, 0n, 0n]), name)
  t.match(ociText(all), /"value": 18446744073709551614\b/)
  t.equal(JSON.parse(ociText(all)).architectures.length, 1)
  t.throws(() => ociProfile(syscall.schema.parse({ profile: 'strict', allow: [{ name: 'setpriority', args: [{ index: 0, op: 'lt', value: 9 }] }], deny: [{ name: 'setpriority', args: [{ index: 0, op: 'masked-eq', mask: 1, value: 1 }] }] }), { programsListed: false }), { code: 'USAGE', message: /setpriority cannot be said/ })
})
