import { execFileSync } from 'node:child_process'
import { createPublicKey, generateKeyPairSync, verify } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:https'
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import t, { type Test } from 'tap'
import { githubIssuer } from '../../src/credentials/github-app.ts'
import { AmbitError } from '../../src/errors.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-github-'))
execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=api', '-addext', 'subjectAltName=IP:127.0.0.1', '-keyout', join(dir, 'tls-key.pem'), '-out', join(dir, 'ca.pem')], { stdio: 'pipe' })
const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048, privateKeyEncoding: { type: 'pkcs1', format: 'pem' }, publicKeyEncoding: { type: 'spki', format: 'pem' } })
const privateKeyFile = join(dir, 'app-key.pem')
writeFileSync(privateKeyFile, privateKey, { mode: 0o600 })

const TOKEN = 'ghs_999_eyJhbGciOi.secret-of-the-test'
type Seen = { method: string; url: string; authorization: string; body: { permissions?: Record<string, string>; repositories?: string[] } }
let seen: Seen[] = []
let answer: (seen: Seen, res: ServerResponse, req: IncomingMessage) => void
const minted = (extra: object = {}): object => ({ token: TOKEN, expires_at: '2030-01-01T00:00:00Z', permissions: { contents: 'read', metadata: 'read' }, repository_selection: 'selected', repositories: [{ name: 'Repo' }], ...extra })
const json = (res: ServerResponse, status: number, body: unknown): void => { res.writeHead(status, { 'content-type': 'application/json; charset=utf-8' }).end(body === undefined ? undefined : JSON.stringify(body)) }
/** Checks the App's proof as GitHub does (RFC 7519, RS256), then answers. */
const gives = (body: unknown) => (one: Seen, res: ServerResponse): void => {
  if (one.method === 'DELETE') return one.authorization === `token ${TOKEN}` ? void res.writeHead(204).end() : json(res, 401, { message: 'Bad credentials' })
  const [head, payload, signature] = one.authorization.replace(/^bearer /i, '').split('.') as [string, string, string]
  const claims = JSON.parse(Buffer.from(payload, 'base64url').toString()) as { iss: string; iat: number; exp: number }
  const genuine = verify('sha256', Buffer.from(`${head}.${payload}`), createPublicKey(publicKey), Buffer.from(signature, 'base64url'))
  const now = Date.now() / 1000
  if (!genuine || String(claims.iss) !== '42' || claims.exp < now || claims.exp > now + 600 || claims.iat > now) return json(res, 401, { message: 'A JSON web token could not be decoded' })
  if (one.url !== '/api/app/installations/7/access_tokens') return json(res, 404, { message: 'Integration not found' })
  json(res, 201, body)
}
const server = createServer({ key: readFileSync(join(dir, 'tls-key.pem')), cert: readFileSync(join(dir, 'ca.pem')) }, (req, res) => {
  let text = ''
  req.on('data', data => { text += data }).on('end', () => {
    const one = { method: req.method!, url: req.url!, authorization: req.headers.authorization ?? '', body: text === '' ? {} : JSON.parse(text) as Seen['body'] }
    seen.push(one)
    answer(one, res, req)
  })
})
await new Promise<void>(resolve => server.listen(0, '127.0.0.1', () => resolve()))
const app = { appId: '42', installationId: '7', privateKeyFile, apiUrl: `https://127.0.0.1:${(server.address() as AddressInfo).port}/api`, caFile: join(dir, 'ca.pem') }
t.teardown(() => {
  server.closeAllConnections()
  server.close()
  rmSync(dir, { recursive: true, force: true })
})
t.beforeEach(() => { seen = [] })

const ASKED = { permissions: { contents: 'read' }, repositories: ['repo'] }
/** The error, after a look for anything that must not be in it. */
async function refusal(t: Test, promise: Promise<unknown>): Promise<AmbitError> {
  const error = await promise.then(() => { throw new Error('it was not refused') }, (failure: unknown) => failure as AmbitError)
  t.ok(error instanceof AmbitError && error.code === 'CREDENTIAL_REFUSED', error.message)
  const everything = `${inspect(error, { depth: 20 })} ${JSON.stringify(error)}`
  t.notMatch(everything, /secret-of-the-test/, 'no token in the error')
  for (const { authorization } of seen) if (authorization.startsWith('bearer')) t.notOk(everything.includes(authorization.slice(7)), 'nor the App\'s proof')
  t.notMatch(everything, /PRIVATE KEY/)
  return error
}

t.test('a token is minted with what is asked, proven by the App\'s key, and revoked', async t => {
  answer = gives(minted())
  const issuer = githubIssuer(app)
  t.strictSame(await issuer.mint(ASKED), { token: TOKEN, permissions: { contents: 'read', metadata: 'read' }, expires: '2030-01-01T00:00:00Z' })
  t.strictSame(seen.map(one => [one.method, one.url, one.body]), [['POST', '/api/app/installations/7/access_tokens', ASKED]])
  await issuer.revoke(TOKEN)
  t.match(seen[1], { method: 'DELETE', url: '/api/installation/token', authorization: `token ${TOKEN}` })
  await githubIssuer(app).mint({ permissions: { contents: 'read' }, repositories: [] })
  t.strictSame(seen[2]!.body, { permissions: { contents: 'read' } }, 'without names every repository is asked for')
  await issuer.mint(ASKED)
  t.equal(seen.length, 4, 'each mint is its own: no token is shared by two cells')
})

t.test('what is broader than asked is revoked and refused', async t => {
  for (const [what, extra, reason] of [
    ['a higher level', { permissions: { contents: 'write' } }, /contents: write/],
    ['another permission', { permissions: { contents: 'read', packages: 'read' } }, /packages: read/],
    ['metadata above read', { permissions: { contents: 'read', metadata: 'write' } }, /metadata: write/],
    ['an unknown level', { permissions: { contents: 'everything' } }, /contents: everything/],
    ['every repository', { repository_selection: 'all' }, /every repository/],
    ['repositories untold', { repositories: undefined }, /does not name/],
    ['another repository', { repositories: [{ name: 'repo' }, { name: 'other' }] }, /the repository other/],
  ] as const) {
    seen = []
    answer = gives(minted(extra))
    const { message } = await refusal(t, githubIssuer(app).mint(ASKED))
    t.match(message, reason, what)
    t.match(message, /the token was revoked/)
    t.match(seen.at(-1), { method: 'DELETE', authorization: `token ${TOKEN}` })
  }
  answer = (one, res) => (one.method === 'DELETE' ? json(res, 500, { message: `cannot revoke ${TOKEN}` }) : gives(minted({ permissions: { contents: 'admin' } }))(one, res))
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /could not be revoked .*answered 500: cannot revoke \[withheld\]/)
  answer = gives(minted({ permissions: { metadata: 'read' } }))
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /did not give contents: read; the token was revoked/)
})

t.test('an issuer that refuses, fails, lies or is silent is told as it is, with what to do', async t => {
  answer = (_, res) => json(res, 422, { message: 'The permissions requested are not granted to this installation.\u001b[2J' })
  t.match((await refusal(t, githubIssuer(app).mint({ permissions: { packages: 'write' }, repositories: ['a', 'b'] }))).message,
    /could not mint a GitHub token with packages: write for a, b: https:\/\/127\.0\.0\.1:\d+\/api answered 422: The permissions requested are not granted to this installation\.\?\[2J\n {2}ask only/)
  answer = gives(minted())
  t.match((await refusal(t, githubIssuer({ ...app, appId: '43' }).mint(ASKED))).message, /answered 401: A JSON web token.*\n.*appId/)
  t.match((await refusal(t, githubIssuer({ ...app, installationId: '8' }).mint(ASKED))).message, /answered 404.*\n.*installationId/)
  answer = (one, res) => json(res, 500, { message: `echo ${one.authorization}` })
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /answered 500: echo bearer \[withheld\]/)
  answer = (_, res) => void res.writeHead(502, { 'content-type': 'text/html' }).end('<html>bad gateway</html>')
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /answered 502\n/)
  answer = (_, res) => void res.writeHead(302, { location: 'https://127.0.0.1:1/' }).end()
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /not GitHub's/, 'a redirect is not followed')
  for (const garbage of ['<html>', '[]', '{"token":1}', 'null', '']) {
    answer = (_, res) => void res.writeHead(201, { 'content-type': 'application/json' }).end(garbage)
    t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /not GitHub's/, garbage)
  }
  answer = gives(minted({ expires_at: 'soon' }))
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /\(expires_at\); the token was revoked/, 'half a reply still holds a token')
  answer = gives(minted({ token: 'line\nbreak' }))
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /\(token\)/)
  answer = (_, res) => void res.writeHead(201, { 'content-type': 'application/json' }).end(Buffer.alloc(2_000_000, 0x20))
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /longer than 1048576 bytes/)
  answer = (_one, _res, req) => void req.socket.destroy()
  t.match((await refusal(t, githubIssuer(app).mint(ASKED))).message, /socket hang up/)
  answer = () => {}
  t.match((await refusal(t, githubIssuer(app, 200).mint(ASKED))).message, /did not answer within 0\.2 s/)
  answer = (_, res) => void res.writeHead(201, { 'content-type': 'application/json' }).write('{')
  t.match((await refusal(t, githubIssuer(app, 200).mint(ASKED))).message, /did not answer within 0\.2 s/, 'nor the rest of it')
  t.match((await refusal(t, githubIssuer({ ...app, apiUrl: 'https://127.0.0.1:1' }).mint(ASKED))).message, /ECONNREFUSED.*\n.*apiUrl/)
  answer = gives(minted())
  await refusal(t, githubIssuer(app).revoke('another-secret-of-the-test'))
})

t.test('only the given certificates count, and only a key that is private', async t => {
  answer = gives(minted())
  const usual = { appId: app.appId, installationId: app.installationId, privateKeyFile, apiUrl: app.apiUrl }
  t.match((await refusal(t, githubIssuer(usual).mint(ASKED))).message, /self-signed certificate/)
  writeFileSync(join(dir, 'open.pem'), privateKey, { mode: 0o644 })
  t.match((await refusal(t, githubIssuer({ ...app, privateKeyFile: join(dir, 'open.pem') }).mint(ASKED))).message, /everybody on this host may read.*\n.*chmod 600/)
  writeFileSync(join(dir, 'wrong.pem'), '-----BEGIN RSA PRIVATE KEY-----\nbm8=\n-----END RSA PRIVATE KEY-----\n', { mode: 0o600 })
  t.match((await refusal(t, githubIssuer({ ...app, privateKeyFile: join(dir, 'wrong.pem') }).mint(ASKED))).message, /no private key that can sign/)
  t.equal(seen.length, 0)
})
