import { existsSync, readFileSync, rmSync } from 'node:fs'
import { Option, type Command } from 'commander'
import { pino } from 'pino'
import { CHANGES_DIR } from '../changes/changes.ts'
import { DEFAULT_POLICY, readPolicyFile } from '../contract/policy.ts'
import { ttlSeconds } from '../contract/schema.ts'
import { NO_ISSUERS, readIssuers } from '../credentials/config.ts'
import { startDaemon } from '../daemon/daemon.ts'
import { AmbitError } from '../errors.ts'
import { keepAge, keepBytes } from '../evidence/retention.ts'
import { DEFAULT_SOCKET, hasStarter } from '../daemon/private-daemon.ts'

/** A quarter of all cells: the rest is for jobs. */
const SPARE_CELLS_MAX = 64
/** How soon a private daemon notices that its starter is gone, ms. */
const PARENT_MS = 250

export function daemonCommand(program: Command): void {
  program.command('daemon')
    .description('run the host daemon in the foreground: owns cells, probes, credentials and evidence')
    .option('--state <dir>', 'evidence, signing key and feed token', '/var/lib/ambit')
    .option('--changes <dir>', 'what jobs wrote to overlay workspaces, until it is applied or discarded', CHANGES_DIR)
    .option('--socket <path>', 'control socket', DEFAULT_SOCKET)
    .option('--group <name>', 'group that may use the control socket; without it only root may')
    .option('--feed-port <n>', 'port of the evidence feed on 127.0.0.1; 0 takes a free one', '9466')
    .option('--issuers <file>', 'YAML: where GitHub App tokens and secrets come from')
    .option('--spare-cells <n>', 'cells made ahead, so that the next jobs start at once; each takes about 1 MiB', '2')
    .option('--keep-evidence <time>', 'remove sealed evidence that is older, such as 30d or 12h; without it all is kept')
    .option('--max-evidence <size>', 'remove the oldest sealed evidence beyond this much, such as 10GiB')
    .option('--claim-within <time>', 'how long a cell that outlived its daemon waits for its client before it is ended', '60s')
    .option('--policy <file>', `admission policy of this host; ${DEFAULT_POLICY} if there is one`)
    .option('--private', 'end with the process that started this one, and remove the state directory then')
    .addOption(new Option('--log-level <level>', 'how much is logged').choices(['trace', 'debug', 'info', 'warn', 'error', 'fatal']).default('info'))
    .addHelpText('after', `
The feed's bearer token is in DIR/feed-token (mode 0600); DIR/public-key.pem verifies the evidence. SIGTERM ends every cell, seals its evidence and stops.

Evidence is DIR/evidence/CELL. --keep-evidence and --max-evidence look at the start and every hour; what they remove is in the log.
They take whole sealed bundles, a quarter of an hour after their sealing at the earliest: never an open or unsealed log,
nor a ledger or a copy that a caller was given.`)
    .action(async options => {
      const log = pino({ level: options.logLevel }, pino.destination({ dest: 2, sync: true }))
      let fatal: (() => void) | undefined
      const failed = new Promise<void>(resolve => { fatal = resolve })
      const policyFile: string | undefined = options.policy ?? (existsSync(DEFAULT_POLICY) ? DEFAULT_POLICY : undefined)
      const policy = policyFile === undefined ? null : readPolicyFile(policyFile, { obeyed: true })
      const daemon = await startDaemon({
        policy,
        onFatal: error => {
          log.fatal({ err: error }, 'no cell can be built any more')
          process.exitCode = 1
          fatal?.()
        },
        stateDir: options.state, changesDir: options.changes, socketPath: options.socket, socketGroup: options.group === undefined ? null : groupId(options.group),
        feedPort: port(options.feedPort), followed: options.private !== true, spareCells: spareCells(options.spareCells), claimMs: claimMs(options.claimWithin),
        keepEvidence: { ageMs: options.keepEvidence === undefined ? null : keepAge(options.keepEvidence), bytes: options.maxEvidence === undefined ? null : keepBytes(options.maxEvidence) },
        issuers: options.issuers === undefined ? NO_ISSUERS : readIssuers(options.issuers), log,
      })
      // Told by its starter's number: it may have been gone before this line.
      const orphaned = new Promise<void>(resolve => {
        if (options.private) setInterval(() => { if (!hasStarter(options.state)) resolve() }, PARENT_MS).unref()
      })
      await Promise.race([failed, orphaned, new Promise<void>(resolve => {
        for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.once(signal, () => resolve())
      })])
      log.info('stopping')
      await daemon.stop()
      // Whoever started it removes it otherwise, and sees first whether all evidence was handed over.
      if (options.private && !hasStarter(options.state)) rmSync(options.state, { recursive: true, force: true })
    })
}

function port(text: string): number {
  const number = Number(text)
  if (Number.isInteger(number) && number >= 0 && number < 65_536) return number
  throw new AmbitError('USAGE', { attempted: 'read --feed-port', why: `"${text}" is not a port`, remedy: 'give a number from 0 to 65535' })
}

function spareCells(text: string): number {
  const number = Number(text)
  if (/^\d+$/.test(text) && number <= SPARE_CELLS_MAX) return number
  throw new AmbitError('USAGE', { attempted: 'read --spare-cells', why: `"${text}" is not a number from 0 to ${SPARE_CELLS_MAX}`, remedy: 'give as many as jobs usually start at one time' })
}

function claimMs(text: string): number {
  const seconds = ttlSeconds(text)
  if (seconds > 0) return seconds * 1000
  throw new AmbitError('USAGE', { attempted: 'read --claim-within', why: `"${text}" is not a time such as 30s, 5m or 1h`, remedy: 'say how long a client may take to come back' })
}

function groupId(name: string): number {
  const line = readFileSync('/etc/group', 'utf8').split('\n').find(entry => entry.startsWith(`${name}:`))
  if (line === undefined) throw new AmbitError('USAGE', { attempted: 'open the control socket to a group', why: `there is no group "${name}"`, remedy: `make it with \`groupadd --system ${name}\`` })
  return Number(line.split(':')[2])
}
