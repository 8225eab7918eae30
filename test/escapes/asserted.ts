import type { Test } from 'tap'
import type { Attack, Statement } from './case.ts'
import { holds, startSuite, type Result } from './run.ts'

/** One test for each attack and each statement, on one daemon. */
export async function assertAll(t: Test, attacks: readonly Attack[], statements: readonly Statement[]): Promise<void> {
  const suite = await startSuite()
  try {
    for (const attack of attacks) await t.test(`${attack.name}: ${attack.attempts}`, async t => { asserted(t, attack, await suite.run(attack)) })
    for (const statement of statements) await t.test(`${statement.name}: ${statement.statement}`, async t => { t.ok(await holds(statement)) })
  } finally {
    await suite.stop()
  }
}

function asserted(t: Test, attack: Attack, { bare, cell, evidence }: Result): void {
  if (attack.mayBeAbsent !== undefined && bare.outcome === 'absent') t.comment(`bare: ${bare.line} (${attack.mayBeAbsent})`)
  else t.equal(bare.outcome, 'worked', `bare: ${bare.line}`)
  t.equal(cell.outcome, 'refused', `cell: ${cell.line}`)
  if ('silent' in evidence) t.comment(`not in the evidence: ${evidence.silent}`)
  else t.ok('shown' in evidence, 'shown' in evidence ? evidence.shown : `the evidence lacks it: ${evidence.missing}`)
}
