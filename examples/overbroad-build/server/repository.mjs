// The one repository that this server holds, in memory, and what its routes answer.
import { createHash } from 'node:crypto'
import { Refusal } from './http.mjs'

/** The most of each kind that is kept: what comes later pushes out what came first. */
const MOST = 200

const sha1 = text => createHash('sha1').update(text).digest('hex')

export function openRepository(fullName, origin) {
  const [owner, name] = fullName.split('/')
  const url = `${origin}/repos/${fullName}`
  const author = { name: 'Example Author', email: 'author@forge.test', date: '2026-01-15T09:00:00Z' }
  const files = new Map([
    ['CHANGES.md', '# Changes\n\n## 1.2.0\n- words are compared without regard to case\n\n## 1.1.0\n- `--version`\n'],
    ['README.md', '# tally\n\nCounts words.\n'],
  ])
  const commits = ['compare words without regard to case', 'say the version', 'count words'].map((message, index, all) => ({
    sha: sha1(`${index} ${message}`), url: `${url}/commits/${sha1(`${index} ${message}`)}`,
    commit: { message, author, committer: author }, parents: index + 1 < all.length ? [{ sha: sha1(`${index + 1} ${all[index + 1]}`) }] : [],
  }))
  const kept = { issues: [], comments: [], pulls: [], releases: [], deployments: [], statuses: [], refs: [] }
  let number = 0

  const keep = (kind, one) => {
    kept[kind].unshift(one)
    kept[kind].length = Math.min(kept[kind].length, MOST)
    return { status: 201, body: one }
  }
  const text = (body, key) => {
    if (typeof body[key] !== 'string' || body[key] === '') throw new Refusal(422, `Invalid request.\n\n"${key}" wasn't supplied.`)
    return body[key]
  }
  const found = body => {
    if (body === undefined) throw new Refusal(404, 'Not Found')
    return { status: 200, body }
  }
  const page = (list, query) => ({ status: 200, body: list.slice(0, Math.min(100, Math.max(1, Number(query.get('per_page')) || 30))) })
  const summary = () => ({ id: 16_180_339, name, full_name: fullName, private: true, owner: { login: owner, type: 'Organization' }, url, default_branch: 'main' })
  keep('releases', { id: ++number, tag_name: 'v1.2.0', name: 'tally 1.2.0', draft: false, prerelease: false, published_at: '2026-01-15T10:00:00Z', url: `${url}/releases/1` })

  /** By verb and the template below the repository, as the permission table writes them. */
  const handlers = {
    'get ': () => ({ status: 200, body: summary() }),
    'get /commits': ({ query }) => page(commits, query),
    'get /commits/{ref}': ({ parameters: { ref } }) => found(['main', 'HEAD'].includes(ref) ? commits[0] : commits.find(({ sha }) => sha === ref)),
    'get /contents/{path}': ({ parameters: { path }, accept }) => {
      const content = files.get(path)
      if (content === undefined) throw new Refusal(404, 'Not Found')
      if (accept.includes('raw')) return { status: 200, body: Buffer.from(content) }
      return { status: 200, body: { type: 'file', name: path.split('/').at(-1), path, sha: sha1(content), size: Buffer.byteLength(content), encoding: 'base64', content: Buffer.from(content).toString('base64') } }
    },
    'put /contents/{path}': ({ parameters: { path }, body }) => {
      text(body, 'message')
      const existed = files.has(path)
      if (!existed && files.size >= MOST) throw new Refusal(422, 'This example keeps no more files')
      const content = Buffer.from(text(body, 'content'), 'base64').toString('utf8')
      files.set(path, content)
      return { status: existed ? 200 : 201, body: { content: { path, sha: sha1(content) }, commit: { message: body.message } } }
    },
    'post /git/refs': ({ body }) => keep('refs', { ref: text(body, 'ref'), object: { type: 'commit', sha: text(body, 'sha') } }),
    'get /releases': ({ query }) => page(kept.releases, query),
    'get /releases/latest': () => found(kept.releases[0]),
    'post /releases': ({ body }) => keep('releases', { id: ++number, tag_name: text(body, 'tag_name'), name: body.name ?? null, draft: body.draft === true }),
    'get /issues': ({ query }) => page(kept.issues, query),
    'post /issues': ({ body }) => keep('issues', { number: ++number, state: 'open', title: text(body, 'title'), body: body.body ?? null }),
    'get /issues/{issue_number}': ({ parameters }) => found(kept.issues.find(issue => String(issue.number) === parameters.issue_number)),
    'post /issues/{issue_number}/comments': ({ body }) => keep('comments', { id: ++number, body: text(body, 'body') }),
    'get /pulls': ({ query }) => page(kept.pulls, query),
    'post /pulls': ({ body }) => keep('pulls', { number: ++number, state: 'open', title: text(body, 'title'), head: { ref: text(body, 'head') }, base: { ref: text(body, 'base') } }),
    'get /deployments': ({ query }) => page(kept.deployments, query),
    'post /deployments': ({ body }) => keep('deployments', { id: ++number, ref: text(body, 'ref'), environment: body.environment ?? 'production' }),
    'post /statuses/{sha}': ({ parameters: { sha }, body }) => keep('statuses', { id: ++number, sha, state: text(body, 'state') }),
    'get /actions/runs': () => ({ status: 200, body: { total_count: 0, workflow_runs: [] } }),
    'get /tags': () => ({ status: 200, body: [{ name: 'v1.2.0', commit: { sha: commits[0].sha } }] }),
  }
  return { owner, name, summary, handlers }
}
