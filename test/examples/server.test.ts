import { spawn } from 'node:child_process'
import { createHmac, createPublicKey, generateKeyPairSync, sign, verify } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t from 'tap'
import { EXAMPLE, start } from './local-server.ts'

const server = await start()
t.teardown(() => server.stop())
const REPO = '/repos/example/tally'
const EVERYTHING = { actions: 'read', contents: 'write', deployments: 'write', issues: 'write', packages: 'write', pull_requests: 'write', statuses: 'write' }

const now = (): number => Math.floor(Date.now() / 1000)
const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')
const ownKey = readFileSync(server.keyFile, 'utf8')
function jwt(claims: object, key: string = ownKey, header: object = { alg: 'RS256', typ: 'JWT' }): string {
  const text = `${encode(header)}.${encode(claims)}`
  return `${text}.${sign('sha256', Buffer.from(text), key).toString('base64url')}`
}
const claims = (): object => ({ iat: now() - 30, exp: now() + 300, iss: server.appId })
const MINT = `/app/installations/${server.installationId}/access_tokens`
const mintWith = (token: string | undefined, body: unknown = {}): ReturnType<typeof server.ask> => server.ask(MINT, { method: 'POST', body, ...(token === undefined ? {} : { token }) })

t.test('what it leaves in its directory is closed to others, and its key is one that GitHub could have handed out', async t => {
  t.match(ownKey, /^-----BEGIN RSA PRIVATE KEY-----/)
  for (const name of ['app-key.pem', 'server.json']) t.equal(statSync(join(server.stateDir, name)).mode & 0o777, 0o600, name)
  t.notOk(existsSync(join(server.stateDir, 'ca-key.pem')), 'the authority can sign nothing more')
})

t.test('the certificate is good for both names, and for nobody without the authority', async t => {
  const at = (name: string): string[] => ['--resolve', `${name}:${server.port}:127.0.0.1`, '--output', '/dev/null', '--write-out', '%{http_code} %{http_version}', `https://${name}:${server.port}/`]
  t.equal(server.curl(...at('api.forge.test')).stdout, '401 1.1')
  t.equal(server.curl(...at('collector.test')).stdout, '401 1.1')
  t.equal(server.curl(...at('elsewhere.test')).status, 60, 'another name')
  t.equal(server.curl('--cacert', '/etc/ssl/certs/ca-certificates.crt', ...at('api.forge.test')).status, 60, 'another authority')
})

// Each need as GitHub documents it; the server reads its own from data/github-permissions.tsv.
const ROUTES: { method: string; path: string; need: Record<string, string>; less?: Record<string, string>; body?: object; status: number }[] = [
  { method: 'GET', path: '', need: { metadata: 'read' }, status: 200 },
  { method: 'GET', path: '/tags', need: { metadata: 'read' }, status: 200 },
  { method: 'GET', path: '/releases', need: { contents: 'read' }, status: 200 },
  { method: 'GET', path: '/releases/latest', need: { contents: 'read' }, status: 200 },
  { method: 'GET', path: '/commits?per_page=2', need: { contents: 'read' }, status: 200 },
  { method: 'GET', path: '/commits/main', need: { contents: 'read' }, status: 200 },
  { method: 'GET', path: '/contents/CHANGES.md?ref=main', need: { contents: 'read' }, status: 200 },
  { method: 'PUT', path: '/contents/docs/new%20page.md', need: { contents: 'write' }, less: { contents: 'read' }, body: { message: 'm', content: 'aGk=' }, status: 201 },
  { method: 'POST', path: '/git/refs', need: { contents: 'write' }, less: { contents: 'read' }, body: { ref: 'refs/heads/x', sha: 'abc' }, status: 201 },
  { method: 'POST', path: '/releases', need: { contents: 'write' }, less: { contents: 'read' }, body: { tag_name: 'v2' }, status: 201 },
  { method: 'GET', path: '/issues', need: { issues: 'read' }, status: 200 },
  { method: 'POST', path: '/issues', need: { issues: 'write' }, less: { issues: 'read' }, body: { title: 't' }, status: 201 },
  { method: 'POST', path: '/issues/1/comments', need: { issues: 'write' }, less: { issues: 'read' }, body: { body: 'b' }, status: 201 },
  { method: 'POST', path: '/issues/1/comments', need: { pull_requests: 'write' }, less: { pull_requests: 'read' }, body: { body: 'b' }, status: 201 },
  { method: 'GET', path: '/pulls', need: { pull_requests: 'read' }, status: 200 },
  { method: 'POST', path: '/pulls', need: { pull_requests: 'write' }, less: { pull_requests: 'read' }, body: { title: 't', head: 'x', base: 'main' }, status: 201 },
  { method: 'GET', path: '/deployments', need: { deployments: 'read' }, status: 200 },
  { method: 'POST', path: '/deployments', need: { deployments: 'write' }, less: { deployments: 'read' }, body: { ref: 'main' }, status: 201 },
  { method: 'POST', path: '/statuses/abc', need: { statuses: 'write' }, less: { statuses: 'read' }, body: { state: 'success' }, status: 201 },
  { method: 'GET', path: '/actions/runs', need: { actions: 'read' }, status: 200 },
]

t.test('every route is open to a token with its permission and closed to one with all others', async t => {
  for (const { method, path, need, less, body, status } of ROUTES) {
    const name = `${method} ${path || '/'} with ${JSON.stringify(need)}`
    const asked = { method, ...(body === undefined ? {} : { body }) }
    t.equal((await server.ask(REPO + path, { ...asked, token: await server.mint(need) })).status, status, name)
    t.equal((await server.ask(REPO + path, asked)).status, 401, `${name}: without a token`)
    if ('metadata' in need) continue
    const others: Record<string, string> = Object.fromEntries(Object.entries(EVERYTHING).filter(([permission]) => !(permission in need) && !(path.includes('comments') && ['issues', 'pull_requests'].includes(permission))))
    for (const held of [others, less].filter(one => one !== undefined)) {
      const refused = await server.ask(REPO + path, { ...asked, token: await server.mint(held) })
      t.equal(refused.status, 403, `${name}: with ${JSON.stringify(held)}`)
      t.match(JSON.parse(refused.body), { message: 'Resource not accessible by integration' })
      t.match(refused.headers['x-accepted-github-permissions'], Object.entries(need)[0]!.join('='))
    }
  }
})

t.test('what a refused request wanted to write is not there; what an allowed one wrote is', async t => {
  const token = await server.mint(EVERYTHING)
  const read = async (path: string): Promise<string> => (await server.ask(`${REPO}/contents/${path}`, { token, headers: { accept: 'application/vnd.github.raw+json' } })).body
  const before = await read('README.md')
  const put = { method: 'PUT', body: { message: 'm', content: Buffer.from('owned').toString('base64') } }
  t.equal((await server.ask(`${REPO}/contents/README.md`, { ...put, token: await server.mint({ contents: 'read' }) })).status, 403)
  t.equal(await read('README.md'), before)
  t.equal((await server.ask(`${REPO}/contents/README.md`, { ...put, token })).status, 200)
  t.equal(await read('README.md'), 'owned')
  const workflow = await server.ask(`${REPO}/contents/.github/workflows/x.yml`, { ...put, token })
  t.equal(workflow.status, 403, 'a workflow file takes one permission more')
  t.equal(workflow.headers['x-accepted-github-permissions'], 'contents=write,workflows=write')
  t.equal((await server.ask(`${REPO}/contents/.github%2Fworkflows/x.yml`, { ...put, token })).status, 403, 'however it is spelled')
})

t.test('other repositories, unknown routes and other verbs are not there', async t => {
  const token = await server.mint(EVERYTHING)
  for (const path of ['/repos/example/other', '/repos/other/tally/issues', '/repos/example', '/user', `${REPO}/no-such-thing`, `${REPO}/contents/missing`, `${REPO}/contents/`, `${REPO}//issues`]) {
    t.equal((await server.ask(path, { token })).status, 404, path)
  }
  t.equal((await server.ask(`${REPO}/issues`, { method: 'DELETE', token })).status, 404)
  t.equal((await server.ask('/repos/Example/TALLY', { token })).status, 200, 'names know no case')
  t.equal((await server.ask(`${REPO}/branches`, { token })).status, 501, 'documented, and honest about not being played')
  t.equal((await server.ask(`${REPO}/actions/secrets`, { token })).status, 403, 'the permission is asked before that')
})

t.test('a token holds what was asked for, for an hour, until it is revoked', async t => {
  const minted = await mintWith(jwt(claims()), { permissions: { contents: 'read' }, repositories: ['tally'] })
  t.equal(minted.status, 201)
  const told = JSON.parse(minted.body) as { token: string; expires_at: string; permissions: object; repository_selection: string; repositories: { full_name: string }[] }
  t.match(told.token, /^ghs_[A-Za-z0-9]{36}$/)
  t.same(told.permissions, { metadata: 'read', contents: 'read' })
  t.equal(told.repository_selection, 'selected')
  t.match(told.repositories, [{ full_name: 'example/tally' }])
  const left = Date.parse(told.expires_at) - Date.now()
  t.ok(left > 3_500_000 && left <= 3_600_000)
  const { token } = told
  t.equal((await server.ask(`${REPO}/commits`, { token })).status, 200)
  t.equal((await server.ask('/installation/token', { method: 'DELETE', token })).status, 204)
  t.equal((await server.ask(`${REPO}/commits`, { token })).status, 401)
  t.equal((await server.ask('/installation/token', { method: 'DELETE', token })).status, 401)
  t.equal((await server.ask(`${REPO}/commits`, { token: 'ghs_000000000000000000000000000000000000' })).status, 401)
})

t.test('more than the App holds is not minted', async t => {
  const refused: unknown[] = [
    { permissions: { administration: 'write' } }, { permissions: { actions: 'write' } }, { permissions: { contents: 'own' } }, { permissions: 'all' }, { permissions: { constructor: 'read' } },
    { repositories: ['other'] }, { repositories: [] }, { repositories: 'tally' }, { repositories: [{}] },
  ]
  for (const body of refused) t.equal((await mintWith(jwt(claims()), body)).status, 422, JSON.stringify(body))
  t.equal((await mintWith(jwt(claims()), '{')).status, 400)
  t.equal((await mintWith(jwt(claims()), '[]')).status, 400)
  t.equal((await mintWith(jwt(claims()), 'x'.repeat(100_000))).status, 413)
  await t.rejects(mintWith(jwt(claims()), 'x'.repeat(3_000_000)), 'cut off')
  t.equal((await server.ask('/app/installations/1/access_tokens', { method: 'POST', token: jwt(claims()) })).status, 404)
})

t.test('only the App\'s own, living signature mints', async t => {
  t.equal((await mintWith(jwt(claims()))).status, 201, 'the honest one')
  const stranger = generateKeyPairSync('rsa', { modulusLength: 2048, privateKeyEncoding: { type: 'pkcs1', format: 'pem' }, publicKeyEncoding: { type: 'spki', format: 'pem' } })
  const publicKey = createPublicKey(ownKey).export({ type: 'spki', format: 'pem' })
  const [header, , signature] = jwt(claims()).split('.') as [string, string, string]
  const hmacText = `${encode({ alg: 'HS256', typ: 'JWT' })}.${encode(claims())}`
  const forged: Record<string, string | undefined> = {
    'no token': undefined,
    'not a JWT': 'ghs_123',
    'another key': jwt(claims(), stranger.privateKey),
    'changed claims': `${header}.${encode({ ...claims(), exp: now() + 500 })}.${signature}`,
    'alg none': `${encode({ alg: 'none' })}.${encode(claims())}.`,
    'alg none, signature of RS256': jwt(claims(), ownKey, { alg: 'none' }),
    'HMAC by the public key': `${hmacText}.${createHmac('sha256', publicKey).update(hmacText).digest('base64url')}`,
    'expired': jwt({ ...claims(), iat: now() - 700, exp: now() - 100 }),
    'no end': jwt({ iat: now(), iss: server.appId }),
    'an end as text': jwt({ ...claims(), exp: String(now() + 300) }),
    'too long': jwt({ ...claims(), exp: now() + 3600 }),
    'from the future': jwt({ ...claims(), iat: now() + 200 }),
    'claims that are none': jwt([] as object),
  }
  for (const [name, token] of Object.entries(forged)) t.equal((await mintWith(token)).status, 401, name)
  t.equal((await mintWith(jwt({ ...claims(), iss: 1 }))).status, 404, 'another App')
})

t.test('no request that is not a token\'s own gets anything but a refusal', async t => {
  const path = fc.oneof(fc.webPath(), fc.array(fc.constantFrom('repos', 'example', 'tally', 'issues', '..', '%2e', '', 'app', 'installations', '%', 'contents')).map(parts => `/${parts.join('/')}`))
  await fc.assert(fc.asyncProperty(fc.constantFrom('GET', 'POST', 'PUT', 'DELETE', 'PATCH'), path, fc.option(fc.stringMatching(/^[!-~]{0,80}$/), { nil: undefined }), async (method, target, token) => {
    const { status } = await server.ask(target, { method, ...(token === undefined ? {} : { token }) })
    return [400, 401, 404].includes(status)
  }), { numRuns: 300 })
  t.equal((await server.ask('/')).status, 401, 'and it still lives')
})

t.test('the OIDC endpoint gives an id token for the audience, to the request token alone', async t => {
  const url = '/_apis/oidc/token?api-version=2'
  t.equal((await server.ask(`${url}&audience=x`)).status, 401)
  t.equal((await server.ask(`${url}&audience=x`, { token: 'guess' })).status, 401)
  const { value } = JSON.parse((await server.ask(`${url}&audience=sts.example`, { token: server.requestToken! })).body) as { value: string }
  const [head, body, signature] = value.split('.') as [string, string, string]
  const { kid } = JSON.parse(Buffer.from(head, 'base64url').toString()) as { kid: string }
  const told = JSON.parse(Buffer.from(body, 'base64url').toString()) as { iss: string; aud: string; sub: string; exp: number }
  t.match(told, { aud: 'sts.example', sub: 'repo:example/tally:ref:refs/heads/main' })
  t.ok(told.exp > now() && told.exp <= now() + 300)
  const discovered = JSON.parse((await server.ask('/_apis/oidc/.well-known/openid-configuration')).body) as { issuer: string; jwks_uri: string }
  t.equal(discovered.issuer, told.iss)
  const { keys } = JSON.parse((await server.ask(new URL(discovered.jwks_uri).pathname)).body) as { keys: { kid: string }[] }
  const key = createPublicKey({ key: keys.find(one => one.kid === kid)! as never, format: 'jwk' })
  t.ok(verify('sha256', Buffer.from(`${head}.${body}`), key, Buffer.from(signature, 'base64url')))
  t.equal((await mintWith(value)).status, 401, 'and it is no App')
})

t.test('the collector takes what it is given, within bounds', async t => {
  const at = `https://localhost:${server.collectorPort}/any/where`
  t.equal(server.curl('--data', 'token=abc', at).stdout, '{"received":9}')
  const large = join(server.stateDir, 'large')
  writeFileSync(large, Buffer.alloc(3_000_000))
  t.not(server.curl('--data-binary', `@${large}`, at).status, 0)
  t.equal(server.curl(at).stdout, '{"received":0}', 'and it still lives')
})

t.test('it says plainly what it lacks', async t => {
  const run = (...args: string[]): Promise<{ code: number | null; stderr: string }> => new Promise(resolve => {
    const child = spawn(process.execPath, [join(EXAMPLE, 'server/main.mjs'), ...args], { stdio: ['ignore', 'ignore', 'pipe'] })
    let stderr = ''
    child.stderr.on('data', chunk => { stderr += chunk })
    child.once('close', code => resolve({ code, stderr }))
  })
  t.match(await run(), { code: 2, stderr: '--state is missing' })
  t.match(await run('--state', 'x'), { code: 2, stderr: 'OWNER/NAME' })
  t.match(await run('--state', 'x', '--repository', 'a/b', '--host', 'a,DNS:b'), { code: 2, stderr: 'not a host name' })
})

t.test('it ends with its parent, even one that was killed', async t => {
  const dir = mkdtempSync(join(tmpdir(), 'ambit-example-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const argv = [process.execPath, join(EXAMPLE, 'server/main.mjs'), '--state', dir, '--repository', 'a/b']
  const parent = spawn(process.execPath, ['-e', `const c = require('child_process').spawn(${JSON.stringify(argv[0])}, ${JSON.stringify(argv.slice(1))}, { stdio: ['ignore', 'inherit', 'ignore'] }); console.log(JSON.stringify({ pid: c.pid })); setInterval(() => {}, 1000)`], { stdio: ['ignore', 'pipe', 'inherit'] })
  let out = ''
  parent.stdout.on('data', chunk => { out += chunk })
  for (let i = 0; i < 500 && !out.includes('"ready":true'); i++) await sleep(20)
  const { pid } = JSON.parse(out.split('\n')[0]!) as { pid: number }
  t.ok(existsSync(`/proc/${pid}`))
  parent.kill('SIGKILL')
  const gone = (): boolean => !existsSync(`/proc/${pid}`) || readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ')
  for (let i = 0; i < 500 && !gone(); i++) await sleep(20)
  t.ok(gone())
})
