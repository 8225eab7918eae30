// Prints the table: each attack bare, under bubblewrap and in a cell, and what the evidence says of it.
import { ATTACKS, STATEMENTS } from './cases.ts'
import * as plus from './plus.ts'
import { holds, startSuite, type Result } from './run.ts'

const wanted = process.argv.slice(2)
const chosen = ({ name }: { name: string }): boolean => wanted.length === 0 || wanted.includes(name)
const attacks = [...ATTACKS, ...plus.ATTACKS].filter(chosen)
const statements = [...STATEMENTS, ...plus.STATEMENTS].filter(chosen)
const width = Math.max(...[...attacks, ...statements].map(({ name }) => name.length))
const cells = (first: string, ...more: string[]): string => `${first.padEnd(width)}  ${more.slice(0, 3).map(word => word.padEnd(10)).join('  ')}  ${more.slice(3).join('')}`

let failures = 0
const suite = await startSuite()
try {
  console.log(cells('attack', 'bare', 'bubblewrap', 'cell', 'evidence of the cell'))
  for (const attack of attacks) {
    const result = await suite.run(attack)
    if (result.cell.outcome !== 'refused' || 'missing' in result.evidence) failures++
    console.log(cells(attack.name, result.bare.outcome, result.bubblewrap.outcome, result.cell.outcome, told(result)))
    for (const way of ['bare', 'bubblewrap', 'cell'] as const) console.log(`${' '.repeat(width)}  ${way.padEnd(10)}  ${result[way].line}`)
  }
  if (statements.length > 0) console.log('\nnot to be attacked here')
  for (const statement of statements) {
    const kept = await holds(statement)
    if (!kept) failures++
    console.log(`${statement.name.padEnd(width)}  ${kept ? 'checked' : 'NOT SO'}  ${statement.statement}`)
  }
} finally {
  await suite.stop()
}
console.log(`\n${attacks.length} attacks, ${statements.length} statements, ${failures} that do not hold`)
process.exitCode = failures === 0 ? 0 : 1

function told({ evidence }: Result): string {
  if ('shown' in evidence) return evidence.shown
  return 'silent' in evidence ? `silent: ${evidence.silent}` : `MISSING: ${evidence.missing}`
}
