import { spawn, type ChildProcess } from 'node:child_process'
import { closeSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AmbitError } from '../errors.ts'
import { readBundleText } from '../evidence/bundle-file.ts'
import { BUNDLE } from '../evidence/statement.ts'
import { native } from '../native.ts'
import { PACKAGE_ROOT } from '../package.ts'

const RUN = '/run/ambit'
export const DEFAULT_SOCKET = `${RUN}/ambit.sock`

const PREFIX = 'private-'
/** In its state directory: the process that started it. */
const OWNER = 'owner'
/** A directory of so long ago, ms, whose starter never said who it is, has none any more. */
const UNOWNED_MS = 60_000

export type PrivateDaemon = {
  socket: string
  stateDir: string
  feed: { url: string; token: string }
  /**
   * Ends it and removes what it kept; but evidence that `handedTo`, where it should have gone, does not hold is kept. Returns the
   * directories where that is now.
   */
  stop(handedTo?: string): Promise<string[]>
}

/** One that dies is noticed at once: this is for hosts that are slow, as emulated ones are. */
const READY_SECONDS = 120

/** A daemon of one's own on a temporary directory, for a run on a host where none is installed. */
export async function startPrivateDaemon(options: { issuers?: string; environment?: Record<string, string>; spareCells?: number } = {}): Promise<PrivateDaemon> {
  if (process.getuid?.() !== 0) {
    throw new AmbitError('NOT_ROOT', {
      attempted: 'start a private daemon', why: `no daemon answers at ${DEFAULT_SOCKET}, and starting one needs root`,
      remedy: 'run this as root, or ask whoever runs this host to start `ambitd --group NAME`',
    })
  }
  // Below /run, which no cell ever shows: in a temporary directory it could lie in the caller's own workspace.
  mkdirSync(RUN, { recursive: true, mode: 0o755 })
  removeForsaken(RUN)
  const dir = mkdtempSync(join(RUN, PREFIX))
  writeFileSync(join(dir, OWNER), processOf(process.pid)!, { mode: 0o600 })
  const socket = join(dir, 'ambit.sock')
  const args = [join(PACKAGE_ROOT, 'dist/cli/main.js'), 'daemon', '--state', dir, '--socket', socket, '--feed-port', '0', '--log-level', 'warn', '--spare-cells', String(options.spareCells ?? 0), '--private']
  if (options.issuers !== undefined) args.push('--issuers', options.issuers)
  // In a session of its own: a signal of the terminal is for the command, and the daemon must see it to its end.
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'inherit', 'pipe'], detached: true, env: { ...process.env, ...options.environment } })
  let complaints = ''
  child.stderr!.on('data', (chunk: Buffer) => { complaints = (complaints + chunk.toString()).slice(-4096) })
  try {
    const ready = await waitFor(child, join(dir, 'daemon.json'), () => complaints)
    return {
      socket, stateDir: dir,
      feed: { url: `ws://127.0.0.1:${ready.feedPort}/v1/feed`, token: readFileSync(join(dir, 'feed-token'), 'utf8').trim() },
      async stop(handedTo) {
        await end(child)
        const kept = handedTo === undefined ? [] : await keepEvidence(dir, handedTo)
        rmSync(dir, { recursive: true, force: true })
        return kept
      },
    }
  } catch (error) {
    await end(child)
    rmSync(dir, { recursive: true, force: true })
    throw error
  }
}

async function waitFor(child: ChildProcess, file: string, complaints: () => string): Promise<{ feedPort: number }> {
  const deadline = Date.now() + READY_SECONDS * 1000
  while (Date.now() < deadline) {
    if (existsSync(file)) {
      const text = readFileSync(file, 'utf8')
      if (text.endsWith('}')) return JSON.parse(text) as { feedPort: number }
    }
    if (child.exitCode !== null || child.signalCode !== null) break
    await sleep(10)
  }
  throw new AmbitError('DAEMON_UNREACHABLE', {
    attempted: 'start a private daemon', why: complaints().trim() || `it did not get ready within ${READY_SECONDS} s`,
    remedy: 'run `ambit doctor` to see what this host lacks',
  })
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise(resolve => child.once('exit', resolve))
  child.kill('SIGTERM')
  const late = setTimeout(() => child.kill('SIGKILL'), 15_000)
  await ended
  clearTimeout(late)
}

/** Whether the private daemon on this state directory still has the parent that started it. */
export function hasStarter(stateDir: string): boolean {
  return readFileSync(join(stateDir, OWNER), 'utf8').split(' ')[0] === String(process.ppid)
}

/** A process's number and the time of its start, which no two have in common (proc_pid_stat(5), field 22); null: there is none. */
function processOf(pid: number): string | null {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The second field is its name, which can hold anything but ends with the last bracket.
    return `${pid} ${stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]}`
  } catch {
    return null
  }
}

/** Removes what private daemons left that were killed together with their starters. Both must be gone: the starter by name, the daemon by its lock. */
export function removeForsaken(run: string): void {
  for (const name of readdirSync(run)) {
    if (!name.startsWith(PREFIX)) continue
    const dir = join(run, name)
    const about = lstatSync(dir, { throwIfNoEntry: false })
    if (about?.isDirectory() !== true || about.uid !== 0) continue
    let owner: string | null = null
    try {
      owner = readFileSync(join(dir, OWNER), 'utf8')
    } catch { /* it was not said yet, or never will be */ }
    if (owner === null ? Date.now() - about.mtimeMs < UNOWNED_MS : processOf(Number(owner.split(' ')[0])) === owner) continue
    let lock: number | null = null
    try {
      lock = native().lockFile(join(dir, 'lock'))
      if (lock !== null) rmSync(dir, { recursive: true, force: true })
    } catch {
      // Somebody else is removing it.
    } finally {
      if (lock !== null) closeSync(lock)
    }
  }
}

/** Moves bundles that are not in `handedTo` out of the state directory: a job can hinder their being written where it may write. */
async function keepEvidence(stateDir: string, handedTo: string): Promise<string[]> {
  const kept: string[] = []
  const evidence = join(stateDir, 'evidence')
  if (!existsSync(evidence)) return kept
  const there = await readBundleText(handedTo, BUNDLE.statement).catch(() => null)
  for (const entry of readdirSync(evidence, { withFileTypes: true })) {
    // What was signed tells one bundle from all others.
    if (!entry.isDirectory() || (there !== null && there === await readBundleText(join(evidence, entry.name), BUNDLE.statement))) continue
    const place = join(RUN, `evidence-${entry.name}`)
    renameSync(join(evidence, entry.name), place)
    kept.push(place)
  }
  return kept
}
