import fc from 'fast-check'
import t from 'tap'
import { KINDS } from '../../src/authority/kinds.ts'
import { PROFILES } from '../../src/authority/syscall-profiles.ts'
import { callsOf } from '../../src/authority/syscall.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { allowedCalls, CASES } from './arbitraries.ts'
import { coverage } from './evidence.ts'

const RUNS = { numRuns: 200 }
const complete = coverage()

t.same(KINDS.map(kind => kind.name).sort(), Object.keys(CASES).sort(), 'every kind is put to the laws')

for (const kind of KINDS) {
  const { families, declared: rawDeclared, events, allows } = CASES[kind.name]!
  const declared = rawDeclared.map(raw => kind.schema.parse(raw))
  const usedBy = (list: readonly EvidenceBody[]): unknown => {
    const used = kind.nothingUsed()
    for (const event of list) kind.observe(event, used)
    return used
  }
  const law = (name: string, check: (d: never, list: EvidenceBody[]) => void): void => {
    t.test(`${kind.name}: ${name}`, async t => { t.doesNotThrow(() => fc.assert(fc.property(declared, events, (d, list) => check(d as never, list)), RUNS)) })
  }
  const narrow = (d: unknown, list: readonly EvidenceBody[], seen = complete): never => kind.narrow(d, usedBy(list), seen) as never
  const is = (held: boolean, text: () => string): void => { if (!held) throw new Error(text()) }
  const show = (...items: unknown[]): string => items.map(item => JSON.stringify(item)).join('\n')

  law('narrowing never widens', (d, list) => {
    is(kind.within(narrow(d, list), d), () => show(d, narrow(d, list)))
  })

  law('what was observed and allowed is still allowed', (d, list) => {
    const narrowed = narrow(d, list)
    for (const event of list) if (allows(d, event) === true) is(allows(narrowed, event) === true, () => show(event, d, narrowed))
    if (kind.name === 'syscall') {
      const kept = callsOf(narrowed).calls
      for (const name of allowedCalls(d, list)) is(kept.has(name), () => show(name, d, narrowed))
    }
  })

  law('nothing of a narrowed declaration is unused', (d, list) => {
    const rows = kind.compare(narrow(d, list), usedBy(list), complete)
    is(rows.every(row => row.outcome !== 'unused'), () => show(d, narrow(d, list), rows))
  })

  law('narrowing twice is narrowing once, and the result is one that a contract can hold', (d, list) => {
    const once = narrow(d, list)
    is(show(narrow(once, list)) === show(once), () => show(once, narrow(once, list)))
    is(show(kind.schema.parse(structuredClone(once))) === show(once), () => show(once, kind.schema.parse(structuredClone(once))))
  })

  law('a declaration is within itself, and none is within every one', (d, list) => {
    is(kind.within(d, d), () => show(d))
    // Of what no program can do without, a contract may take some away; that is less than none.
    const lessThanNone = kind.name === 'syscall' && ((d as { deny: unknown[] }).deny.length > 0 || typeof (d as { profile: unknown }).profile !== 'string')
    is(lessThanNone || kind.within(kind.schema.parse(undefined), narrow(d, list)), () => show(d))
  })

  for (const family of families) {
    law(`with a gap in ${family} nothing is removed and nothing is called unused`, (d, list) => {
      const gap = coverage({ [family]: ['3 of 9 events were dropped'] })
      is(show(narrow(d, list, gap)) === show(d), () => show(d, narrow(d, list, gap)))
      const rows = kind.compare(d, usedBy(list), gap)
      is(rows.every(row => row.outcome !== 'unused'), () => show(d, rows))
    })
  }

  law('what is called used, denied or undeclared under full coverage is called so under a gap as well', (d, list) => {
    const seen = (gaps: Parameters<typeof coverage>[0]): string[] => kind.compare(d, usedBy(list), coverage(gaps)).filter(row => row.outcome !== 'unused' && row.outcome !== 'unobservable').map(row => `${row.grant} ${row.outcome}`)
    const gap = Object.fromEntries(families.map(family => [family, ['lost']]))
    is(show(seen(gap)) === show(seen({})), () => show(seen(gap), seen({})))
  })

  t.test(`${kind.name}: the laws are put to evidence that removes some grants and keeps others`, async t => {
    const samples = fc.sample(fc.tuple(declared, events), { numRuns: 200, seed: 7 })
    const removed = samples.filter(([d, list]) => show(narrow(d, list)) !== show(d))
    t.ok(removed.length > 20, `${removed.length} of 200 were narrowed`)
    t.ok(removed.some(([d, list]) => kind.compare(d, usedBy(list), complete).some(row => row.outcome === 'unused')))
    t.ok(samples.some(([d, list]) => list.some(event => allows(d as never, event) === true)) || kind.name === 'syscall')
  })

  t.test(`${kind.name}: what is absent is none`, async t => {
    const none = kind.schema.parse(undefined)
    const rows = kind.compare(none, kind.nothingUsed(), complete)
    t.same(rows, [], 'nothing declared and nothing done makes no row')
    t.doesNotThrow(() => fc.assert(fc.property(declared, events, (d, list) => {
      is(list.every(event => allows(none as never, event) !== true), () => show(list))
      // Only what grants nothing is within nothing; of syscalls the minimal profile is what no program can do without.
      const rows = kind.compare(d, usedBy(list), complete).filter(row => row.declared)
      const beyond = kind.name === 'syscall' ? rows.filter(row => !PROFILES.strict.has(row.grant)) : rows
      if (beyond.length > 0) is(!kind.within(d, none), () => show(d))
    }), RUNS))
  })
}
