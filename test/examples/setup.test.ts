import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'

// The order and the skipping of set-up, with the long steps played by a stand-in for npm. That the real ones work is shown
// wherever the tests run at all: set-up comes first.
const root = join(import.meta.dirname, '../..')
const dir = mkdtempSync(join(tmpdir(), 'ambit-setup-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

function put(path: string, content: string, mode = 0o644): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, content)
  chmodSync(path, mode)
}
const tools = join(dir, 'tools')
const calls = join(dir, 'calls')
put(join(tools, 'npm'), `#!/bin/sh
echo "$*" >> "${calls}"
case "$*" in
  "$FAILING"*) echo 'what went wrong'; exit 1 ;;
  ci*) mkdir -p node_modules/.bin; : > node_modules/.bin/tsc ;;
  *build:native) mkdir -p build/Release; : > build/Release/ambit.node; : > build/Release/ambit-client; exec sleep "\${SLOW:-0}" ;;
  *build:ts) mkdir -p dist/cli; : > dist/cli/main.js ;;
esac
`, 0o755)
// Every package is there, so that apt is never called: its absence would be a change to this host.
put(join(tools, 'dpkg-query'), `#!/bin/sh\nsed -n 's/^[A-Z]*_PACKAGES="\\(.*\\)"$/\\1/p' scripts/setup.sh | tr ' ' '\\n' | sed 's/^/ii /'\n`, 0o755)
put(join(tools, 'apt-get'), '#!/bin/sh\necho "apt-get was called" >&2\nexit 1\n', 0o755)

const project = join(dir, 'project')
for (const file of ['scripts/setup.sh', 'CMakeLists.txt', 'package-lock.json', 'tsconfig.json']) cpSync(join(root, file), join(project, file))
for (const file of ['native/a.cpp', 'bpf/a.bpf.c', 'src/a.ts']) put(join(project, file), '')

function setup(env: Record<string, string> = {}, ...args: string[]): { status: number | null; stderr: string; called: string[] } {
  writeFileSync(calls, '')
  const { status, stderr } = spawnSync('sh', [join(project, 'scripts/setup.sh'), ...args], { encoding: 'utf8', env: { ...process.env, FAILING: 'nothing', PATH: `${tools}:${process.env['PATH']}`, ...env } })
  return { status, stderr, called: readFileSync(calls, 'utf8').split('\n').filter(Boolean) }
}
const CI = 'ci --ignore-scripts --no-audit --no-fund'
const NATIVE = 'run --silent build:native'
const TS = 'run --silent build:ts'
const change = (file: string): void => { const soon = Date.now() / 1000 + 2; utimesSync(join(project, file), soon, soon) }

t.test('a fresh clone gets everything, the second run finds it done', async t => {
  t.match(setup(), { status: 0, called: [CI, NATIVE, TS] })
  t.same(setup(), { status: 0, stderr: '', called: [] })
  t.same(setup({}, '--tests'), { status: 0, stderr: '', called: [] })
})

t.test('only what changed is made again', async t => {
  const cases: [string, string[]][] = [['src/a.ts', [TS]], ['native/a.cpp', [NATIVE]], ['bpf/a.bpf.c', [NATIVE]], ['tsconfig.json', [TS]], ['package-lock.json', [CI, NATIVE]]]
  for (const [file, called] of cases) {
    change(file)
    t.same(setup().called, called, file)
    const past = Date.now() / 1000 - 60
    utimesSync(join(project, file), past, past)
    t.same(setup().called, [], `${file}, once more`)
  }
  rmSync(join(project, 'build/Release'), { recursive: true })
  t.same(setup().called, [NATIVE], 'a build that was removed')
})

t.test('a step that fails is shown, is not taken for done, and ends set-up', async t => {
  change('native/a.cpp')
  const failed = setup({ FAILING: NATIVE })
  t.match(failed, { status: 2, stderr: /what went wrong\nsetup: failed: building/, called: [NATIVE] })
  t.same(setup().called, [NATIVE])
  t.equal(setup({}, '--tset').status, 2)
})

t.test('missing packages are named, and an old Node is refused', async t => {
  const bare = join(dir, 'bare')
  put(join(bare, 'dpkg-query'), '#!/bin/sh\necho "ii make"\n', 0o755)
  put(join(bare, 'id'), '#!/bin/sh\necho 1000\n', 0o755)
  t.match(setup({ PATH: `${bare}:${tools}:${process.env['PATH']}` }), { status: 2, stderr: /needs root\n {2}apt-get install g\+\+ cmake clang libbpf-dev/, called: [] })
  put(join(bare, 'node'), '#!/bin/sh\necho v18.20.4\n', 0o755)
  t.match(setup({ PATH: `${bare}:${tools}:${process.env['PATH']}` }), { status: 2, stderr: /Node\.js 20 or later is needed, this is v18\.20\.4/ })
})

t.test('an interrupt reaches the step that runs', async t => {
  change('native/a.cpp')
  const child = spawn('sh', [join(project, 'scripts/setup.sh')], { stdio: ['ignore', 'ignore', 'pipe'], env: { ...process.env, FAILING: 'nothing', SLOW: '60', PATH: `${tools}:${process.env['PATH']}` } })
  let said = ''
  child.stderr.on('data', chunk => { said += chunk })
  for (let i = 0; i < 500 && !said.includes('building'); i++) await sleep(20)
  await sleep(200)
  child.kill('SIGINT')
  const status = await new Promise(resolve => child.once('exit', resolve))
  t.equal(status, 130)
  t.match(said, /interrupted/)
  t.ok(existsSync(join(project, 'build/.native-begun')), 'begun, not done')
})
