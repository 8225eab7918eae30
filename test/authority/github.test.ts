import t from 'tap'
import { askedOfApi, askedOfGit } from '../../src/authority/github-routes.ts'
import { github } from '../../src/authority/github.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { coverage, dns, flow, oidcHanded, proc, request, response, unreadable } from './evidence.ts'

type Permissions = Record<string, string>
const parse = (permissions: Permissions, apiUrl?: string) => github.schema.parse({ permissions, repositories: ['o/r'], ...(apiUrl ? { apiUrl } : {}) })
const used = (events: EvidenceBody[]) => {
  const all = github.nothingUsed()
  for (const event of events) github.observe(event, all)
  return all
}
const rows = (permissions: Permissions, events: EvidenceBody[], options: { apiUrl?: string; seen?: ReturnType<typeof coverage> } = {}) =>
  github.compare(parse(permissions, options.apiUrl), used(events), options.seen ?? coverage()).map(row => `${row.grant}: ${row.outcome}`)
const narrow = (permissions: Permissions, events: EvidenceBody[], apiUrl?: string) => github.narrow(parse(permissions, apiUrl), used(events), coverage()).permissions
const call = (method: string, path: string, status: number): EvidenceBody[] => [request(method, path), response(status), flow('api.github.com', 443)]

t.test('a route tells what it needs, whatever its verb', async t => {
  const needs = (method: string, path: string): string => {
    const asked = askedOfApi(method, path)
    return asked.kind === 'needs' ? asked.anyOf.map(need => `${need.permission}:${need.level}`).sort().join('|') : asked.kind
  }
  t.equal(needs('GET', '/repos/o/r/issues/comments'), 'issues:read|pull_requests:read', 'not an issue of that number')
  t.equal(needs('GET', '/repos/o/r/issues/12'), 'issues:read')
  t.equal(needs('GET', '/repos/o/r/pages/health'), 'administration:write|pages:write', 'a GET that needs write')
  t.equal(needs('GET', '/repos/o/r/contents/a/b/c.txt?ref=main'), 'contents:read', 'a path of many segments')
  t.equal(needs('PUT', '/repos/o/r/contents/README.md'), 'contents:write', 'writing a plain file')
  t.equal(needs('PUT', '/repos/o/r/contents/.github/workflows/ci.yml'), 'contents:write|workflows:write')
  t.equal(needs('PUT', '/repos/o/r/contents/.github%2Fworkflows%2Fci.yml'), 'contents:write|workflows:write')
  t.equal(needs('GET', '/repos/o/r/compare/main...feature/x'), 'contents:read')
  t.equal(needs('HEAD', '/repos/o/r/releases/latest'), 'contents:read')
  t.equal(needs('GET', '/repos/o/r/git/matching-refs/heads/feature/x'), 'contents:read')
  t.equal(needs('GET', '/rate_limit'), 'nothing')
  t.equal(needs('POST', '/graphql'), 'unknown')
  t.equal(needs('GET', '/repos/o/r/no/such/route'), 'unknown')
  t.equal(needs('BREW', '/repos/o/r/issues'), 'unknown')
  t.equal(needs('GET', '/repos/o/r/../../orgs/o/members'), 'unknown', 'a server may read it as another')
  t.equal(needs('GET', '/orgs/o/packages/container/p'), 'packages:read')
  t.equal(needs('DELETE', '/orgs/o/packages/container/p'), 'packages:admin')
  t.same(askedOfGit('/o/r.git/info/refs?service=git-receive-pack'), { kind: 'needs', anyOf: [{ permission: 'contents', level: 'write' }] })
  t.same(askedOfGit('/o/r/git-upload-pack'), { kind: 'needs', anyOf: [{ permission: 'contents', level: 'read' }] })
})

t.test('read where write is declared: the write is unused, and narrowing leaves the read', async t => {
  const events = call('GET', '/repos/o/r/releases/latest', 200)
  t.same(rows({ contents: 'write', packages: 'write' }, events), ['contents: write: unused', 'contents: read: used', 'packages: write: unused'])
  t.same(narrow({ contents: 'write', packages: 'write' }, events), { contents: 'read' })
})

t.test('what the API refused was tried', async t => {
  t.same(rows({ contents: 'read' }, call('POST', '/repos/o/r/issues', 403)), ['contents: read: unused', 'issues: write: denied'])
  t.same(rows({ contents: 'read' }, call('PUT', '/repos/o/r/contents/x', 403)), ['contents: read: unused', 'contents: write: denied'])
  t.same(rows({}, call('POST', '/repos/o/r/issues', 201)), ['issues: write: undeclared'])
  t.same(rows({ issues: 'write' }, call('POST', '/repos/o/r/issues', 403)), ['issues: write: denied'], 'declared, tried, refused')
  t.same(narrow({ issues: 'write' }, call('POST', '/repos/o/r/issues', 403)), { issues: 'write' }, 'and not taken away for it')
  t.same(rows({ contents: 'read' }, call('GET', '/repos/o/r/releases/latest', 404)), ['contents: read: used'], 'a missing thing was asked for')
  t.same(rows({}, [request('POST', '/repos/o/r/issues'), flow('api.github.com', 443)]), ['issues: write: unobservable'], 'no answer was seen')
  t.same(rows({ issues: 'write' }, [request('POST', '/repos/o/r/issues'), flow('api.github.com', 443)]), ['issues: write: used'], 'never called unused')
  t.same(rows({ issues: 'write' }, [request('POST', '/repos/o/r/issues'), response(100), response(403), flow('api.github.com', 443)]), ['issues: write: denied'], '100 is not the answer')
})

t.test('answers belong to the requests of their connection, in order', async t => {
  const events = [
    request('POST', '/repos/o/r/issues', { connection: 'a' }), request('GET', '/repos/o/r/actions/runs', { connection: 'b' }),
    response(200, 'b'), response(403, 'a'), flow('api.github.com', 443), flow('api.github.com', 443),
  ]
  t.same(rows({ actions: 'read' }, events), ['actions: read: used', 'issues: write: denied'])
})

t.test('several permissions would do: all that are declared count as used', async t => {
  const comment = call('POST', '/repos/o/r/issues/7/comments', 201)
  t.same(narrow({ issues: 'write', pull_requests: 'write' }, comment), { issues: 'write', pull_requests: 'write' })
  t.same(narrow({ issues: 'write', pull_requests: 'read' }, comment), { issues: 'write' })
  t.same(rows({}, comment), ['issues: write or pull_requests: write: undeclared'])
})

t.test('what cannot be read keeps every grant, and the proof says why', async t => {
  const verdictOf = (events: EvidenceBody[]) => github.compare(parse({ packages: 'write' }), used(events), coverage())[0]!
  const unseen: [string, EvidenceBody[], RegExp][] = [
    ['GraphQL', call('POST', '/graphql', 200), /POST \/graphql/],
    ['a route that is not documented', call('GET', '/repos/o/r/secret-door', 200), /secret-door/],
    ['a connection without a request', [flow('api.github.com', 443)], /1 connection to api\.github\.com, requests were read on 0/],
    ['a second connection, by a program whose TLS is not seen', [...call('GET', '/repos/o/r/releases/latest', 200), flow('api.github.com', 443)], /2 connections/],
    ['a connection by address, to what the name resolves to', [dns('api.github.com', 'allowed', ['198.51.100.7']), flow(null, 443)], /1 connection/],
    ['HTTP/2', [unreadable('HTTP/2'), flow('api.github.com', 443)], /1 connection/],
    ['half of a read connection', [...call('GET', '/repos/o/r/releases/latest', 200), unreadable('a request may begin behind', 'c1')], /could not be read/],
    ['the package registry', [flow('npm.pkg.github.com', 443)], /npm\.pkg\.github\.com/],
  ]
  for (const [name, events, why] of unseen) {
    t.match(verdictOf(events), { outcome: 'unobservable', proof: why }, name)
    t.same(narrow({ packages: 'write' }, events), { packages: 'write' }, `${name}: kept`)
  }
  const elsewhere: [string, EvidenceBody[]][] = [
    ['HTTP/2 to another host', [unreadable('HTTP/2'), flow('www.example.org', 443)]],
    ['a connection that the relay refused', [flow('api.github.com', 443, { decision: 'refused' })]],
    ['a connection that carried nothing', [flow('api.github.com', 443, { bytesOut: 0 })]],
    ['git, which takes no packages', [flow('github.com', 443)]],
  ]
  for (const [name, events] of elsewhere) t.match(verdictOf(events), { outcome: 'unused' }, name)
  t.match(rows({ contents: 'write', issues: 'read' }, [flow('github.com', 443)]), ['contents: write: unobservable', 'issues: read: unused'], 'git over HTTPS uses contents, and nothing else')
})

t.test('an Enterprise Server has its API below a path, on a port of its own', async t => {
  const apiUrl = 'https://GHE.example:8443/api/v3/'
  const at = (path: string, host = 'ghe.example:8443'): EvidenceBody[] => [request('GET', path, { host }), response(200), flow('ghe.example', 8443)]
  t.same(rows({ contents: 'read' }, at('/api/v3/repos/o/r/releases/latest'), { apiUrl }), ['contents: read: used'])
  t.same(rows({ contents: 'read' }, at('/o/r.git/info/refs?service=git-upload-pack'), { apiUrl }), ['contents: read: used'])
  t.same(rows({ contents: 'read' }, at('/api/graphql'), { apiUrl }), ['contents: read: unobservable'])
  t.same(rows({ contents: 'read' }, at('/repos/o/r/releases/latest'), { apiUrl }), ['contents: read: unobservable'], 'not below the API\'s path')
  t.equal(parse({}, apiUrl).apiUrl, 'https://ghe.example:8443/api/v3')
  for (const bad of ['http://a.test', 'https://u:p@a.test', 'a.test', 'https://a.test/?x']) t.notOk(github.schema.safeParse({ apiUrl: bad }).success, bad)
})

t.test('id_token is used by asking the place that was handed over', async t => {
  const place = oidcHanded('https://oidc.example/_apis/token?api-version=2')
  const ask = [request('GET', '/_apis/token?api-version=2&audience=x', { host: 'oidc.example', process: proc(7, 'sh') }), response(200), flow('oidc.example', 443)]
  t.same(rows({ id_token: 'write' }, [place, ...ask]), ['id_token: write: used'])
  t.same(rows({ id_token: 'write' }, [place]), ['id_token: write: unused'])
  t.same(narrow({ id_token: 'write' }, [place]), {})
  t.same(rows({ id_token: 'write' }, []), ['id_token: write: unused'], 'no place to ask was handed over')
  t.same(rows({ id_token: 'write' }, [place, flow('oidc.example', 443)]), ['id_token: write: unobservable'], 'a connection there that nobody read')
  t.same(rows({ id_token: 'write' }, [{ ...place, detail: 'the place to ask' } as EvidenceBody]), ['id_token: write: unobservable'], 'where it is was not recorded')
  t.same(rows({}, [place, ...ask]), ['id_token: write: undeclared'])
  t.same(rows({ id_token: 'write' }, [place], { seen: coverage({ credential: ['lost'] }) }), ['id_token: write: unobservable'])
})

t.test('metadata is in every token and never over-authority', async t => {
  t.same(rows({ metadata: 'read' }, []), ['metadata: read: used'])
  t.same(narrow({ metadata: 'read', issues: 'read' }, []), { metadata: 'read' })
  t.same(rows({}, call('GET', '/repos/o/r', 200)), [])
})

t.test('a pipeline file\'s permissions come and go by the API\'s names', async t => {
  const job = { tokenPermissions: { contents: 'read' as const }, oidc: true, secrets: [], egress: null }
  t.same(github.fromJob(job).permissions, { contents: 'read', id_token: 'write' })
  t.equal(github.fromJob({ ...job, tokenPermissions: null, oidc: false }).permissions['contents'], 'write', 'nothing said: the platform\'s wider default')
  t.same(github.toJob!(parse({ contents: 'read', id_token: 'write' })), { tokenPermissions: { contents: 'read' }, oidc: true })
  t.same(github.toJob!(parse({})), { tokenPermissions: {}, oidc: false })
})

t.test('a token for no repository in particular, or a misspelt permission, is no contract', async t => {
  t.match(github.schema.safeParse({ permissions: { contents: 'read' } }).error?.issues[0]?.message, /repositories is empty/)
  t.ok(github.schema.safeParse({ permissions: { id_token: 'write' } }).success, 'an OIDC token is for no repository')
  t.match(JSON.stringify(github.schema.safeParse({ permissions: { 'pull-requests': 'read' }, repositories: ['o/r'] }).error?.issues), /write pull_requests/)
  t.notOk(github.schema.safeParse({ permissions: { contents: 'none' }, repositories: ['o/r'] }).success)
})
