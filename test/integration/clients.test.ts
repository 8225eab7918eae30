import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { makeCertificates } from '../fixtures/certificates.ts'
import { startHost } from '../fixtures/host.ts'

// The clients that jobs use, an https server that the contract declares and one that it does not, both with the same content.
const NAMES = { 'good.example': '93.184.216.41', 'evil.example': '93.184.216.40' }
const files = mkdtempSync(join(tmpdir(), 'ambit-clients-'))
const { ca, cert, key } = makeCertificates(files, Object.keys(NAMES))
const site = join(files, 'site')
const repository = join(site, 'r.git')
const run = (command: string, ...args: string[]): string => execFileSync(command, args, { encoding: 'utf8', input: '', stdio: 'pipe', env: { ...process.env, NODE_OPTIONS: '', GIT_CONFIG_GLOBAL: '/dev/null', GIT_CONFIG_SYSTEM: '/dev/null' } }).trim()
mkdirSync(site)
run('git', 'init', '-q', '--bare', '-b', 'main', repository)
const tree = run('git', '-C', repository, 'hash-object', '-t', 'tree', '-w', '--stdin')
run('git', '-C', repository, 'update-ref', 'refs/heads/main', run('git', '-C', repository, '-c', 'user.name=a', '-c', 'user.email=a@a.example', 'commit-tree', tree, '-m', 'fetched'))
run('git', '-C', repository, 'update-server-info')
mkdirSync(join(files, 'package'))
writeFileSync(join(files, 'package/package.json'), JSON.stringify({ name: 'fetched', version: '1.0.0' }))
run('tar', 'czf', join(site, 'fetched.tgz'), '-C', files, 'package')
writeFileSync(join(files, 'servers.mjs'), `
import { createServer } from 'node:https'
import { readFileSync, writeFileSync } from 'node:fs'
const known = {
  '/text': () => 'fetched',
  '/fetched': host => JSON.stringify({ name: 'fetched', 'dist-tags': { latest: '1.0.0' }, versions: { '1.0.0': { name: 'fetched', version: '1.0.0', dist: { tarball: 'https://' + host + '/fetched.tgz' } } } }),
  '/api/v3/meta': () => JSON.stringify({ text: 'fetched' }),
}
const answer = (req, res) => {
  const path = req.url.split('?')[0]
  try { res.end(known[path] === undefined ? readFileSync('${site}' + path) : known[path](req.headers.host)) } catch { res.writeHead(404).end() }
}
for (const host of ${JSON.stringify(Object.values(NAMES))}) createServer({ key: readFileSync('${key}'), cert: readFileSync('${cert}') }, answer).listen(443, host)
setTimeout(() => writeFileSync(process.env.dir + '/servers', ''), 200)
`)
const host = await startHost({ hosts: NAMES, ready: ['servers'], setup: `"${process.execPath}" ${files}/servers.mjs &` })
t.teardown(async () => {
  await host.close()
  rmSync(files, { recursive: true })
})
writeFileSync(join(host.work, 'ca.pem'), execFileSync('cat', [ca]))

/** Each says "fetched" once it has what it asked for; the authority is passed the client's own way. */
const CLIENTS: Record<string, (name: string) => string> = {
  curl: name => `curl -sS --cacert ca.pem https://${name}/text`,
  wget: name => `wget -q -t 1 -T 20 -O - --ca-certificate=ca.pem https://${name}/text`,
  git: name => `rm -rf clone; GIT_CONFIG_GLOBAL=/dev/null GIT_SSL_CAINFO="$PWD/ca.pem" git clone -q https://${name}/r.git clone && git -C clone log --format=%s`,
  npm: name => `rm -rf project /tmp/cache; mkdir project; cd project; echo '{}' > package.json; npm install --silent --no-audit --no-fund --no-update-notifier --fetch-retries=0 --cache=/tmp/cache --cafile=../ca.pem --registry=https://${name}/ fetched && node -p 'require("./node_modules/fetched/package.json").name'`,
  python: name => `python3 -c 'import ssl, urllib.request; print(urllib.request.urlopen("https://${name}/text", context=ssl.create_default_context(cafile="ca.pem"), timeout=20).read().decode())'`,
  node: name => `NODE_EXTRA_CA_CERTS=ca.pem node -e 'fetch("https://${name}/text").then(answer => answer.text()).then(console.log)'`,
  gh: name => `SSL_CERT_FILE="$PWD/ca.pem" GH_CONFIG_DIR=/tmp GH_NO_UPDATE_NOTIFIER=1 GH_HOST=${name} GH_ENTERPRISE_TOKEN=x gh api meta`,
}
const prefix = /^\/usr\//.test(process.execPath) ? [] : [join(process.execPath, '../..')]
const spec = `authority:
  network: [{ host: good.example, port: 443 }]
  filesystem: { read: [${['/usr', '/bin', '/lib', '/lib64', '/etc/ssl', '/etc/alternatives', ...prefix].join(', ')}], write: [/workspace, /tmp] }
  exec: ['*']
  syscall: { profile: build }`

for (const [client, command] of Object.entries(CLIENTS)) {
  t.test(`${client} reaches the declared server, and not another one that it reaches bare`, async t => {
    const line = (name: string): string[] => ['sh', '-c', `export HOME=/tmp; ${command(name)}`]
    const bare = await host.bare(line('evil.example'))
    t.match(bare, { status: 0, stdout: /fetched/ }, bare.stderr)
    const good = await host.run(spec, line('good.example'))
    t.match(good, { status: 0, stdout: /fetched/ }, good.stderr)
    t.match(good.rows.filter(row => row.kind === 'network'), [{ grant: 'good.example:443', outcome: 'used' }])
    const evil = await host.run(spec, line('evil.example'))
    t.not(evil.status, 0)
    t.notMatch(evil.stdout, /fetched/)
    t.match(evil.rows.filter(row => row.grant.startsWith('evil')), [{ grant: 'evil.example', outcome: 'denied', proof: /the resolver refused the name/ }])
    const observed = await host.run(spec, line('evil.example'), { mode: 'observe' })
    t.match(observed, { status: 0, stdout: /fetched/ }, 'observed it goes on, and is told')
    t.ok(observed.rows.some(row => row.grant === 'evil.example:443' && row.outcome === 'undeclared'))
  })
}
