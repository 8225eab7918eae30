import type { Contract } from '../contract/schema.ts'
import type { EvidenceBody, HookReport } from '../evidence/records.ts'
import { cellEnvironment } from './environment.ts'
import type { Issuers } from './config.ts'
import { githubIssuer } from './github-app.ts'
import { readSecrets } from './secrets.ts'
import { AmbitError } from '../errors.ts'

export type Granted = {
  /** NAME=value: all that the cell's command starts with. */
  env: string[]
  handed: { name: string; content: string; mode: number }[]
  events: EvidenceBody[]
  hooks: HookReport[]
  /** Where the handed credentials can be used: the APIs whose calls are to be seen. */
  apiHosts: string[]
  /** Tokens that a later daemon must take back, if this one dies. */
  tokens: string[]
  /** Takes back what can be taken back; call it once, when the cell is gone. */
  revoke(): Promise<EvidenceBody[]>
}

/** Mints and gathers what the contract declares, and nothing else. Throws before anything is handed over if an issuer refuses. */
export async function grantCredentials(contract: Contract, issuers: Issuers, caller: { env: Record<string, string> }): Promise<Granted> {
  const { github, secret } = contract.spec.authority
  const { environment } = contract.spec
  const values: Record<string, string> = {}
  const handed: Granted['handed'] = []
  const events: EvidenceBody[] = []
  const tokens: string[] = []
  const apiHosts = new Set<string>()

  const appPermissions = Object.fromEntries(Object.entries(github.permissions).filter(([name]) => name !== 'id_token'))
  if (Object.keys(appPermissions).length > 0) {
    if (issuers.github === undefined) {
      throw new AmbitError('CREDENTIAL_REFUSED', {
        attempted: 'mint the declared GitHub token', why: 'this daemon knows no GitHub App', remedy: 'give the daemon an issuers file with a `github` part (`ambit daemon --issuers FILE`), or take `github` out of the contract',
      })
    }
    const issuer = githubIssuer(issuers.github)
    const minted = await issuer.mint({ permissions: appPermissions, repositories: github.repositories.map(name => name.split('/').at(-1)!) })
    values['GITHUB_TOKEN'] = minted.token
    apiHosts.add(new URL(github.apiUrl).host)
    events.push({ type: 'credential', kind: 'github', name: 'GITHUB_TOKEN', outcome: 'issued', grants: minted.permissions, expires: minted.expires, delivery: 'environment', detail: 'installation token with the declared permissions' })
    tokens.push(minted.token)
  }
  if (github.permissions['id_token'] !== undefined && issuers.oidc !== undefined) {
    values['ACTIONS_ID_TOKEN_REQUEST_URL'] = issuers.oidc.requestUrl
    values['ACTIONS_ID_TOKEN_REQUEST_TOKEN'] = issuers.oidc.requestToken
    apiHosts.add(new URL(issuers.oidc.requestUrl).host)
    events.push({ type: 'credential', kind: 'oidc', name: 'ACTIONS_ID_TOKEN_REQUEST_TOKEN', outcome: 'delivered', grants: { 'id-token': 'write' }, expires: null, delivery: 'environment', detail: issuers.oidc.requestUrl })
  }
  for (const { name, value } of readSecrets(secret.map(one => one.name), issuers)) {
    const delivery = secret.find(one => one.name === name)!.delivery
    if (delivery === 'environment') values[name] = value
    else handed.push({ name: `secrets/${name}`, content: value, mode: 0o400 })
    events.push({ type: 'credential', kind: 'secret', name, outcome: 'delivered', grants: {}, expires: null, delivery, detail: '' })
  }
  return {
    env: cellEnvironment({ hostEnv: caller.env, pass: environment.pass, set: environment.set, credentials: values }),
    handed, events, apiHosts: [...apiHosts],
    hooks: [{ name: 'issuers', family: 'credential', state: 'attached' }],
    tokens: [...tokens],
    revoke: async () => revokeTokens(tokens.splice(0), issuers),
  }
}

/** Takes GitHub tokens back, each with a record of whether that worked. */
export async function revokeTokens(tokens: readonly string[], issuers: Issuers): Promise<EvidenceBody[]> {
  return Promise.all(tokens.map(async (token): Promise<EvidenceBody> => {
    const told = { type: 'credential', kind: 'github', name: 'GITHUB_TOKEN', grants: {}, expires: null, delivery: 'none' } as const
    try {
      if (issuers.github === undefined) throw new Error('this daemon knows no GitHub App any more')
      await githubIssuer(issuers.github).revoke(token)
      return { ...told, outcome: 'revoked', detail: 'the cell has ended' }
    } catch (error) {
      return { ...told, outcome: 'revoke-failed', detail: (error as Error).message.split('\n')[0]! }
    }
  }))
}
