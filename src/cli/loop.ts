import type { Command } from 'commander'
import { AmbitError } from '../errors.ts'
import { openShow } from '../loop/show.ts'
import { colour, printJson } from './io.ts'

export function loopCommand(program: Command): void {
  program.command('loop')
    .description('the whole loop for one job: audit, observe, verdict, narrow, enforce, attack, audit again')
    .argument('[path]', 'a directory with .github/workflows; it is copied, never changed (but see --apply)', '.')
    .option('--job <id>', 'the job, when there are several')
    .option('--out <dir>', 'keep contracts, evidence, ledger and diff here; a new directory under the system\'s temporary one otherwise')
    .option('--apply', 'write the narrowed workflow back')
    .option('--quiet', 'only headings and promises')
    .option('--json', 'a summary as JSON instead of the story')
    .addHelpText('after', `
Runs jobs made of \`run:\` steps. ambit.yaml beside .github says what a pipeline file cannot: a local API server,
names of secrets (they get made-up values), variables; see examples/overbroad-build/ambit.yaml. Exit status 0 only if every promise that it prints held.`)
    .action(async (path: string, options) => {
      // Imported here: the workflow parser takes longer to load than most commands take to run.
      const { loop } = await import('../loop/loop.ts')
      const show = openShow(text => { if (!options.json) process.stdout.write(text) }, colour(process.stdout), options.quiet === true)
      const out = await loop({ path, ...(options.job ? { job: options.job } : {}), ...(options.out ? { out: options.out } : {}), apply: options.apply === true, color: colour(process.stdout), show })
      if (options.json) printJson({ out, held: show.broken.length === 0, broken: show.broken })
      else process.stdout.write(`\nresults: ${out}\n`)
      if (show.broken.length > 0) {
        throw new AmbitError('LOOP_BROKEN', { attempted: 'close the loop', why: `${show.broken.length} promises did not hold: ${show.broken.join('; ')}`, remedy: `the evidence is in ${out}: \`ambit verdict\` and \`ambit verify\` read it` })
      }
    })
}
