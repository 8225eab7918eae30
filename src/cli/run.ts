import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { constants } from 'node:os'
import type { Command } from 'commander'
import { DEFAULT_SOCKET, startPrivateDaemon } from '../daemon/private-daemon.ts'
import { CLIENT } from '../package.ts'

export function runCommand(program: Command): void {
  program.command('run')
    .description('run a command in a cell; without a daemon on this host, with a private one')
    .requiredOption('--contract <file>', 'what the command may do (YAML or JSON)')
    .option('--evidence <dir>', 'write the signed evidence bundle here')
    .option('--socket <path>', `control socket of a running daemon; ${DEFAULT_SOCKET} if there is one`)
    .option('--issuers <file>', 'for the private daemon: where tokens and secrets come from')
    .option('--json', 'a summary as one JSON line on stderr')
    .argument('<command...>', 'the command and its arguments, after --')
    .passThroughOptions()
    .addHelpText('after', `
Example:
  ambit run --contract examples/contracts/minimal.yaml --evidence ev -- sh -c 'echo hello'

Input, output, signals and the exit status pass through; 124: its time was over, 137: killed or out of
memory, 125: the cell could not be built, 127: no such command in the cell.`)
    .action(async (command: string[], options) => {
      const running: string | undefined = options.socket ?? (existsSync(DEFAULT_SOCKET) ? DEFAULT_SOCKET : undefined)
      const own = running === undefined ? await startPrivateDaemon({ issuers: options.issuers }) : null
      try {
        const args = ['run', '--socket', own?.socket ?? running!, '--contract', options.contract]
        if (options.evidence !== undefined) args.push('--evidence', options.evidence)
        if (options.json) args.push('--json')
        process.exitCode = await runClient([...args, '--', ...command])
      } finally {
        for (const place of await own?.stop(options.evidence) ?? []) {
          process.stderr.write(`ambit: the evidence is not in ${options.evidence}; it is kept in ${place}: move it from there, the next start of this machine empties that place\n`)
        }
      }
    })
}

/** Runs the client on this process's own terminal and descriptors; resolves to its exit status. Signals reach it too. */
function runClient(args: string[]): Promise<number> {
  const child = spawn(CLIENT, args, { stdio: 'inherit' })
  const pass = (signal: NodeJS.Signals): void => { child.kill(signal) }
  // The terminal signals the whole foreground group; only what was sent to this process alone must be passed on.
  const signals = ['SIGTERM', 'SIGHUP', 'SIGUSR2'] as const
  for (const signal of signals) process.on(signal, pass)
  process.on('SIGINT', () => {})
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code, signal) => {
      for (const one of signals) process.off(one, pass)
      resolve(code ?? 128 + constants.signals[signal!])
    })
  })
}
