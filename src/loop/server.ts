import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { z } from 'zod'
import { AmbitError } from '../errors.ts'

const state = z.object({ port: z.number().int(), collectorPort: z.number().int().optional(), appId: z.union([z.string(), z.number()]), installationId: z.union([z.string(), z.number()]), requestToken: z.string().optional() })

export type LocalServer = z.infer<typeof state> & { ca: string; keyFile: string; stop(): Promise<void> }

/** How long the server has to end by itself, ms. */
const STOP_MS = 5000

/** Starts the example's API server and waits until it says that it is ready. */
export async function startLocalServer(command: string[], dir: string, stateDir: string): Promise<LocalServer> {
  const [program, ...args] = command.map(word => (word === 'STATE' ? stateDir : word === 'node' ? process.execPath : word)) as [string, ...string[]]
  const child = spawn(program, args, { cwd: dir, stdio: ['ignore', 'pipe', 'pipe'] })
  let complaints = ''
  child.stderr.on('data', (chunk: Buffer) => { complaints = (complaints + chunk.toString()).slice(-2000) })
  const stop = async (): Promise<void> => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const ended = new Promise(resolve => child.once('exit', resolve))
    child.kill('SIGTERM')
    const late = setTimeout(() => child.kill('SIGKILL'), STOP_MS)
    await ended
    clearTimeout(late)
  }
  const failed = (why: string): AmbitError => new AmbitError('LOOP_BROKEN', { attempted: `start the local API server (${command.join(' ')})`, why, remedy: 'start it by hand to see what it lacks' })
  const ready = new Promise<void>((resolve, reject) => {
    const late = setTimeout(() => reject(failed('it was not ready within 20 s')), 20_000)
    const settle = (act: () => void): void => { clearTimeout(late); act() }
    createInterface({ input: child.stdout }).on('line', line => { if (line.includes('"ready":true')) settle(resolve) })
    child.once('error', error => settle(() => reject(failed(error.message))))
    child.once('exit', code => settle(() => reject(failed(`it ended with ${code}: ${complaints.trim()}`))))
  })
  try {
    await ready
    const told = state.parse(JSON.parse(readFileSync(join(stateDir, 'server.json'), 'utf8')))
    return { ...told, ca: readFileSync(join(stateDir, 'ca.pem'), 'utf8'), keyFile: join(stateDir, 'app-key.pem'), stop }
  } catch (error) {
    await stop()
    throw error
  }
}
