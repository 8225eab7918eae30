import type { Command } from 'commander'
import { OUTCOMES } from '../authority/kind.ts'
import { readContractFile } from '../contract/read.ts'
import { appendLedger } from '../evidence/ledger.ts'
import { readBundle } from '../evidence/bundle.ts'
import { AmbitError } from '../errors.ts'
import { judge } from '../verdict/verdict.ts'
import { renderVerdict, verdictJson } from '../verdict/forms.ts'
import { ledgerEntry } from '../verdict/ledger-entry.ts'
import { colour, print, printJson } from './io.ts'
import { trustedBundle } from './trusted.ts'

export function verdictCommand(program: Command): void {
  program.command('verdict')
    .description('declared against used, kind by kind, from a stored evidence bundle')
    .argument('<bundle>', 'the directory that ambit run --evidence wrote')
    .option('--contract <file>', 'judge against this contract instead of the one the cell ran under')
    .option('--key <file>', 'public key (PEM) that must have signed; this host\'s daemon\'s if there is one')
    .option('--json', 'the verdict as JSON')
    .option('--all', 'every row, nothing folded')
    .option('--ledger <dir>', 'add the verdict to this ledger, for the next audit')
    .option('--fail-on <outcomes>', 'exit 1 if a row has one of these outcomes (comma-separated: unused,denied,undeclared,unobservable)')
    .addHelpText('after', `
Outcomes: used, unused, denied (tried, not declared, stopped), undeclared (done, not declared), and
unobservable: the evidence cannot say. What was not observed is never called unused.`)
    .action(async (dir: string, options) => {
      const failing = failOn(options.failOn)
      const verified = await trustedBundle(dir, { key: options.key, lasting: options.ledger !== undefined, attempted: `judge ${dir}` })
      const { contract: own, events } = await readBundle(dir)
      const contract = options.contract === undefined ? own : readContractFile(options.contract)
      const verdict = judge(contract, events)
      if (options.json) printJson(verdictJson(verdict))
      else print(renderVerdict(verdict, { color: colour(process.stdout), all: options.all === true }))
      if (options.ledger !== undefined) await appendLedger(options.ledger, ledgerEntry(verdict, contract, verified.head))
      if (verdict.rows.some(row => failing.has(row.outcome))) process.exitCode = 1
    })
}

function failOn(words: string | undefined): Set<string> {
  const list = (words ?? '').split(',').filter(Boolean)
  const unknown = list.find(word => !(OUTCOMES as readonly string[]).includes(word))
  if (unknown !== undefined) throw new AmbitError('USAGE', { attempted: 'read --fail-on', why: `"${unknown}" is no outcome`, remedy: `outcomes: ${OUTCOMES.join(', ')}` })
  return new Set(list)
}
