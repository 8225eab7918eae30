import { Agent } from 'node:https'
import { readFileSync } from 'node:fs'
import { createAppAuth } from '@octokit/auth-app'
import { request } from '@octokit/request'
import { z } from 'zod'
import { AmbitError } from '../errors.ts'
import { readPrivate, type GithubApp } from './config.ts'
import { httpsFetch } from './https-fetch.ts'

const TIMEOUT_MS = 10_000
const LEVELS = ['read', 'write', 'admin']

/** What GitHub answers to POST /app/installations/ID/access_tokens, as far as it is relied on. */
const reply = z.object({
  token: z.string().min(1).regex(/^[!-~]+$/),
  expires_at: z.iso.datetime({ offset: true }),
  permissions: z.record(z.string(), z.string()),
  repository_selection: z.enum(['all', 'selected']).optional(),
  repositories: z.array(z.object({ name: z.string() })).optional(),
})

export type Asked = {
  /** As GitHub names them: "pull_requests": "read". */
  permissions: Readonly<Record<string, string>>
  /** Names without their owner; none means every repository of the installation. */
  repositories: readonly string[]
}
export type Minted = { token: string; permissions: Record<string, string>; /** RFC 3339. */ expires: string }

export type GithubIssuer = {
  /** Mints an installation token with exactly what is asked, or rejects with CREDENTIAL_REFUSED; what is broader is taken back. */
  mint(asked: Asked): Promise<Minted>
  /** Ends a token's life. */
  revoke(token: string): Promise<void>
}

/** Neither a token nor the App's own proof is ever part of an error: errors are shown, logged and put into evidence. */
export function githubIssuer(app: GithubApp, timeoutMs = TIMEOUT_MS): GithubIssuer {
  const fail = (attempted: string, why: string, remedy: string): AmbitError => new AmbitError('CREDENTIAL_REFUSED', { attempted, why, remedy })

  const call = async <Result>(use: (ask: typeof request) => Promise<Result>): Promise<Result> => {
    const agent = new Agent({ keepAlive: false, ...(app.caFile === undefined ? {} : { ca: readFileSync(app.caFile) }) })
    try {
      return await use(request.defaults({ baseUrl: app.apiUrl, headers: { 'x-github-api-version': '2022-11-28', 'user-agent': 'ambit' }, request: { fetch: httpsFetch(agent, timeoutMs), log: SILENT } }))
    } finally {
      agent.destroy()
    }
  }

  const proof = async (attempted: string): Promise<string> => {
    try {
      const privateKey = readPrivate(app.privateKeyFile, 'the App\'s private key')
      return (await createAppAuth({ appId: app.appId, privateKey })({ type: 'app' })).token
    } catch (error) {
      const why = error instanceof AmbitError ? error.detail.why : `${app.privateKeyFile} holds no private key that can sign`
      throw fail(attempted, why, error instanceof AmbitError ? error.detail.remedy : 'download a new private key in the App\'s settings')
    }
  }

  const revoke = async (token: string): Promise<void> => {
    const attempted = 'revoke a GitHub token'
    try {
      await call(ask => ask('DELETE /installation/token', { headers: { authorization: `token ${token}` } }))
    } catch (error) {
      throw fail(attempted, told(app, error, [token]), 'it ends by itself, an hour after it was minted; uninstalling the App ends it at once')
    }
  }

  return {
    revoke,
    async mint(asked) {
      const attempted = `mint a GitHub token with ${list(asked.permissions)} for ${asked.repositories.join(', ') || 'every repository of the installation'}`
      const jwt = await proof(attempted)
      let data: unknown
      try {
        ({ data } = await call(ask => ask('POST /app/installations/{id}/access_tokens', {
          id: app.installationId, headers: { authorization: `bearer ${jwt}` }, permissions: asked.permissions,
          ...(asked.repositories.length === 0 ? {} : { repositories: [...asked.repositories] }),
        })))
      } catch (error) {
        throw fail(attempted, told(app, error, [jwt]), remedyFor((error as { status?: number; response?: unknown }).response === undefined ? undefined : (error as { status: number }).status))
      }
      const parsed = reply.safeParse(data)
      if (!parsed.success) {
        const token = (data as { token?: unknown } | null)?.token
        const taken = typeof token === 'string' && /^[!-~]+$/.test(token) ? await takeBack(revoke, token) : ''
        throw fail(attempted, `${app.apiUrl} gave a reply that is not GitHub's (${parsed.error.issues[0]!.path.join('.') || 'it is no JSON object'})${taken}`, 'check `apiUrl` in the issuers file: it must be the API\'s root')
      }
      const { token, permissions, expires_at: expires } = parsed.data
      const broader = tooMuch(asked, parsed.data)
      if (broader !== null) throw fail(attempted, `${app.apiUrl} gave more than was asked: ${broader}${await takeBack(revoke, token)}`, 'do not use this issuer until it is known why')
      const lacking = Object.entries(asked.permissions).find(([name, level]) => LEVELS.indexOf(permissions[name] ?? '') < LEVELS.indexOf(level))
      if (lacking !== undefined) throw fail(attempted, `${app.apiUrl} did not give ${lacking.join(': ')}${await takeBack(revoke, token)}`, 'give the App that permission, and approve it for the installation')
      return { token, permissions, expires }
    },
  }
}

/** What the reply holds beyond what was asked; null: nothing. GitHub adds `metadata: read` to every token. */
function tooMuch(asked: Asked, given: z.infer<typeof reply>): string | null {
  for (const [name, level] of Object.entries(given.permissions)) {
    const most = LEVELS.indexOf(asked.permissions[name] ?? (name === 'metadata' ? 'read' : ''))
    if (!LEVELS.includes(level) || LEVELS.indexOf(level) > most) return `${printable(name)}: ${printable(level)}`
  }
  if (asked.repositories.length === 0) return null
  if (given.repository_selection === 'all') return 'every repository of the installation'
  const wanted = new Set(asked.repositories.map(name => name.toLowerCase()))
  if (given.repositories === undefined) return 'repositories that it does not name'
  const other = given.repositories.find(({ name }) => !wanted.has(name.toLowerCase()))
  return other === undefined ? null : `the repository ${printable(other.name)}`
}

async function takeBack(revoke: (token: string) => Promise<void>, token: string): Promise<string> {
  try {
    await revoke(token)
    return '; the token was revoked'
  } catch (error) {
    return `; and the token could not be revoked (${(error as AmbitError).detail.why})`
  }
}

/** What the issuer said, or why it could not be asked, without any of `secrets`. */
function told(app: GithubApp, error: unknown, secrets: readonly string[]): string {
  const { status, response, message, cause } = error as { status?: number; response?: { data?: unknown }; message: string; cause?: NodeJS.ErrnoException }
  const said = response === undefined ? undefined : (response.data as { message?: unknown } | undefined)?.message
  const text = response === undefined ? `${app.apiUrl}: ${cause?.message || cause?.code || message}` : `${app.apiUrl} answered ${status}${typeof said === 'string' ? `: ${said}` : ''}`
  return printable(secrets.reduce((clean, secret) => clean.replaceAll(secret, '[withheld]'), text))
}

function remedyFor(status: number | undefined): string {
  if (status === undefined) return 'check `apiUrl` and `caFile` in the issuers file, and that the daemon can reach it'
  if (status === 401) return 'check `appId` and the private key, and this host\'s clock'
  if (status === 404) return 'check `installationId`: the App must be installed there'
  if (status === 422) return 'ask only for permissions and repositories that the installation has, or widen the installation'
  if (status === 403) return 'check that the App is not suspended and not over its rate limit'
  return 'try again; if it stays, see the status page of the issuer'
}

function list(permissions: Readonly<Record<string, string>>): string {
  return Object.entries(permissions).map(([name, level]) => `${name}: ${level}`).join(', ')
}

/** What an issuer said may be anything; it must not act on a terminal, nor fill it. */
function printable(text: string): string {
  return text.slice(0, 300).replace(/[^ -~]/g, '?')
}

/** Octokit would print notices of deprecation to the daemon's standard error. */
const SILENT = { debug() {}, info() {}, warn() {}, error() {} }
