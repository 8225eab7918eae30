import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AmbitError } from '../errors.ts'
import { PACKAGE_ROOT } from '../package.ts'

const RUN = '/run/ambit'
export const DEFAULT_SOCKET = `${RUN}/ambit.sock`

export type PrivateDaemon = {
  socket: string
  stateDir: string
  feed: { url: string; token: string }
  /** Ends it and removes what it kept. */
  stop(): Promise<void>
}

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
  const dir = mkdtempSync(join(RUN, 'private-'))
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
      async stop() {
        await end(child)
        rmSync(dir, { recursive: true, force: true })
      },
    }
  } catch (error) {
    await end(child)
    rmSync(dir, { recursive: true, force: true })
    throw error
  }
}

async function waitFor(child: ChildProcess, file: string, complaints: () => string): Promise<{ feedPort: number }> {
  const deadline = Date.now() + 30_000
  while (Date.now() < deadline) {
    if (existsSync(file)) {
      const text = readFileSync(file, 'utf8')
      if (text.endsWith('}')) return JSON.parse(text) as { feedPort: number }
    }
    if (child.exitCode !== null || child.signalCode !== null) break
    await sleep(10)
  }
  throw new AmbitError('DAEMON_UNREACHABLE', {
    attempted: 'start a private daemon', why: complaints().trim() || 'it did not get ready within 30 s',
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
