import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t from 'tap'

// The wrappers and what npm does with them, on a package of the same shape whose halves only say what reached them.
const root = join(import.meta.dirname, '../..')
const dir = realpathSync(mkdtempSync(join(tmpdir(), 'ambit bin-')))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

const TELL = { node: 'process.stdout.write(JSON.stringify({ by: "node", args: process.argv.slice(2) }))\n', client: '#!/bin/sh\nprintf client\nfor a do printf "<%s>" "$a"; done\n' }
let packages = 0
function makePackage({ dist = true, build = true } = {}): string {
  const at = join(dir, `a package ${packages++}`)
  for (const name of ['bin', 'scripts', 'package.json']) cpSync(join(root, name), join(at, name), { recursive: true })
  if (dist) put(join(at, 'dist/cli/main.js'), TELL.node)
  if (build) {
    for (const program of ['ambit-client', 'ambit-spawner', 'ambit-init']) put(join(at, 'build/Release', program), TELL.client, 0o755)
    put(join(at, 'build/Release/ambit.node'), '')
  }
  return at
}
function put(path: string, content: string, mode = 0o644): void {
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, content)
  chmodSync(path, mode)
}
function run(program: string, args: string[], options: { cwd?: string; env?: NodeJS.ProcessEnv } = {}): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(program, args, { encoding: 'utf8', ...options })
}
const reached = (stdout: string): string[] => (JSON.parse(stdout) as { args: string[] }).args

t.test('it works from the tree, through links of every kind, and by a shell', async t => {
  const at = makePackage()
  const ambit = join(at, 'bin/ambit')
  const links = join(dir, 'links')
  mkdirSync(links)
  symlinkSync(ambit, join(links, 'absolute'))
  symlinkSync('absolute', join(links, 'twice'))
  symlinkSync('../a package 0/bin/ambit', join(links, 'relative'))
  symlinkSync(join(at, 'bin'), join(links, 'folder'))
  symlinkSync(join(at, 'bin/ambitd'), join(links, 'ambitd'))
  const awkward = ['audit', '', 'a  b', '*', '$(id)', '`id`', '-n', "it's", 'new\nline', '\\']
  for (const name of [ambit, join(links, 'absolute'), join(links, 'twice'), join(links, 'relative'), join(links, 'folder/ambit')]) {
    t.same(reached(run(name, awkward).stdout), awkward, name)
  }
  t.same(reached(run('sh', ['ambit', 'audit'], { cwd: join(at, 'bin') }).stdout), ['audit'], 'sh ambit, in its folder')
  t.same(reached(run('absolute', ['audit'], { env: { PATH: `${links}:${process.env['PATH']}` } }).stdout), ['audit'], 'by the PATH')
  t.same(reached(run(join(links, 'ambitd'), ['--state', 'a b']).stdout), ['daemon', '--state', 'a b'])
  t.same(reached(run(ambit, []).stdout), [])
})

t.test('`run` with a socket goes to the client alone; what the client does not know goes to the command', async t => {
  const ambit = join(makePackage(), 'bin/ambit')
  const client: string[][] = [
    ['--socket', '/s', '--contract', 'c d', '--', 'sh', '-c', 'echo "$1"', '--help', ''],
    ['--contract=c', '--socket=/s', '--json', 'make', '--issuers', 'x'],
    ['--socket', '/s', '--evidence', '--help', '--contract', '--issuers', '--', 'true'],
    ['--socket', '/s', '--contract'],
  ]
  for (const args of client) t.equal(run(ambit, ['run', ...args]).stdout, `client${['run', ...args].map(arg => `<${arg}>`).join('')}`)
  const command: string[][] = [
    ['--help'], ['--socket', '/s', '--help'], ['--socket', '/s', '--contract', 'c', '--issuers', 'i', '--', 'true'], ['--issuers=i', '--socket', '/s', '--', 'true'], ['--sokcet', '/s', '--', 'true'],
  ]
  for (const args of command) t.same(reached(run(ambit, ['run', ...args]).stdout), ['run', ...args])
  if (!existsSync('/run/ambit/ambit.sock')) t.same(reached(run(ambit, ['run', '--contract', 'c', '--', '--socket', 'x']).stdout), ['run', '--contract', 'c', '--', '--socket', 'x'], 'no daemon: a private one')
  t.same(reached(run(ambit, ['audit', '--socket', 'x']).stdout), ['audit', '--socket', 'x'])
  t.equal(run('strace', ['-f', '-e', 'trace=execve', ambit, 'run', '--socket', '/s']).stderr.split('\n').filter(line => /execve\(.*= 0$/.test(line) && !line.includes('strace')).length, 2, 'two programs in all: the wrapper and the client')
})

t.test('what has not been built is named, with the way to build it', async t => {
  const bare = join(makePackage({ dist: false, build: false }), 'bin')
  t.match(run(join(bare, 'ambit'), ['audit']), { status: 2, stdout: '', stderr: /dist\/cli\/main\.js is missing\n.*npm run setup/ })
  t.match(run(join(bare, 'ambitd'), []), { status: 2, stderr: /dist\/cli\/main\.js is missing/ })
  t.match(run(join(bare, 'ambit'), ['run', '--socket', '/s', '--', 'true']), { status: 2, stderr: /ambit-client is missing/ })
  const halfway = join(makePackage({ build: false }), 'bin/ambit')
  t.match(run(halfway, ['loop', '.']), { status: 2, stderr: /ambit\.node is missing/ })
  t.same(reached(run(halfway, ['audit', '.']).stdout), ['audit', '.'], 'which needs no native part')
  t.match(run(halfway, ['audit'], { env: { PATH: '/nonexistent' } }), { status: 2, stderr: /no node on the PATH/ })
})

t.test('npm install -g of a set-up checkout links it and leaves its build alone', async t => {
  const at = makePackage()
  cpSync(join(root, 'binding.gyp'), join(at, 'binding.gyp'))
  // An addon that loads, as the one that set-up built does.
  put(join(at, 'addon.c'), 'void *napi_register_module_v1(void *env, void *exports) { (void)env; return exports; }\n')
  const made = run('gcc', ['-shared', '-fPIC', '-o', join(at, 'build/Release/ambit.node'), join(at, 'addon.c')])
  t.equal(made.status, 0, made.stderr)
  // Older npm fetches what is listed, and this package has nothing to fetch.
  const { dependencies: _, devDependencies: __, ...own } = JSON.parse(readFileSync(join(at, 'package.json'), 'utf8')) as Record<string, unknown>
  writeFileSync(join(at, 'package.json'), JSON.stringify(own))
  const prefix = join(dir, 'prefix')
  const installed = run('npm', ['install', '-g', '--offline', '--no-audit', '--no-fund', '--prefix', prefix, at])
  t.equal(installed.status, 0, installed.stderr)
  t.equal(readFileSync(join(at, 'build/Release/ambit-client'), 'utf8'), TELL.client)
  t.same(reached(run(join(prefix, 'bin/ambit'), ['audit', 'a b']).stdout), ['audit', 'a b'])
  t.same(reached(run(join(prefix, 'bin/ambitd'), []).stdout), ['daemon'])
  t.equal(run(join(prefix, 'bin/ambit'), ['run', '--socket', '/s']).stdout, 'client<run><--socket></s>')
})
