import { spawn } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import type { Stage } from './case.ts'

/** What attacks are aimed at, put up on the host for one case. */

/** A file that holds "outside" and belongs to whoever runs the suite; returns its path. */
export function file(stage: Stage, name = 'outside.txt', mode = 0o644): string {
  const path = join(stage.dir, name)
  writeFileSync(path, 'outside\n', { mode })
  return path
}

export function folder(stage: Stage, name: string): string {
  const path = join(stage.dir, name)
  mkdirSync(path)
  return path
}

async function listening(stage: Stage, server: Server, where: { path: string } | { host: string; port: number }): Promise<void> {
  const open = new Set<Socket>()
  server.on('connection', socket => {
    open.add(socket)
    socket.on('close', () => open.delete(socket)).on('error', () => {})
  })
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(where, resolve))
  stage.defer(() => {
    for (const socket of open) socket.destroy()
    return new Promise(resolve => server.close(resolve))
  })
}

const greeting = (): Server => createServer(socket => socket.end('hello from outside'))

/** A service that greets whoever connects to a path. */
export async function unixService(stage: Stage, path: string): Promise<void> {
  await listening(stage, greeting(), { path })
}

/** A service that greets whoever connects on the host's loopback; returns its port. */
export async function tcpService(stage: Stage, host = '127.0.0.1'): Promise<number> {
  const server = greeting()
  await listening(stage, server, { host, port: 0 })
  return (server.address() as { port: number }).port
}

/** A process of the host, ended with the case. Resolves once it wrote its first bytes, with them. */
export async function processOfHost(stage: Stage, argv: readonly string[]): Promise<{ pid: number; said: string }> {
  const child = spawn(argv[0]!, argv.slice(1), { stdio: ['ignore', 'pipe', 'ignore'] })
  const ended = new Promise<never>((_, reject) => child.once('error', reject).once('exit', () => reject(new Error(`${argv[0]!} ended early`))))
  ended.catch(() => {})
  stage.defer(() => { child.kill('SIGKILL') })
  const said = await Promise.race([new Promise<string>(resolve => child.stdout.once('data', (chunk: Buffer) => resolve(chunk.toString().trim()))), ended])
  return { pid: child.pid!, said }
}
