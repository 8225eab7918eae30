import type { Command } from 'commander'
import { verifyBundle } from '../evidence/verify.ts'
import { printable, readText } from '../text.ts'
import { print, printJson } from './io.ts'

export function verifyCommand(program: Command): void {
  program.command('verify')
    .description('recompute an evidence bundle: chain, digests, signatures')
    .argument('<bundle>', 'the directory that ambit run --evidence wrote')
    .option('--key <file>', 'public key (PEM) that must have signed; without it the bundle\'s own key is used, which proves integrity and not who signed')
    .option('--json', 'the report as JSON')
    .action(async (dir: string, options) => {
      const report = await verifyBundle(dir, options.key === undefined ? {} : { publicKey: readText(options.key, 'the public key') })
      if (options.json) printJson(report)
      else if (report.valid) print(`valid: ${report.records} records, cell ${printable(String(report.cell))}, head ${report.head}\nkey: ${report.key}`)
      else print(`INVALID\n${report.problems.map(problem => `  ${printable(problem)}`).join('\n')}`)
      if (!report.valid) process.exitCode = 1
    })
}
