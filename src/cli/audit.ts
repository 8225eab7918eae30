import { Option, type Command } from 'commander'
import { readLedger } from '../evidence/ledger.ts'
import { AmbitError } from '../errors.ts'
import { writeText } from '../text.ts'
import { colour, print, printJson } from './io.ts'

export function auditCommand(program: Command): void {
  program.command('audit')
    .description('what the pipeline files grant, and what evidence says of it')
    .argument('[path]', 'a workflow file, or a directory with .github/workflows', '.')
    .option('--ledger <dir>', 'verdicts of earlier runs: makes findings confirmed, closed or regressed')
    .option('--json', 'the report as JSON')
    .option('--sarif <file>', 'write SARIF 2.1.0 here ("-": standard output)')
    .addOption(new Option('--fail-on <state>', 'exit 1 if a finding has this state or a worse one').choices(['regressed', 'confirmed', 'open']).default('regressed'))
    .addHelpText('after', `
States of a finding: open (static only), confirmed (measured and not used), closed (measured and narrowed),
regressed (was closed, is back), unmeasured (a run was measured, but could not see this).`)
    .action(async (path: string, options) => {
      if (options.json && options.sarif === '-') throw new AmbitError('USAGE', { attempted: 'print the report', why: '--json and --sarif - both want standard output', remedy: 'give --sarif a file' })
      // Imported here: the workflow parser takes longer to load than most commands take to run.
      const { audit } = await import('../audit/audit.ts')
      const { renderJson, renderSarif, renderText } = await import('../audit/forms.ts')
      const { readPipelines } = await import('../pipeline/read.ts')
      const report = audit(await readPipelines(path), options.ledger === undefined ? [] : await readLedger(options.ledger))
      if (options.sarif === '-') print(JSON.stringify(renderSarif(report), null, 2))
      else if (options.sarif !== undefined) writeText(options.sarif, JSON.stringify(renderSarif(report), null, 2), 'the SARIF report')
      if (options.json) printJson(renderJson(report))
      else if (options.sarif !== '-') print(renderText(report, { color: colour(process.stdout) }))
      const failing = failingStates(options.failOn)
      if (report.findings.some(finding => failing.has(finding.state))) process.exitCode = 1
    })
}

function failingStates(least: string): Set<string> {
  const order = ['regressed', 'confirmed', 'open']
  return new Set(order.slice(0, order.indexOf(least) + 1))
}
