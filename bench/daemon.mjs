// A daemon as a runner host has it, for benches: two cells made ahead, its log kept.
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { tmpdir } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'

/** @returns {Promise<{socket: string, pid: number, lines(): object[], stop(): Promise<void>}>} */
export async function startDaemon() {
  const dir = mkdtempSync(join(tmpdir(), 'ambit-bench-daemon-'))
  const [socket, log, ready] = ['ambit.sock', 'log', 'state/daemon.json'].map(name => join(dir, name))
  const child = spawn(process.execPath, ['dist/cli/main.js', 'daemon', '--state', join(dir, 'state'), '--changes', join(dir, 'changes'), '--socket', socket, '--feed-port', '0', '--log-level', 'debug'], { stdio: ['ignore', 'ignore', openSync(log, 'w')] })
  const ended = new Promise(resolve => child.once('exit', resolve))
  for (let i = 0; i < 500 && !existsSync(ready); i++) await sleep(20)
  if (!existsSync(ready)) throw new Error(readFileSync(log, 'utf8'))
  return {
    socket, pid: child.pid,
    lines: () => readFileSync(log, 'utf8').split('\n').filter(Boolean).map(line => JSON.parse(line)),
    async stop() {
      child.kill()
      await ended
      rmSync(dir, { recursive: true, force: true })
    },
  }
}
