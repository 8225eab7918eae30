// Starts the example's API server as the loop does, and talks to it as its clients do.
import { spawnSync, type SpawnSyncReturns } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { request } from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createAppAuth } from '@octokit/auth-app'
import { request as octokit } from '@octokit/request'
import { readLoopSettings } from '../../src/loop/settings.ts'
import { startLocalServer, type LocalServer } from '../../src/loop/server.ts'

export const EXAMPLE = join(import.meta.dirname, '../../examples/overbroad-build')
export const settings = readLoopSettings(EXAMPLE)

export type Answer = { status: number; body: string; headers: Record<string, string | string[] | undefined> }
export type Asked = { method?: string; token?: string; body?: unknown; headers?: Record<string, string> }

export type Running = LocalServer & {
  stateDir: string
  api: string
  ask(path: string, asked?: Asked): Promise<Answer>
  curl(...args: string[]): SpawnSyncReturns<string>
  mint(permissions: Record<string, string>): Promise<string>
}

export async function start(): Promise<Running> {
  const stateDir = mkdtempSync(join(tmpdir(), 'ambit-example-'))
  const server = await startLocalServer(settings.server!.command, EXAMPLE, stateDir)
  const api = `https://localhost:${server.port}`
  const ask = (path: string, { method = 'GET', token, body, headers = {} }: Asked = {}): Promise<Answer> => new Promise((resolve, reject) => {
    const auth = token === undefined ? {} : { authorization: `Bearer ${token}` }
    const sent = request({ host: '127.0.0.1', port: server.port, path, method, ca: server.ca, headers: { ...auth, ...headers } }, response => {
      let text = ''
      response.setEncoding('utf8').on('data', chunk => { text += chunk }).on('error', reject)
        .on('end', () => resolve({ status: response.statusCode!, body: text, headers: response.headers }))
    })
    sent.once('error', reject)
    sent.end(body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body))
  })
  return {
    ...server, stateDir, api, ask,
    curl: (...args) => spawnSync('curl', ['--silent', '--show-error', '--max-time', '20', ...args], { encoding: 'utf8', env: { ...process.env, CURL_CA_BUNDLE: join(stateDir, 'ca.pem') } }),
    async mint(permissions) {
      // GitHub's own client signs, asks and reads; only the trust in our authority is added.
      const client = octokit.defaults({
        baseUrl: api,
        request: {
          fetch: async (url: string, options: { method: string; headers: Record<string, string>; body?: string }) => {
            const { status, body, headers } = await ask(new URL(url).pathname, { method: options.method, headers: options.headers, body: options.body })
            return new Response(body, { status, headers: headers as Record<string, string> })
          },
        },
      })
      const auth = createAppAuth({ appId: server.appId, privateKey: readFileSync(server.keyFile, 'utf8'), request: client })
      return (await auth({ type: 'installation', installationId: Number(server.installationId), permissions, repositoryNames: ['tally'], refresh: true })).token
    },
    async stop() {
      await server.stop()
      rmSync(stateDir, { recursive: true, force: true })
    },
  }
}
