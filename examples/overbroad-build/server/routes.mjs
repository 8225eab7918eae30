// Which permission a route needs, from the same table that the product reads: data/github-permissions.tsv, made from
// GitHub's own documentation.
import { readFileSync } from 'node:fs'

const TABLE = new URL('../../../data/github-permissions.tsv', import.meta.url)
const PREFIX = '/repos/{owner}/{repo}'
const ACCESS = ['read', 'write', 'admin']

/**
 * Every documented route below /repos/{owner}/{repo}.
 * @returns {{ key: string, verb: string, segments: string[], needs: { permission: string, access: string }[] }[]}
 *   `key`: verb and template below the repository; `needs`: alternatives, any of which is enough
 */
export function readRoutes() {
  const routes = new Map()
  const [, ...lines] = readFileSync(TABLE, 'utf8').trimEnd().split('\n')
  for (const line of lines) {
    const [permission, access, verb, template] = line.split('\t')
    if (template !== PREFIX && !template.startsWith(`${PREFIX}/`)) continue
    const below = template.slice(PREFIX.length)
    const key = `${verb} ${below}`
    const route = routes.get(key) ?? { key, verb, segments: below.split('/').slice(1), needs: [] }
    route.needs.push({ permission, access })
    routes.set(key, route)
  }
  for (const route of routes.values()) {
    // "workflows" is never enough by itself: it comes on top of another permission, for files below .github/workflows.
    const alone = route.needs.filter(({ permission }) => permission !== 'workflows')
    if (alone.length > 0) route.needs = alone
    // The most literal route first: /issues/comments is not an issue of that number.
    route.rank = route.segments.filter(segment => !segment.startsWith('{')).length
  }
  return [...routes.values()].sort((a, b) => b.rank - a.rank || a.segments.length - b.segments.length)
}

/** The route and its parameters for the segments below the repository, or null. */
export function findRoute(routes, verb, segments) {
  for (const route of routes) {
    if (route.verb !== verb) continue
    const parameters = match(route.segments, segments)
    if (parameters !== null) return { route, parameters }
  }
  return null
}

/** Only a path of files and a reference at the end may hold slashes. */
function match(template, segments) {
  const last = template.at(-1)
  const open = last === '{path}' || last === '{ref}'
  if (open ? segments.length < template.length : segments.length !== template.length) return null
  const parameters = {}
  for (const [index, part] of template.entries()) {
    const given = open && index === template.length - 1 ? segments.slice(index).join('/') : segments[index]
    if (given === '') return null
    if (part.startsWith('{')) parameters[part.slice(1, -1)] = given
    else if (part !== given) return null
  }
  return parameters
}

export function allows(held, { permission, access }) {
  return ACCESS.indexOf(held[permission] ?? '') >= ACCESS.indexOf(access)
}
