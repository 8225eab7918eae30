import { Command, CommanderError } from 'commander'
import { AmbitError } from '../errors.ts'
import { VERSION } from '../package.ts'
import { auditCommand } from './audit.ts'
import { changesCommand } from './changes.ts'
import { completionCommand } from './completion.ts'
import { daemonCommand } from './daemon.ts'
import { doctorCommand } from './doctor.ts'
import { feedCommand } from './feed.ts'
import { loopCommand } from './loop.ts'
import { narrowCommand } from './narrow.ts'
import { policyCommand } from './policy.ts'
import { runCommand } from './run.ts'
import { verdictCommand } from './verdict.ts'
import { verifyCommand } from './verify.ts'

const program = new Command('ambit')
  .description('Runs CI jobs in observed, confined cells and narrows their declared authority to what they used.')
  .version(VERSION)
  .enablePositionalOptions()
  .option('--debug', 'show a stack with an error')
  .showHelpAfterError('(add --help for what this command takes)')
  .addHelpText('after', `
The loop, command by command:
  ambit audit .                                   what do my pipeline files grant?
  ambit run --contract c.yaml --evidence ev -- make   run a command in a cell
  ambit verdict ev                                declared against used
  ambit narrow ev --contract c.yaml --diff        what the contract could be
  ambit verify ev                                 is the evidence whole?
  ambit loop .                                    all of it, for one job

Exit status: 0 done, 1 a check failed, 2 bad input or a missing part, 125 the cell could not be built;
ambit run gives the status of its command.`)

for (const command of [loopCommand, auditCommand, runCommand, changesCommand, verdictCommand, narrowCommand, verifyCommand, feedCommand, policyCommand, doctorCommand, daemonCommand, completionCommand]) {
  command(program)
}

// A reader that has seen enough (`ambit audit | head`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // Whoever has to tidy up listens for this signal.
  if (process.listenerCount('SIGTERM') > 0) process.emit('SIGTERM', 'SIGTERM')
  else if (error.code === 'EPIPE') process.exit(0)
  else {
    process.stderr.write(`ambit: could not write the output: ${error.code}\n`)
    process.exit(1)
  }
})

try {
  program.exitOverride()
  for (const command of program.commands) command.exitOverride()
  await program.parseAsync()
} catch (error) {
  process.exitCode = report(error)
}

/** Prints an error as its reader needs it and tells the exit status. */
function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
  const debug = process.argv.includes('--debug')
  if (error instanceof AmbitError) {
    process.stderr.write(`ambit: ${error.message}\n${debug ? `${error.stack}\n` : ''}`)
    return error.exitCode
  }
  process.stderr.write(`ambit: internal error: ${debug ? (error as Error).stack : (error as Error).message}\n  This is a defect in ambit; --debug shows where.\n`)
  return 70
}
