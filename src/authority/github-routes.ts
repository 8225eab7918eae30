import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { PACKAGE_ROOT } from '../package.ts'

export const LEVELS = ['read', 'write', 'admin'] as const
export type Level = (typeof LEVELS)[number]
export type Need = { permission: string; level: Level }

/** What a request asks of its token. */
export type Asked =
  /** Any one of `anyOf` is enough. */
  | { kind: 'needs'; anyOf: Need[] }
  /** Answered to everybody, or to every token. */
  | { kind: 'nothing' }
  | { kind: 'unknown' }

type Route = { verb: string; segments: string[]; needs: Need[] }

/**
 * Packages have REST routes that take a token's `packages` permission, but GitHub's table of permissions leaves them out.
 * https://docs.github.com/rest/packages/packages
 */
const PACKAGES = ['/orgs/{org}', '/users/{username}', '/user'].flatMap(owner => {
  const one = `${owner}/packages/{package_type}/{package_name}`
  return [
    ['read', 'get', `${owner}/packages`], ['read', 'get', one], ['admin', 'delete', one], ['admin', 'post', `${one}/restore`],
    ['read', 'get', `${one}/versions`], ['read', 'get', `${one}/versions/{package_version_id}`],
    ['admin', 'delete', `${one}/versions/{package_version_id}`], ['admin', 'post', `${one}/versions/{package_version_id}/restore`],
  ] as const
})

/** Routes that need no permission of their own. */
const FREE = [
  'get /', 'get /meta', 'get /rate_limit', 'get /zen', 'get /octocat', 'get /emojis', 'get /versions', 'get /events', 'get /feeds',
  'get /licenses', 'get /licenses/{license}', 'get /gitignore/templates', 'get /gitignore/templates/{name}',
  'get /codes_of_conduct', 'get /codes_of_conduct/{key}', 'get /repos/{owner}/{repo}/license', 'post /markdown', 'post /markdown/raw',
  'get /installation/repositories', 'delete /installation/token', 'get /users/{username}', 'get /search/{what}',
]

/** Parameters whose values hold slashes: files, references, pairs of references. */
const LONG = new Set(['{path}', '{ref}', '{basehead}', '{branch}', '{tag}', '{dir}'])

let table: Map<string, Route[]> | undefined

/** Facts from GitHub's documentation data (github/docs, CC-BY-4.0, © GitHub): data/github-permissions.tsv. */
function routes(): Map<string, Route[]> {
  if (table !== undefined) return table
  const byKey = new Map<string, Route>()
  const add = (verb: string, template: string, need: Need | null): void => {
    const key = `${verb} ${template}`
    const route = byKey.get(key) ?? { verb, segments: split(template), needs: [] }
    if (need !== null) route.needs.push(need)
    byKey.set(key, route)
  }
  for (const route of FREE) {
    const [verb, template] = route.split(' ') as [string, string]
    add(verb, template, null)
  }
  for (const [level, verb, template] of PACKAGES) add(verb, template, { permission: 'packages', level })
  const [, ...lines] = readFileSync(join(PACKAGE_ROOT, 'data/github-permissions.tsv'), 'utf8').trimEnd().split('\n')
  for (const line of lines) {
    const [permission, level, verb, template] = line.split('\t') as [string, Level, string, string]
    add(verb, template, { permission, level })
  }
  const verbs = new Map<string, Route[]>()
  for (const route of byKey.values()) verbs.set(route.verb, [...verbs.get(route.verb) ?? [], route])
  for (const list of verbs.values()) list.sort(bySpecificity)
  return (table = verbs)
}

function split(path: string): string[] {
  return path.split('/').filter(Boolean)
}

/** More literal segments first; among equals the one that is literal further left, then the longer one. */
function bySpecificity(a: Route, b: Route): number {
  const literal = (segment: string): number => (segment.startsWith('{') ? 0 : 1)
  const count = (route: Route): number => route.segments.reduce((sum, segment) => sum + literal(segment), 0)
  const first = a.segments.findIndex((segment, index) => literal(segment) !== literal(b.segments[index] ?? '{'))
  return count(b) - count(a) || (first === -1 ? 0 : literal(b.segments[first] ?? '{') - literal(a.segments[first]!)) || b.segments.length - a.segments.length
}

function matches(template: readonly string[], path: readonly string[], t = 0, p = 0): boolean {
  if (t === template.length) return p === path.length
  if (p >= path.length) return false
  const segment = template[t]!
  if (!segment.startsWith('{')) return segment === path[p] && matches(template, path, t + 1, p + 1)
  if (!LONG.has(segment)) return matches(template, path, t + 1, p + 1)
  for (let end = p + 1; end <= path.length; end++) if (matches(template, path, t + 1, end)) return true
  return false
}

/** `path`: below the API's root, query and all. Unknown: no documented route looks like it, so nobody can say what it used. */
export function askedOfApi(method: string, path: string): Asked {
  const verb = method === 'HEAD' ? 'get' : method.toLowerCase()
  const bare = path.split(/[?#]/)[0]!
  // A path that the recorder cut short, or one that a server might read as another, is no known one.
  if (bare.endsWith('...') || split(bare).some(segment => segment === '.' || segment === '..')) return { kind: 'unknown' }
  const segments = split(bare)
  const route = routes().get(verb)?.find(candidate => matches(candidate.segments, segments))
  if (route === undefined) return { kind: 'unknown' }
  if (route.needs.length === 0) return { kind: 'nothing' }
  return { kind: 'needs', anyOf: withoutWorkflows(route.needs, bare) }
}

/**
 * Writing a file needs `contents`, and `workflows` on top of it only where the file is a workflow. The table lists both for
 * the route. For references and releases nobody sees what they lead to: there `workflows` stays among what may have been used.
 */
function withoutWorkflows(needs: Need[], path: string): Need[] {
  if (needs.length < 2 || !/^\/repos\/[^/]+\/[^/]+\/contents\//.test(path)) return needs
  return decoded(path).includes('/contents/.github/workflows/') ? needs : needs.filter(need => need.permission !== 'workflows')
}

function decoded(path: string): string {
  try {
    return decodeURIComponent(path)
  } catch {
    return path
  }
}

/** Git's own protocol (gitprotocol-http(5)) and its large files on the server that the API belongs to. */
export function askedOfGit(path: string): Asked {
  const match = /^\/[^/]+\/[^/]+\/(info\/refs|git-upload-pack|git-receive-pack)(?:\?(.*))?$/.exec(path)
  if (match === null) return { kind: 'unknown' }
  const service = match[1] === 'info/refs' ? new URLSearchParams(match[2] ?? '').get('service') : match[1]!
  if (service === 'git-upload-pack') return { kind: 'needs', anyOf: [{ permission: 'contents', level: 'read' }] }
  return service === 'git-receive-pack' ? { kind: 'needs', anyOf: [{ permission: 'contents', level: 'write' }] } : { kind: 'unknown' }
}

export function atLeast(held: Level | undefined, needed: Level): boolean {
  return held !== undefined && LEVELS.indexOf(held) >= LEVELS.indexOf(needed)
}

/** The server that an API belongs to: github.com, SUBDOMAIN.ghe.com, or the host of an Enterprise Server. */
function serverOf(apiHost: string): string {
  return apiHost.startsWith('api.') ? apiHost.slice(4) : apiHost
}

/**
 * Other hosts that take the same token, with the permissions that it may be used for there. Their traffic is not read, so a
 * connection to one leaves the question open.
 */
export function doorsOf(apiHost: string, host: string): string[] {
  if (host === apiHost) return []
  const server = serverOf(apiHost)
  if (host === server || ['codeload', 'uploads', 'raw', 'media', 'lfs'].some(name => host === `${name}.${server}`)) return ['contents']
  if (server === 'github.com') {
    if (host === 'raw.githubusercontent.com' || host === 'media.githubusercontent.com') return ['contents']
    if (host === 'ghcr.io' || host === 'pkg.github.com' || host.endsWith('.pkg.github.com')) return ['packages']
    if (host === 'models.github.ai' || host === 'models.inference.ai.azure.com') return ['models']
    return []
  }
  return host.endsWith(`.${server}`) ? ['contents', 'packages'] : []
}
