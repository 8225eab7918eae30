// One App, installed on one repository: mints, knows and revokes its tokens.
import { randomBytes } from 'node:crypto'
import { Refusal } from './http.mjs'
import { readJwt } from './jwt.mjs'
import { allows } from './routes.mjs'

/** What the App was given when it was installed. A token holds this or less. */
const PERMISSIONS = {
  actions: 'read', checks: 'write', contents: 'write', deployments: 'write', issues: 'write', metadata: 'read',
  packages: 'write', pull_requests: 'write', statuses: 'write',
}
const LIFE_MS = 3_600_000
const JWT_LIFE_S = 600
/** GitHub's clock and the caller's may differ by this much. */
const LEEWAY_S = 60
const MOST_TOKENS = 1000

export function openInstallation({ appId, installationId, appPublicKey, repository }) {
  const tokens = new Map()

  /** Throws unless the bearer is a JWT that the App signed and that is valid now. */
  function checkApp(bearer) {
    const claims = bearer === null ? null : readJwt(bearer, appPublicKey)
    if (claims === null) throw new Refusal(401, 'A JSON web token could not be decoded')
    const now = Date.now() / 1000
    if (!Number.isInteger(claims.exp) || claims.exp <= now) {
      throw new Refusal(401, "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires")
    }
    if (claims.exp > now + JWT_LIFE_S + LEEWAY_S) throw new Refusal(401, "'Expiration time' claim ('exp') is too far in the future")
    if (!Number.isInteger(claims.iat) || claims.iat > now + LEEWAY_S) throw new Refusal(401, "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued")
    if (String(claims.iss) !== String(appId)) throw new Refusal(404, 'Integration not found')
  }

  function mint(id, body) {
    if (id !== String(installationId)) throw new Refusal(404, 'Not Found')
    const permissions = body.permissions === undefined ? { ...PERMISSIONS } : checkPermissions(body.permissions)
    const selected = body.repositories !== undefined
    if (selected) checkRepositories(body.repositories, repository.name)
    const token = `ghs_${randomBytes(27).toString('base64url').replace(/[-_]/g, 'x')}`
    const expires = Date.now() + LIFE_MS
    for (const [held, { expires: until }] of tokens) if (until <= Date.now()) tokens.delete(held)
    if (tokens.size >= MOST_TOKENS) tokens.delete(tokens.keys().next().value)
    tokens.set(token, { permissions, expires })
    return {
      token, expires_at: new Date(expires).toISOString().replace(/\.\d+Z$/, 'Z'), permissions,
      repository_selection: selected ? 'selected' : 'all',
      ...(selected ? { repositories: [repository.summary()] } : {}),
    }
  }

  return {
    checkApp, mint,
    /** The permissions of a live token; throws 401 for anything else. */
    permissionsOf(bearer) {
      if (bearer === null) throw new Refusal(401, 'Requires authentication')
      const found = tokens.get(bearer)
      if (found === undefined || found.expires <= Date.now()) throw new Refusal(401, 'Bad credentials')
      return found.permissions
    },
    revoke: bearer => tokens.delete(bearer),
  }
}

function checkPermissions(asked) {
  if (typeof asked !== 'object' || asked === null || Array.isArray(asked)) throw new Refusal(422, 'Invalid request.\n\nFor \'properties/permissions\', value is not an object.')
  for (const [permission, access] of Object.entries(asked)) {
    if (!['read', 'write', 'admin'].includes(access)) throw new Refusal(422, `Invalid request.\n\n${JSON.stringify(access)} is not an access to ${permission}.`)
    if (!allows(PERMISSIONS, { permission, access })) throw new Refusal(422, 'The permissions requested are not granted to this installation.')
  }
  // GitHub adds it to every token.
  return { metadata: 'read', ...asked }
}

function checkRepositories(asked, name) {
  const known = Array.isArray(asked) && asked.length > 0 && asked.length <= 500 && asked.every(one => typeof one === 'string' && one.toLowerCase() === name.toLowerCase())
  if (!known) throw new Refusal(422, 'There is at least one repository that does not exist or is not accessible to the parent installation.')
}
