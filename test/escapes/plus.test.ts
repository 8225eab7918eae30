import t from 'tap'
import { assertAll } from './asserted.ts'
import { ATTACKS, STATEMENTS } from './plus.ts'

await assertAll(t, ATTACKS, STATEMENTS)
