import t from 'tap'
import { assertAll } from './asserted.ts'
import { ATTACKS, STATEMENTS } from './cases.ts'

await assertAll(t, ATTACKS, STATEMENTS)
