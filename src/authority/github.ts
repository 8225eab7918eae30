import { z } from 'zod'
import type { Coverage } from '../evidence/coverage.ts'
import type { ProcessRef } from '../evidence/records.ts'
import { canonicalAddress, canonicalName } from './destination.ts'
import { askedOfApi, askedOfGit, atLeast, doorsOf, LEVELS, type Asked, type Level, type Need } from './github-routes.ts'
import type { AuthorityKind, Comparison } from './kind.ts'
import { compareText, counted, grouped, repeated, some, who } from './words.ts'

const ID_TOKEN = 'id_token'
/** Every installation token holds `metadata: read`, whatever was asked for: it can be no over-authority. */
const METADATA = 'metadata'
const PUBLIC_API = 'https://api.github.com'

/**
 * A workflow without a `permissions:` block gets what its repository's settings say; this is the wider of the two defaults.
 * https://docs.github.com/actions/security-for-github-actions/security-guides/automatic-token-authentication
 */
const PERMISSIVE_DEFAULT = ['actions', 'attestations', 'checks', 'contents', 'deployments', 'discussions', 'issues', 'packages', 'pages', 'pull_requests', 'security_events', 'statuses']

const apiUrl = z.string().default(PUBLIC_API).transform((text, context) => {
  const url = URL.canParse(text) ? new URL(text) : null
  if (url === null || url.protocol !== 'https:' || url.username !== '' || url.password !== '' || url.search !== '' || url.hash !== '') {
    context.addIssue({ code: 'custom', message: 'must be an https URL of a host and at most a path, for instance https://ghe.example/api/v3', input: text })
    return z.NEVER
  }
  return `${url.origin}${url.pathname.replace(/\/+$/, '')}`
})

const schema = z.strictObject({
  permissions: z.record(
    z.string().superRefine((name, context) => {
      if (/^[a-z][a-z0-9_]{0,63}$/.test(name)) return
      const underscored = name.toLowerCase().replaceAll('-', '_')
      context.addIssue({ code: 'custom', message: `${JSON.stringify(name)} is not how the API names a permission${/^[a-z][a-z0-9_]*$/.test(underscored) ? `; write ${underscored}` : ''}`, input: name })
    }),
    z.enum(LEVELS),
  ).default({}).describe('permissions of the token, as the API names them (pull_requests); id_token: write lets the job ask for OIDC tokens'),
  repositories: z.array(z.string().regex(/^[A-Za-z0-9_.-]+\/[A-Za-z0-9_.-]+$/, 'must be OWNER/NAME')).default([]).describe('repositories that the token is for'),
  apiUrl: apiUrl.describe('where the API is; the default is GitHub\'s own'),
}).superRefine(({ permissions, repositories }, context) => {
  const twice = repeated(repositories)
  if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: ['repositories', repositories.lastIndexOf(twice)], input: repositories })
  // A token that is minted for no repository in particular is good for all of them.
  if (repositories.length === 0 && Object.keys(permissions).some(name => name !== ID_TOKEN)) {
    context.addIssue({ code: 'custom', message: 'permissions are granted, but repositories is empty: name the repositories that the token is for', path: ['permissions'], input: permissions })
  }
}).prefault({})

type Declared = z.infer<typeof schema>
type Call = { method: string; path: string; host: string; process: ProcessRef; connection: string; status: number | null }
type Flow = { name: string | null; address: string | null; port: number }
type Used = {
  calls: Call[]
  /** Calls without an answer, by connection. */
  waiting: Map<string, Call[]>
  unreadable: { connection: string; reason: string; process: ProcessRef }[]
  /** Allowed connections that carried something. */
  flows: Flow[]
  /** Names by the addresses that the resolver gave for them. */
  names: Map<string, Set<string>>
  /** The cell was handed a place to ask for OIDC tokens; null: where it is was not told. */
  oidc: { url: string | null } | undefined
}

/** One distinct request with what it asked of the token and how that went. */
type Act = { text: string; asked: Extract<Asked, { kind: 'needs' }>; outcome: 'done' | 'refused' | 'missing' | 'unanswered'; status: number | null; count: number; process: ProcessRef }

type Analysis = {
  acts: Act[]
  idToken: Call[]
  /** Why nothing can be called unused. */
  gaps: string[]
  /** Why this permission cannot be called unused. */
  open: Map<string, string>
}

type Authority = { name: string; port: number }

/** Permissions of the job's GitHub token, by the requests that it made to the API. */
export const github: AuthorityKind<Declared, Used> = {
  name: 'github',
  schema,

  fromJob(job) {
    const permissions = job.tokenPermissions ?? Object.fromEntries(PERMISSIVE_DEFAULT.map(name => [name, 'write' as const]))
    return { permissions: { ...permissions, ...(job.oidc ? { [ID_TOKEN]: 'write' as const } : {}) }, repositories: [], apiUrl: PUBLIC_API }
  },

  nothingUsed: () => ({ calls: [], waiting: new Map(), unreadable: [], flows: [], names: new Map(), oidc: undefined }),

  observe(event, used) {
    switch (event.type) {
      case 'api.request': {
        const connection = connectionOf(event)
        const call = { method: event.method, path: event.path, host: event.host, process: event.process, connection, status: null }
        used.calls.push(call)
        const queue = used.waiting.get(connection)
        if (queue === undefined) used.waiting.set(connection, [call])
        else queue.push(call)
        break
      }
      case 'api.response': {
        // 1xx comes before the answer (RFC 9110 15.2).
        if (event.status < 200) break
        const call = used.waiting.get(connectionOf(event))?.shift()
        if (call !== undefined) call.status = event.status
        break
      }
      case 'api.unreadable':
        used.unreadable.push({ connection: connectionOf(event), reason: event.reason, process: event.process })
        break
      case 'flow':
        if (event.decision === 'allowed' && event.bytesOut > 0) used.flows.push({ name: event.name === null ? null : canonicalName(event.name), address: canonicalAddress(event.address), port: event.port })
        break
      case 'dns':
        for (const answer of event.decision === 'allowed' ? event.answers : []) {
          const address = canonicalAddress(answer)
          if (address !== null) used.names.set(address, (used.names.get(address) ?? new Set()).add(canonicalName(event.name)))
        }
        break
      case 'credential':
        if (event.kind === 'oidc' && (event.outcome === 'delivered' || event.outcome === 'issued')) used.oidc = { url: /https:\/\/[^\s"'<>]+/.exec(event.detail)?.[0] ?? null }
        break
    }
  },

  compare(declared, used, coverage) {
    const analysis = analyse(declared, used, coverage)
    const rows = Object.keys(declared.permissions).sort(compareText).flatMap(name => permissionRows(name, declared.permissions[name]!, analysis, used))
    const beyond = analysis.acts.filter(act => exercised(act, declared).length === 0 && !act.asked.anyOf.some(need => need.permission === METADATA))
    for (const [grant, acts] of grouped(beyond, act => act.asked.anyOf.map(needText).join(' or '))) {
      const known = acts.filter(act => act.outcome !== 'unanswered')
      const done = acts.filter(act => act.outcome === 'done')
      rows.push({
        grant, declared: false, count: acts.reduce((sum, act) => sum + act.count, 0),
        outcome: done.length > 0 ? 'undeclared' : known.length > 0 ? 'denied' : 'unobservable',
        proof: some((done.length > 0 ? done : acts).map(actText), 2),
      })
    }
    if (declared.permissions[ID_TOKEN] === undefined && analysis.idToken.length > 0) {
      rows.push({ grant: `${ID_TOKEN}: write`, outcome: 'undeclared', declared: false, count: analysis.idToken.length, proof: `asked for by ${who(analysis.idToken[0]!.process)}` })
    }
    return rows
  },

  narrow(declared, used, coverage) {
    const analysis = analyse(declared, used, coverage)
    if (analysis.gaps.length > 0) return declared
    const permissions: Declared['permissions'] = {}
    for (const [name, level] of Object.entries(declared.permissions)) {
      const needed = neededLevel(name, level, analysis)
      const kept = analysis.open.has(name) || name === METADATA ? level : needed
      if (kept !== undefined) permissions[name] = kept
    }
    return { ...declared, permissions }
  },

  within(inner, outer) {
    const granted = Object.entries(inner.permissions)
    return granted.length === 0 || (inner.apiUrl === outer.apiUrl
      && granted.every(([name, level]) => atLeast(outer.permissions[name], level))
      && inner.repositories.every(name => outer.repositories.includes(name)))
  },

  toJob(narrowed) {
    const { [ID_TOKEN]: idToken, ...tokenPermissions } = narrowed.permissions
    return { tokenPermissions, oidc: idToken !== undefined }
  },
}

function connectionOf({ process, library, connection }: { process: ProcessRef; library: string; connection: string }): string {
  return `${process.pid}/${process.start}/${library}/${connection}`
}

function authorityOf(host: string): Authority | null {
  const match = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(\d{1,5}))?$/i.exec(host)
  return match === null ? null : { name: canonicalName(match[1]!), port: Number(match[2] ?? 443) }
}

function same(a: Authority | null, b: Authority): boolean {
  return a !== null && a.name === b.name && a.port === b.port
}

function analyse(declared: Declared, used: Used, coverage: Coverage): Analysis {
  const url = new URL(declared.apiUrl)
  const api: Authority = { name: canonicalName(url.hostname), port: Number(url.port || 443) }
  const prefix = url.pathname.replace(/\/+$/, '')
  const oidcUrl = used.oidc?.url != null && URL.canParse(used.oidc.url) ? new URL(used.oidc.url) : null
  const oidc: Authority | null = oidcUrl === null ? null : { name: canonicalName(oidcUrl.hostname), port: Number(oidcUrl.port || 443) }

  // Names of connections come from the resolver, too.
  const gaps = [...coverage.gaps('api'), ...coverage.gaps('network'), ...coverage.gaps('dns')]
  const open = new Map<string, string>()
  const idToken: Call[] = []
  const acts = new Map<string, Act>()
  const unmapped = new Set<string>()
  for (const call of used.calls) {
    const authority = authorityOf(call.host)
    if (oidc !== null && same(authority, oidc) && pathBelow(call.path, oidcUrl!.pathname)) {
      idToken.push(call)
      continue
    }
    if (authority !== null && !same(authority, api)) {
      for (const permission of doorsOf(api.name, authority.name)) open.set(permission, `a request to ${authority.name} may have used it`)
      continue
    }
    const asked = call.path.startsWith(`${prefix}/`) ? askedOfApi(call.method, call.path.slice(prefix.length)) : { kind: 'unknown' as const }
    const known = asked.kind === 'unknown' ? askedOfGit(call.path) : asked
    if (known.kind === 'unknown') unmapped.add(`${call.method} ${call.path}`)
    if (known.kind === 'needs') addAct(acts, call, known)
  }
  if (unmapped.size > 0) gaps.push(`nobody can say which permission was used by ${some([...unmapped], 2)}`)
  gaps.push(...unreadGaps(used, api))

  for (const flow of used.flows) {
    for (const name of namesOf(flow, used)) {
      for (const permission of doorsOf(api.name, name)) open.set(permission, `the token may have been used at ${name}, whose requests are not read`)
    }
  }
  const blind = idTokenGap(used, oidc, coverage)
  if (blind !== undefined) open.set(ID_TOKEN, blind)
  return { acts: [...acts.values()], idToken, gaps, open }
}

function pathBelow(path: string, folder: string): boolean {
  const bare = path.split('?')[0]!
  return bare === folder || bare.startsWith(folder.endsWith('/') ? folder : `${folder}/`)
}

function namesOf(flow: Flow, used: Used): string[] {
  if (flow.name !== null) return [flow.name]
  return flow.address === null ? [] : [flow.address, ...used.names.get(flow.address) ?? []]
}

function flowsTo(used: Used, { name, port }: Authority): Flow[] {
  return used.flows.filter(flow => flow.port === port && namesOf(flow, used).includes(name))
}

/** Connections that a request was read on. */
function connectionsTo(used: Used, to: Authority): Set<string> {
  return new Set(used.calls.filter(call => same(authorityOf(call.host), to)).map(call => call.connection))
}

/** Reconciles what was read with what the relay carried: connections to the API on which something went by unread. */
function unreadGaps(used: Used, api: Authority): string[] {
  const read = connectionsTo(used, api)
  const carried = flowsTo(used, api).length
  const gaps: string[] = []
  // More is as bad as fewer: requests that no connection carried were made up, and stand for others that were not read.
  if (carried !== read.size) gaps.push(`${counted(carried, 'connection')} to ${api.name}, requests were read on ${read.size}`)
  // One that is unreadable from its start leads to the API only if the relay carried one more there than were read.
  for (const { connection, reason, process } of used.unreadable) {
    if (read.has(connection) || carried !== read.size) gaps.push(`a connection of ${who(process)} could not be read: ${reason}`)
  }
  return gaps
}

function idTokenGap(used: Used, oidc: Authority | null, coverage: Coverage): string | undefined {
  const credential = coverage.gaps('credential')[0]
  if (credential !== undefined) return credential
  if (used.oidc === undefined) return undefined
  if (oidc === null) return 'where the job would ask for it was not recorded'
  const read = connectionsTo(used, oidc).size
  const carried = flowsTo(used, oidc).length
  return carried !== read ? `${counted(carried, 'connection')} to ${oidc.name}, requests were read on ${read}` : undefined
}

function addAct(acts: Map<string, Act>, call: Call, asked: Act['asked']): void {
  const text = `${call.method} ${call.path}`
  const key = `${text} ${call.status}`
  const known = acts.get(key)
  if (known !== undefined) known.count++
  else acts.set(key, { text, asked, outcome: outcomeOf(call.status), status: call.status, count: 1, process: call.process })
}

/** GitHub answers 404 where a token may not know that a thing exists, as well as where it does not. */
function outcomeOf(status: number | null): Act['outcome'] {
  if (status === null) return 'unanswered'
  if (status === 401 || status === 403) return 'refused'
  return status === 404 ? 'missing' : 'done'
}

/** The needs of an act that the declared permissions meet. Where several would do, nobody sees which one did: all of them count. */
function exercised(act: Act, declared: Declared): Need[] {
  return act.asked.anyOf.filter(need => atLeast(declared.permissions[need.permission], need.level))
}

function actsOf(name: string, level: Level, acts: readonly Act[]): { act: Act; need: Need }[] {
  return acts.flatMap(act => act.asked.anyOf.filter(need => need.permission === name && atLeast(level, need.level)).map(need => ({ act, need })))
}

/** The least level that all of the permission's acts need; undefined: there were none. */
function neededLevel(name: string, level: Level, { acts, idToken }: Analysis): Level | undefined {
  if (name === ID_TOKEN) return idToken.length > 0 ? level : undefined
  return [...LEVELS].reverse().find(one => actsOf(name, level, acts).some(({ need }) => need.level === one))
}

function permissionRows(name: string, level: Level, analysis: Analysis, used: Used): Comparison[] {
  const row = (at: Level, outcome: Comparison['outcome'], count: number | null, proof: string): Comparison => ({ grant: `${name}: ${at}`, outcome, declared: true, count, proof })
  const gap = analysis.gaps[0] ?? analysis.open.get(name)
  if (name === ID_TOKEN) {
    const asked = analysis.idToken
    if (asked.length > 0) return [row(level, 'used', asked.length, `asked for by ${who(asked[0]!.process)}`)]
    if (gap !== undefined) return [row(level, 'unobservable', 0, gap)]
    return [row(level, 'unused', 0, used.oidc === undefined ? 'the cell was handed no place to ask for it' : 'no token was asked for')]
  }
  const mine = actsOf(name, level, analysis.acts)
  if (mine.length === 0) {
    if (name === METADATA) return [row(level, 'used', null, 'every token holds it')]
    return [gap === undefined ? row(level, 'unused', 0, 'no request needed it') : row(level, 'unobservable', 0, gap)]
  }
  const needed = neededLevel(name, level, analysis)!
  const passed = mine.filter(({ act }) => act.outcome !== 'refused')
  const shown = passed.length > 0 ? passed : mine
  const count = shown.reduce((sum, { act }) => sum + act.count, 0)
  const rows = [row(needed, passed.length > 0 ? 'used' : 'denied', count, some(shown.map(({ act }) => actText(act)), 2))]
  if (needed !== level && name !== METADATA) {
    rows.unshift(gap === undefined ? row(level, 'unused', 0, `only ${needed} was used`) : row(level, 'unobservable', 0, `only ${needed} was seen: ${gap}`))
  }
  return rows
}

function needText({ permission, level }: Need): string {
  return `${permission}: ${level}`
}

function actText({ text, status, count, outcome, process }: Act): string {
  const answer = status === null ? 'no answer was seen' : outcome === 'missing' ? '404, which is also what a missing thing gets' : String(status)
  return `${text}${count > 1 ? ` ×${count}` : ''} by ${who(process)}: ${answer}`
}
