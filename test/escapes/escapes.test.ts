import t from 'tap'
import { assertAll } from './asserted.ts'
import { ATTACKS, STATEMENTS } from './cases.ts'
import * as plus from './plus.ts'

/** Of the table of escapes that got out of other runtimes. */
const ROWS = 26

t.test('every row of the escape table is attacked, or answered', async t => {
  const covered = [...ATTACKS, ...STATEMENTS, ...plus.ATTACKS, ...plus.STATEMENTS].flatMap(({ covers }) => covers)
  for (let row = 1; row <= ROWS; row++) t.ok(covered.includes(`row ${row}`), `row ${row}`)
})

await assertAll(t, ATTACKS, STATEMENTS)
