import { execFileSync } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { NO_ISSUERS, readIssuers, type Issuers } from '../../src/credentials/config.ts'
import { cellEnvironment } from '../../src/credentials/environment.ts'
import { readSecrets } from '../../src/credentials/secrets.ts'
import { AmbitError } from '../../src/errors.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-issuers-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))
let files = 0
function file(content: string | Buffer, mode = 0o600): string {
  const path = join(dir, `file-${files++}`)
  writeFileSync(path, content)
  chmodSync(path, mode)
  return path
}
const message = (act: () => unknown): string => {
  try {
    act()
  } catch (error) {
    if (error instanceof AmbitError) return `${error.code} ${error.message}`
    throw error
  }
  return 'no error'
}

t.test('an issuers file is read, YAML or JSON, with its paths made absolute', async t => {
  const key = file('-----BEGIN-----')
  const yaml = file(`github:\n  appId: 42\n  installationId: "7"\n  privateKeyFile: ${key.slice(dir.length + 1)}\noidc: { requestUrl: "https://id.example/t?v=2", requestToken: abc }\nsecrets:\n  NPM: { file: ${key} }\n  DEPLOY: { environment: MY_DEPLOY }\n`)
  t.strictSame(readIssuers(yaml), {
    github: { appId: '42', installationId: '7', privateKeyFile: key, apiUrl: 'https://api.github.com' },
    oidc: { requestUrl: 'https://id.example/t?v=2', requestToken: 'abc' }, secrets: { NPM: { file: key }, DEPLOY: { environment: 'MY_DEPLOY' } },
  })
  t.strictSame(readIssuers(file(JSON.stringify({ secrets: {} }))), NO_ISSUERS)
  t.strictSame(readIssuers(file('{}')), { secrets: {} })
})

t.test('what is wrong with it is told with its place', async t => {
  const key = file('k')
  const github = (more: string): string => `secrets: {}\ngithub:\n  appId: 1\n  installationId: 2\n${more}\n`
  for (const [content, expected] of [
    ['github: {\n', /:\d+:\d+: could not read the issuers file: it is not YAML/],
    [github(`  privateKeyFile: ${key}\n  apiURL: https://x.example`), /:6:3: .*github\.apiURL is not known/],
    [github(`  privateKeyFile: ${key}\n  apiUrl: http://x.example`), /:6:3: .*github\.apiUrl: must be an https URL/],
    [github(''), /:2:1: .*github\.privateKeyFile/],
    [github('  privateKeyFile: /nowhere/key'), /:5:3: .*github\.privateKeyFile: \/nowhere\/key: ENOENT/],
    [github(`  privateKeyFile: ${file('k', 0o644)}`), /:5:3: .*everybody on this host may read[^]*chmod 600/],
    [github(`  privateKeyFile: ${dir}`), /:5:3: .*not a regular file/],
    [github(`  privateKeyFile: ${key}\n  caFile: /nowhere/ca`), /:6:3: .*github\.caFile/],
    ['secrets:\n  A: plain', /:2:3: .*secrets\.A: must be \{ file/],
    ['secrets:\n  A: { file: /nowhere }', /:2:8: .*secrets\.A\.file/],
    ['secrets:\n  "A=B": { environment: X }', /:2:3: .*secrets\.A=B/],
    ['- a', /could not read the issuers file/],
    ['', /could not read the issuers file/],
  ] as const) t.match(message(() => readIssuers(file(content))), expected, content)
  t.match(message(() => readIssuers('/nowhere/issuers.yaml')), /FILE_UNREADABLE/)
  t.match(message(() => readIssuers(file('oidc: { requestUrl: "https://x.example", requestToken: abc }', 0o644))), /SETTINGS_INVALID .*everybody on this host may read/)
  t.notMatch(message(() => readIssuers(file('oidc: { requestToken: "s3cret\n'))), /s3cret/, 'a broken line is not quoted')
  t.match(message(() => readIssuers(file('a: &a [x]\nb: [*a,*a,*a]'))), /is not known/)
})

t.test('declared secrets are handed over byte for byte, all or none', async t => {
  const issuers: Issuers = { secrets: { A: { file: file('line\n') }, B: { environment: 'AMBIT_TEST_SECRET' }, OPEN: { file: file('x', 0o604) }, BIG: { file: file('x'.repeat(65_537)) }, BINARY: { file: file(Buffer.from([0xff, 0xfe])) }, NUL: { file: file('a\0b') }, EMPTY: { file: file('') }, GONE: { file: '/nowhere' }, DIR: { file: dir } } }
  process.env['AMBIT_TEST_SECRET'] = 'from the environment'
  t.strictSame(readSecrets(['B', 'A'], issuers), [{ name: 'B', value: 'from the environment' }, { name: 'A', value: 'line\n' }])
  delete process.env['AMBIT_TEST_SECRET']
  const pipe = join(dir, 'pipe')
  execFileSync('mkfifo', ['-m', '600', pipe])
  issuers.secrets['PIPE'] = { file: pipe }
  for (const [name, why] of Object.entries({ B: /no AMBIT_TEST_SECRET/, OPEN: /everybody/, BIG: /65537 bytes/, BINARY: /not UTF-8/, NUL: /NUL/, EMPTY: /empty/, GONE: /ENOENT/, DIR: /not a regular file/, PIPE: /not a regular file/, UNKNOWN: /knows no secret/, constructor: /knows no secret/, toString: /knows no secret/ })) {
    const told = message(() => readSecrets(['A', name], issuers))
    t.match(told, new RegExp(`^CREDENTIAL_REFUSED could not hand over the secret ${name}: .*`))
    t.match(told, why, name)
  }
  t.strictSame(readSecrets([], NO_ISSUERS), [])
})

t.test('a cell starts with a clean environment and what the contract lists', async t => {
  const hostEnv = { PATH: '/evil', WANTED: '1', CI_A: 'a', CI_TOKEN: 'leak', CI_: 'b', LD_PRELOAD: '/evil.so', AWS_SECRET_ACCESS_KEY: 'leak', GITHUB_TOKEN: 'leak', 'BASH_FUNC_x%%': '() { :; }', HOME: '/root', SSH_AUTH_SOCK: '/agent', ACTIONS_RUNTIME_TOKEN: 'leak', ACTIONS_CACHE_URL: 'leak' }
  const env = (pass: string[], set = {}, credentials = {}): Record<string, string> => Object.fromEntries(cellEnvironment({ hostEnv, pass, set, credentials }).map(entry => [entry.slice(0, entry.indexOf('=')), entry.slice(entry.indexOf('=') + 1)]))
  t.strictSame(env([]), { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', HOME: '/tmp', TMPDIR: '/tmp', USER: 'root', LOGNAME: 'root', SHELL: '/bin/sh', LANG: 'C.UTF-8' })
  t.match(env(['WANTED', 'MISSING', 'PATH']), { WANTED: '1', PATH: '/evil', MISSING: undefined })
  t.match(env(['CI_*']), { CI_A: 'a', CI_: 'b', CI_TOKEN: undefined }, 'a prefix does not cover what looks like a credential')
  for (const name of ['LD_PRELOAD', 'AWS_SECRET_ACCESS_KEY', 'GITHUB_TOKEN', 'SSH_AUTH_SOCK', 'ACTIONS_CACHE_URL']) {
    t.equal(env([`${name.slice(0, 3)}*`])[name], undefined, name)
    t.equal(env([name])[name], hostEnv[name as keyof typeof hostEnv], `${name} by its own name`)
  }
  t.match(env(['WANTED'], { WANTED: '2', EMPTY: '' }, { GITHUB_TOKEN: 'minted', EMPTY: 'x' }), { WANTED: '2', GITHUB_TOKEN: 'minted', EMPTY: 'x' }, 'the later wins')
  for (const bad of ['', '*', 'A B', 'A=B', '1A', 'BASH_FUNC_x%%', 'Ä', '*A', 'A**']) t.match(message(() => env([bad])), /CONTRACT_INVALID/, bad)
  for (const bad of ['', 'A=B', 'A\0', '1', 'A-B']) t.match(message(() => env([], { [bad]: 'x' })), /CONTRACT_INVALID/, bad)
  t.match(message(() => env([], { A: 'x\0y' })), /NUL/)
  t.match(message(() => env([], { A: 'x'.repeat(131_072) })), /execve/)
  t.ok(cellEnvironment({ hostEnv, pass: [], set: JSON.parse('{"__proto__":"1"}') as Record<string, string>, credentials: {} }).includes('__proto__=1'))
})

t.test('whatever the caller\'s environment is, only listed names come from it, once each', async () => {
  const name = fc.stringMatching(/^[A-Z_%=]{0,6}$/)
  fc.assert(fc.property(fc.dictionary(name, fc.string()), fc.array(fc.stringMatching(/^[A-Z_]{1,6}$/)), (hostEnv, pass) => {
    const clean = Object.fromEntries(Object.entries(hostEnv).map(([key, value]) => [key, value.replaceAll('\0', '')]))
    const base = cellEnvironment({ hostEnv: {}, pass: [], set: {}, credentials: {} })
    const names = cellEnvironment({ hostEnv: clean, pass, set: {}, credentials: {} }).map(entry => entry.slice(0, entry.indexOf('=')))
    return new Set(names).size === names.length && names.every(one => pass.includes(one) || base.some(entry => entry.startsWith(`${one}=`)))
  }))
})
