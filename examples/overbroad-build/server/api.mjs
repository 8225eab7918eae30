import { randomUUID } from 'node:crypto'
import { readJson, Refusal, reply } from './http.mjs'
import { openInstallation } from './installation.mjs'
import { openOidc } from './oidc.mjs'
import { openRepository } from './repository.mjs'
import { allows, findRoute, readRoutes } from './routes.mjs'

/** The request listener of the API. Throws when a route that it answers is not in the permission table. */
export function openApi({ appId, installationId, appPublicKey, oidcKeys, requestToken, repository: fullName, origin }) {
  const repository = openRepository(fullName, origin)
  const installation = openInstallation({ appId, installationId, appPublicKey, repository })
  const oidc = openOidc({ origin, repository: fullName, requestToken, ...oidcKeys })
  const routes = readRoutes()
  const documented = new Set(routes.map(({ key }) => key))
  for (const key of Object.keys(repository.handlers)) if (!documented.has(key)) throw new Error(`no permission is known for "${key}"`)

  async function answer(request, response) {
    if (!URL.canParse(request.url, origin)) throw new Refusal(400, 'Bad Request')
    const { pathname, searchParams: query } = new URL(request.url, origin)
    const segments = decode(pathname)
    const verb = request.method.toLowerCase()
    const bearer = bearerOf(request)

    if (verb === 'get' && Object.hasOwn(oidc, pathname)) return reply(response, 200, oidc[pathname]({ bearer, query }))
    if (verb === 'post' && segments.length === 4 && pathname.startsWith('/app/installations/') && segments[3] === 'access_tokens') {
      installation.checkApp(bearer)
      return reply(response, 201, installation.mint(segments[2], await readJson(request)))
    }
    if (verb === 'delete' && pathname === '/installation/token') {
      installation.permissionsOf(bearer)
      installation.revoke(bearer)
      return reply(response, 204, null)
    }

    const held = installation.permissionsOf(bearer)
    const [top, owner = '', name = '', ...below] = segments
    // What a token cannot see is not there, so that nobody learns which repositories exist.
    if (top !== 'repos' || `${owner}/${name}`.toLowerCase() !== fullName.toLowerCase()) throw new Refusal(404, 'Not Found')
    const found = findRoute(routes, verb, below)
    if (found === null) throw new Refusal(404, 'Not Found')
    const { route, parameters } = found
    const more = verb !== 'get' && parameters.path?.startsWith('.github/workflows/') ? [{ permission: 'workflows', access: 'write' }] : []
    const accepted = { 'x-accepted-github-permissions': route.needs.map(need => [need, ...more].map(({ permission, access }) => `${permission}=${access}`).join(',')).join('; ') }
    if (!route.needs.some(need => allows(held, need)) || !more.every(need => allows(held, need))) throw new Refusal(403, 'Resource not accessible by integration', accepted)
    const handler = repository.handlers[route.key]
    if (handler === undefined) throw new Refusal(501, 'GitHub has this route, the example does not', accepted)
    const { status, body } = handler({ parameters, query, body: verb === 'get' ? {} : await readJson(request), accept: request.headers.accept ?? '' })
    return reply(response, status, body, accepted)
  }

  return (request, response) => {
    response.setHeader('x-github-request-id', randomUUID())
    request.on('error', () => response.destroy())
    answer(request, response).catch(error => {
      const refusal = error instanceof Refusal ? error : new Refusal(500, 'Server Error')
      if (refusal !== error) process.stderr.write(`server: ${error.stack}\n`)
      if (response.headersSent || request.socket.destroyed) response.destroy()
      else reply(response, refusal.status, { message: refusal.message, documentation_url: 'https://docs.github.com/rest', status: String(refusal.status) }, refusal.headers)
    })
  }
}

/** RFC 6750; GitHub takes "token" as well. */
function bearerOf(request) {
  return /^(?:bearer|token) +(\S+)$/i.exec(request.headers.authorization ?? '')?.[1] ?? null
}

function decode(pathname) {
  try {
    return pathname.split('/').slice(1).map(decodeURIComponent)
  } catch {
    throw new Refusal(400, 'Bad Request')
  }
}
