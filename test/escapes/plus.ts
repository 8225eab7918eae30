import type { Attack, Statement } from './case.ts'

/** What the escape table does not name. */
export const ATTACKS: readonly Attack[] = []

export const STATEMENTS: readonly Statement[] = []
