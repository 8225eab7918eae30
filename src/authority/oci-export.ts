import { arch, constants } from 'node:os'
import { AmbitError } from '../errors.ts'
import type { Refusal } from '../native.ts'
import { negated, product, type Condition, type Ways } from './arguments.ts'
import { LIMITED, neverWith } from './seccomp.ts'
import { NEVER, PRIVILEGED } from './syscall-profiles.ts'
import { callsOf, type SyscallDeclaration } from './syscall.ts'
import { compareText } from './words.ts'

/** The runtime specification's `linux.seccomp` (config-linux.md); values are words of 64 bits. */
export type OciSeccomp = {
  defaultAction: string
  defaultErrnoRet?: number
  architectures: string[]
  syscalls: { names: string[]; action: string; errnoRet?: number; args?: { index: number; value: bigint; valueTwo?: bigint; op: string }[] }[]
}

const ALL = (1n << 64n) - 1n
/** More than the kernel takes of one filter (BPF_MAXINSNS), whatever libseccomp makes of them. */
const RULES_MAX = 1_000
const ACTIONS = { 'kill-thread': 'SCMP_ACT_KILL_THREAD', 'kill-process': 'SCMP_ACT_KILL_PROCESS', trap: 'SCMP_ACT_TRAP' } as const

/**
 * What a declaration lets a cell call, as a profile that a container engine takes. A permission says everything itself:
 * libseccomp 2.5 forgets a refusal with arguments where the same call is allowed without. Throws USAGE for what such a
 * profile cannot say.
 */
export function ociProfile(declared: SyscallDeclaration, { programsListed }: { programsListed: boolean }): OciSeccomp {
  const { calls, refusals, fallback } = callsOf(declared)
  const { ENOSYS, EPERM } = constants.errno
  const free: string[] = []
  const limited: OciSeccomp['syscalls'] = []
  for (const [name, { allow, refuse }] of [...calls].sort((a, b) => compareText(a[0], b[0]))) {
    const without = [...refuse, ...neverWith(name, programsListed)].map((way): Ways => way.flatMap(condition => negated(condition).map(other => [other])))
    const ways = distinct(product([allow, LIMITED.get(name) ?? [[]], ...without]).flatMap(way => single(name, way)))
    if (ways.some(way => way.length === 0)) free.push(name)
    else limited.push(...ways.map(way => ({ names: [name], action: 'SCMP_ACT_ALLOW', args: way.map(argumentOf) })))
    if (limited.length > RULES_MAX) throw unsaid(name, 'it would take too many rules')
  }
  const always = new Map(refusals.filter(({ name, ways }) => !calls.has(name) && ways.some(way => way.length === 0)).map(({ name, action }) => [name, action]))
  const byAction: [Refusal, string[]][] = [
    ...[...always].map(([name, action]): [Refusal, string[]] => [action, [name]]),
    [{ errno: EPERM }, fallback === null ? PRIVILEGED.filter(name => !calls.has(name)) : []],
    [{ errno: ENOSYS }, [...NEVER.keys()].filter(name => !always.has(name))],
  ]
  const otherwise = said(fallback ?? { errno: ENOSYS })
  return {
    defaultAction: otherwise.action,
    ...(otherwise.errnoRet === undefined ? {} : { defaultErrnoRet: otherwise.errnoRet }),
    architectures: [arch() === 'arm64' ? 'SCMP_ARCH_AARCH64' : 'SCMP_ARCH_X86_64'],
    syscalls: [
      { names: free, action: 'SCMP_ACT_ALLOW' }, ...limited,
      ...byAction.map(([action, names]) => ({ names, ...said(action) })).filter(({ names, ...rule }) => names.length > 0 && JSON.stringify(rule) !== JSON.stringify(otherwise)),
    ],
  }
}

/** As JSON, with words beyond 2^53 written out in full. */
export function ociText(profile: OciSeccomp): string {
  return `${JSON.stringify(profile, (_, value) => (typeof value === 'bigint' ? `${WORD_MARK}${value}` : value), 2).replaceAll(new RegExp(`"${WORD_MARK}(\\d+)"`, 'g'), '$1')}\n`
}
const WORD_MARK = 'word:'

function said(action: Refusal): { action: string; errnoRet?: number } {
  return typeof action === 'string' ? { action: ACTIONS[action] } : { action: 'SCMP_ACT_ERRNO', errnoRet: action.errno }
}

function argumentOf({ index, op, value, mask }: Condition): { index: number; value: bigint; valueTwo?: bigint; op: string } {
  return op === 'masked-eq' ? { index, value: mask!, valueTwo: value, op: 'SCMP_CMP_MASKED_EQ' } : { index, value, op: `SCMP_CMP_${op.toUpperCase()}` }
}

/** The same arguments by ways with at most one condition for each: engines take two for two rules, of which either is enough. */
function single(name: string, way: readonly Condition[]): Ways {
  const indexes = [...new Set(way.map(({ index }) => index))]
  return product(indexes.map((index): Ways => {
    const own = way.filter(one => one.index === index)
    if (own.length === 1) return [own]
    const spread = product(own.map((one): Ways => (one.op === 'ne' ? negated({ ...one, op: 'masked-eq', mask: ALL }).map(other => [other]) : [[one]])))
    return spread.map(one => [merged(name, one)])
  }))
}

function merged(name: string, conditions: readonly Condition[]): Condition {
  const bits = conditions.filter(({ op }) => op === 'eq' || op === 'masked-eq').map(({ mask, value }) => ({ mask: mask ?? ALL, value }))
  const mask = bits.reduce((all, one) => all | one.mask, 0n)
  const value = bits.reduce((all, one) => all | one.value, 0n)
  // Nothing that cannot be met is among them, so a word that is known whole lies in every range.
  if (bits.length < conditions.length && mask !== ALL) throw unsaid(name, 'one argument has a range and another condition')
  return mask === ALL ? { index: conditions[0]!.index, op: 'eq', value } : { index: conditions[0]!.index, op: 'masked-eq', mask, value }
}

function distinct(ways: Ways): Ways {
  return [...new Map(ways.map(way => [ociText({ defaultAction: '', architectures: [], syscalls: [{ names: [], action: '', args: way.map(argumentOf) }] }), way])).values()]
}

function unsaid(name: string, why: string): AmbitError {
  return new AmbitError('USAGE', { attempted: 'write the system calls as an OCI profile', why: `the rules of ${name} cannot be said in one: ${why}`, remedy: 'use the contract itself with ambit run, or simplify its rules for that call' })
}
