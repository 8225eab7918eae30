import { z } from 'zod'
import type { SeccompPlan } from '../native.ts'

/** A test of one argument of a call. All 64 bits are compared; `masked-eq`: (argument & mask) = value. */
export type Condition = NonNullable<SeccompPlan['rules'][number]['args']>[number]
/** The calls that are meant: those that pass every condition of at least one way. `[[]]` is any arguments, `[]` none. */
export type Ways = readonly (readonly Condition[])[]
/** What a call may be made with: one of `allow`, and none of `refuse`. */
export type CallRule = { allow: Ways; refuse: Ways }

const WORD = (1n << 64n) - 1n
const LOW_32 = 0xffff_ffffn

export const ANY: Ways = [[]]

/** Names for values, as the kernel's headers have them (include/linux/socket.h, uapi/linux/net.h, uapi/asm-generic/mman-common.h). */
const SYMBOLS: ReadonlyMap<string, number> = new Map(Object.entries({
  AF_UNIX: 1, AF_INET: 2, AF_INET6: 10, AF_NETLINK: 16,
  SOCK_STREAM: 1, SOCK_DGRAM: 2, SOCK_RAW: 3, SOCK_SEQPACKET: 5, SOCK_TYPE_MASK: 15,
  PROT_READ: 1, PROT_WRITE: 2, PROT_EXEC: 4,
}))

/** A value of a contract as the word that it stands for; null if it is none. */
export function wordOf(value: number | string): bigint | null {
  if (typeof value === 'number') return Number.isSafeInteger(value) && value >= 0 ? BigInt(value) : null
  const symbol = SYMBOLS.get(value)
  if (symbol !== undefined) return BigInt(symbol)
  if (!/^(0x[0-9a-fA-F]{1,16}|\d{1,20})$/.test(value)) return null
  const word = BigInt(value)
  return word <= WORD ? word : null
}

const word = z.unknown().superRefine((value, context) => {
  if ((typeof value !== 'number' && typeof value !== 'string') || wordOf(value) === null) {
    const large = typeof value === 'number' && value > Number.MAX_SAFE_INTEGER
    context.addIssue({ code: 'custom', message: large ? 'numbers from 2^53 on are not kept exactly: write it in hexadecimal, as text ("0x…")' : `must be a whole number from 0 to 2^64 - 1, hexadecimal text ("0x10") or one of ${[...SYMBOLS.keys()].join(', ')}`, input: value })
  }
}).transform(value => value as number | string)

/** A condition as contracts write it. */
export const conditionSchema = z.strictObject({
  index: z.number({ error: 'must be the place of the argument, 0 to 5' }).int().min(0, 'must be the place of the argument, 0 to 5').max(5, 'a call has six arguments: 0 to 5'),
  op: z.enum(['eq', 'ne', 'lt', 'le', 'gt', 'ge', 'masked-eq'], { error: 'must be one of eq, ne, lt, le, gt, ge, masked-eq' }).describe('how it is compared with the value'),
  value: word.describe('a number, hexadecimal text, or a name such as AF_NETLINK'),
  mask: word.optional().describe('with masked-eq: the bits that count'),
}).superRefine(({ op, value, mask }, context) => {
  if ((op === 'masked-eq') !== (mask !== undefined)) context.addIssue({ code: 'custom', message: op === 'masked-eq' ? 'masked-eq needs a mask' : 'a mask belongs to masked-eq only', input: mask })
  else if (mask !== undefined && ((wordOf(value) ?? 0n) & ~(wordOf(mask) ?? WORD)) !== 0n) context.addIssue({ code: 'custom', message: 'the value has bits outside its mask: it could never be met', input: mask })
})
export type DeclaredCondition = z.output<typeof conditionSchema>

export function conditionOf({ index, op, value, mask }: DeclaredCondition): Condition {
  return { index, op, value: wordOf(value)!, ...(mask === undefined ? {} : { mask: wordOf(mask)! }) }
}

/**
 * Of many arguments the kernel reads the low half only, so a permission must not hold for a word that merely differs in the
 * upper half. What a permission asks of a number below 2^32 is asked of both halves; "not this one" is spelt out bit by bit.
 */
export function permitted(conditions: readonly Condition[]): Ways {
  return product(conditions.map(condition => (condition.op === 'ne' && condition.value <= LOW_32 ? negated({ ...condition, op: 'masked-eq', mask: LOW_32 }).map(one => [one]) : [[condition]])))
}

/** The same from the other side: a refusal of a number below 2^32 must hold whatever is in the upper half. */
export function refused(conditions: readonly Condition[]): Ways {
  return [conditions.map(condition => (condition.op === 'eq' && condition.value <= LOW_32 ? { ...condition, op: 'masked-eq', mask: LOW_32 } : condition))]
}

/** Every combination of one way of each; those that nothing can meet are left out. */
export function product(lists: readonly Ways[]): Ways {
  return lists.reduce<Ways>((ways, list) => ways.flatMap(way => list.map(more => [...way, ...more]).filter(met)), ANY)
}

/** Conditions of which exactly one holds where the given one does not. */
export function negated(condition: Condition): Condition[] {
  const { index, op, value, mask } = condition
  const opposite = { eq: 'ne', ne: 'eq', lt: 'ge', ge: 'lt', gt: 'le', le: 'gt' } as const
  if (op !== 'masked-eq') return [{ index, op: opposite[op], value }]
  const out: Condition[] = []
  let above = 0n
  for (let bit = 1n << 63n; bit > 0n; bit >>= 1n) {
    if ((mask! & bit) === 0n) continue
    out.push({ index, op, value: (value & above) | (~value & bit), mask: above | bit })
    above |= bit
  }
  return out
}

/** The least word that passes all conditions, which are of one argument; undefined if none does. */
function least(conditions: readonly Condition[]): bigint | undefined {
  let [low, high, mask, bits] = [0n, WORD, 0n, 0n]
  const not = new Set<bigint>()
  const fix = (of: bigint, to: bigint): boolean => {
    if (((bits ^ to) & mask & of) !== 0n) return false
    mask |= of
    bits |= to
    return true
  }
  for (const { op, value, mask: of } of conditions) {
    if (op === 'eq' && !fix(WORD, value)) return undefined
    if (op === 'masked-eq' && !fix(of!, value)) return undefined
    if (op === 'ne') not.add(value)
    if (op === 'lt' || op === 'le') high = smaller(high, op === 'lt' ? value - 1n : value)
    if (op === 'gt' || op === 'ge') low = -smaller(-low, op === 'gt' ? -value - 1n : -value)
  }
  let at = nextMatch(low, mask, bits)
  while (at !== undefined && at <= high && not.has(at)) at = nextMatch(at + 1n, mask, bits)
  return at !== undefined && at <= high ? at : undefined
}

function smaller(a: bigint, b: bigint): bigint {
  return a < b ? a : b
}

/** The least word from `low` on whose bits under `mask` are `bits`. */
function nextMatch(low: bigint, mask: bigint, bits: bigint): bigint | undefined {
  if (low > WORD) return undefined
  if ((low & mask) === bits) return low
  for (let place = 0n; place < 64n; place++) {
    const bit = 1n << place
    const above = WORD & ~((bit << 1n) - 1n)
    if ((low & bit) === 0n && ((low ^ bits) & mask & above) === 0n && ((mask & bit) === 0n || (bits & bit) !== 0n)) return (low & above) | bit | (bits & (bit - 1n))
  }
  return undefined
}

/** Six arguments that pass all conditions; undefined if none do. */
export function example(conditions: readonly Condition[]): bigint[] | undefined {
  const words = Array.from({ length: 6 }, (_, index) => least(conditions.filter(condition => condition.index === index)))
  return words.every(one => one !== undefined) ? words as bigint[] : undefined
}

function met(conditions: readonly Condition[]): boolean {
  return example(conditions) !== undefined
}

export function holds({ index, op, value, mask }: Condition, args: readonly bigint[]): boolean {
  const given = args[index]!
  switch (op) {
    case 'eq': return given === value
    case 'ne': return given !== value
    case 'lt': return given < value
    case 'le': return given <= value
    case 'gt': return given > value
    case 'ge': return given >= value
    case 'masked-eq': return (given & mask!) === value
  }
}

export function passes({ allow, refuse }: CallRule, args: readonly bigint[]): boolean {
  const meets = (way: readonly Condition[]): boolean => way.every(condition => holds(condition, args))
  return allow.some(meets) && !refuse.some(meets)
}

/** Looks at this many combinations; an answer that needs more is not given. */
const STEPS = 20_000

/**
 * Arguments that `inner` lets through and `outer` does not; null: there are none. What would take too long to find out
 * is answered with 'unknown', never with null.
 */
export function beyond(inner: CallRule, outer: CallRule): bigint[] | null | 'unknown' {
  const text = (way: readonly Condition[]): string => JSON.stringify(way, (_, item) => (typeof item === 'bigint' ? item.toString() : item))
  const [outerAllows, innerRefuses] = [new Set(outer.allow.map(text)), new Set(inner.refuse.map(text))]
  if (outer.refuse.every(way => innerRefuses.has(text(way))) && (outerAllows.has('[]') || inner.allow.every(way => outerAllows.has(text(way))))) return null
  let steps = 0
  /** Arguments that pass all of `conditions` and not all of any of `ways`. */
  const search = (conditions: readonly Condition[], ways: Ways, at = 0): bigint[] | undefined => {
    if (++steps > STEPS || !met(conditions)) return undefined
    while (at < ways.length && !met([...conditions, ...ways[at]!])) at++
    if (at === ways.length) return example(conditions)
    for (const condition of ways[at]!) {
      for (const other of negated(condition)) {
        const found = search([...conditions, other], ways, at + 1)
        if (found !== undefined) return found
      }
    }
    return undefined
  }
  for (const way of inner.allow) {
    const starts: [readonly Condition[], Ways][] = [[way, [...outer.allow, ...inner.refuse]], ...outer.refuse.map((refusal): [readonly Condition[], Ways] => [[...way, ...refusal], inner.refuse])]
    for (const [conditions, ways] of starts) {
      const found = search(conditions, ways)
      if (found !== undefined) return found
      if (steps > STEPS) return 'unknown'
    }
  }
  return null
}
