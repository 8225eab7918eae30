import type { Command } from 'commander'
import { ociProfile, ociText } from '../authority/oci-export.ts'
import { narrowContract } from '../contract/narrow.ts'
import { readContractFile } from '../contract/read.ts'
import { jobGrantOf } from '../contract/to-job.ts'
import { writeContract } from '../contract/write.ts'
import { AmbitError } from '../errors.ts'
import { readBundle } from '../evidence/bundle.ts'
import { readText, writeText } from '../text.ts'
import { print } from './io.ts'
import { trustedBundle } from './trusted.ts'

export function narrowCommand(program: Command): void {
  program.command('narrow')
    .description('the contract, and the workflow file, cut down to what the evidence shows was used')
    .argument('<bundle>', 'the directory that ambit run --evidence wrote')
    .option('--contract <file>', 'narrow this contract instead of the one the cell ran under')
    .option('--key <file>', 'public key (PEM) that must have signed; this host\'s daemon\'s if there is one')
    .option('--workflow <file>', 'narrow this GitHub workflow file as well')
    .option('--job <id>', 'the job in the workflow')
    .option('--oci <file>', 'write the narrowed system calls as a seccomp profile for runc, Docker or Podman')
    .option('--diff', 'print unified diffs instead of the narrowed contract')
    .option('--write', 'change the named files in place; a contract\'s comments are not kept')
    .addHelpText('after', `
Nothing is ever widened, and a grant that could not be observed stays.
Example: ambit narrow ev --workflow .github/workflows/build.yml --job build --diff | git apply`)
    .action(async (dir: string, options) => {
      // Imported here: the workflow parser takes longer to load than most commands take to run.
      const { narrowWorkflow, unifiedDiff } = await import('../pipeline/narrow.ts')
      const verified = await trustedBundle(dir, { key: options.key, lasting: options.write === true, attempted: `narrow by ${dir}` })
      if (options.workflow !== undefined && options.job === undefined) throw new AmbitError('USAGE', { attempted: 'narrow the workflow', why: '--job is missing', remedy: 'name the job that the evidence is of' })
      if (options.job !== undefined && options.workflow === undefined) throw new AmbitError('USAGE', { attempted: 'narrow a job', why: '--job goes with --workflow', remedy: 'name the workflow file, too' })
      if (options.write && options.contract === undefined && options.workflow === undefined) throw new AmbitError('USAGE', { attempted: 'write what was narrowed', why: 'no file is named', remedy: 'name one with --contract or --workflow' })
      const { contract: own, events } = await readBundle(dir)
      const last = events.at(-1)
      const { code, reason } = last?.type === 'cell.ended' ? last : { code: null, reason: 'no end is recorded' }
      if (code !== 0) {
        const why = `the measured command did not end well (${code === null ? reason : `status ${code}`}): what it did not use it may only not have reached`
        if (options.write) throw new AmbitError('USAGE', { attempted: `narrow by ${dir}`, why, remedy: 'measure a run that succeeds; without --write the narrowed form is only shown' })
        process.stderr.write(`ambit: note: ${why}\n`)
      }
      const before = options.contract === undefined ? own : readContractFile(options.contract)
      const narrowed = narrowContract(before, events)
      const text = writeContract(narrowed)
      const workflow = options.workflow === undefined ? undefined : readText(options.workflow, 'the workflow')
      const after = workflow === undefined ? undefined : narrowWorkflow(workflow, options.job, jobGrantOf(narrowed), `measured in cell ${verified.cell}`).text

      if (options.write && options.contract !== undefined) writeText(options.contract, text, 'the narrowed contract')
      if (options.write && after !== undefined) writeText(options.workflow, after, 'the narrowed workflow')
      if (options.oci !== undefined) writeText(options.oci, ociText(ociProfile(narrowed.spec.authority.syscall, { programsListed: !narrowed.spec.authority.exec.includes('*') })), 'the seccomp profile')
      // With a workflow alone the output is its diff and nothing else, fit for `git apply`.
      if (options.contract !== undefined || workflow === undefined) {
        print(options.diff ? unifiedDiff(options.contract ?? 'contract.yaml', options.contract === undefined ? writeContract(before) : readText(options.contract, 'the contract'), text) : text)
      }
      if (workflow !== undefined) print(unifiedDiff(options.workflow, workflow, after!))
    })
}
