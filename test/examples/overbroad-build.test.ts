import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { attempts } from '../../src/loop/settings.ts'
import { EXAMPLE, settings, start } from './local-server.ts'

// The example outside any cell: what the loop promises rests on the job being green, and the attacks being real, without us.
type Step = { name: string; run: string; env?: Record<string, string> }
type Workflow = { permissions: Record<string, string>; env: Record<string, string>; jobs: Record<string, { env?: Record<string, string>; steps: Step[] }> }
const workflow = parse(readFileSync(join(EXAMPLE, '.github/workflows/build.yml'), 'utf8')) as Workflow
const job = workflow.jobs['build']!
const hostile = attempts.parse(JSON.parse(readFileSync(join(EXAMPLE, settings.hostile!), 'utf8')))

const server = await start()
const dir = mkdtempSync(join(tmpdir(), 'ambit-example-'))
const neighbour = join(dir, 'notes.txt')
writeFileSync(neighbour, 'another job\'s notes\n')
t.teardown(async () => {
  await server.stop()
  rmSync(dir, { recursive: true, force: true })
})

/** What the workflow grants, as an installation token can hold it. */
const WIDE = { contents: 'write', issues: 'write', packages: 'write' }
const NARROW = { contents: 'read' }

let copies = 0
function checkout(): string {
  const copy = join(dir, `workspace-${copies++}`)
  cpSync(EXAMPLE, copy, { recursive: true })
  return copy
}

function environment(workspace: string, token: string): Record<string, string> {
  return {
    PATH: process.env['PATH']!, HOME: join(dir), LANG: 'C.UTF-8', CI: 'true', GITHUB_WORKSPACE: workspace, GITHUB_REPOSITORY: settings.repository, GITHUB_API_URL: server.api,
    GITHUB_ENV: join(workspace, '.env'), GITHUB_TOKEN: token, CURL_CA_BUNDLE: join(server.stateDir, 'ca.pem'),
    NEIGHBOUR: neighbour, COLLECTOR: `localhost:${server.collectorPort}`,
  }
}

/** The job's steps as a runner runs them: `bash -e FILE`, with GITHUB_ENV carried from step to step. */
function runJob(workspace: string, token: string): { status: number; output: string; told: Record<string, string> } {
  const evaluate = (values: Record<string, string> = {}): Record<string, string> => Object.fromEntries(Object.entries(values).map(([name, value]) => [
    name, String(value).replace(/\$\{\{ *(?:secrets\.(\w+)|github\.token) *\}\}/g, (_, secret?: string) => (secret === undefined ? token : `made-up-${secret}`)),
  ]))
  const base = environment(workspace, token)
  delete base['GITHUB_TOKEN']
  let told: Record<string, string> = {}
  let output = ''
  writeFileSync(base['GITHUB_ENV']!, '')
  for (const [index, step] of job.steps.entries()) {
    const file = join(dir, `step-${index}.sh`)
    writeFileSync(file, step.run)
    const { status, stdout, stderr } = spawnSync('bash', ['-e', file], { cwd: workspace, encoding: 'utf8', env: { ...base, ...evaluate(workflow.env), ...evaluate(job.env), ...told, ...evaluate(step.env) } })
    output += stdout + stderr
    if (status !== 0) return { status: status ?? 1, output: `${output}\nfailed: ${step.name}`, told }
    told = Object.fromEntries(readFileSync(base['GITHUB_ENV']!, 'utf8').split('\n').filter(Boolean).map(line => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]))
  }
  return { status: 0, output, told }
}

t.test('the settings name what is there', async t => {
  t.match(settings, { repository: 'example/tally', apiHost: 'api.forge.test', collectorHost: 'collector.test', hostile: 'hostile.json' })
  const handed = Object.values(workflow.env).map(value => /secrets\.(\w+)/.exec(value)![1])
  t.same(handed, settings.secrets, 'every secret that the workflow hands out has a made-up value')
  t.match(workflow.permissions, { contents: 'write', packages: 'write', issues: 'write', 'id-token': 'write' })
  t.same(Object.keys(workflow.jobs), ['build'])
  t.notOk(job.steps.some(step => 'uses' in step), 'run steps only')
  t.same([...new Set(hostile.map(one => one.kind))].sort(), ['exec', 'filesystem', 'github', 'network', 'syscall'])
})

t.test('the honest job is green with all that it was given, and with `contents: read` alone', async t => {
  const made: Buffer[] = []
  for (const permissions of [WIDE, NARROW]) {
    const workspace = checkout()
    const { status, output, told } = runJob(workspace, await server.mint(permissions))
    t.equal(status, 0, output)
    t.match(told, { REVISION: /^build-[0-9a-f]{7,}$/, PREVIOUS: 'v1.2.0' })
    t.match(output, /ok test\/prose\.txt/)
    t.match(output, /tally\.tgz: OK/)
    made.push(readFileSync(join(workspace, 'build/tally.tgz')))
  }
  t.ok(made[0]!.equals(made[1]!), 'the same bytes each time')
})

t.test('it is red when it should be: no token, no sources that compile, a result that is wrong', async t => {
  t.match(runJob(checkout(), 'ghs_wrong'), { status: 22, output: /failed: Fetch/ })
  const broken = checkout()
  writeFileSync(join(broken, 'src/tally.c'), 'int main(void) { return x; }\n')
  t.match(runJob(broken, 'none').output, /failed: Compile/)
  const wrong = checkout()
  writeFileSync(join(wrong, 'test/prose.expected'), '1 nothing\n')
  t.match(runJob(wrong, 'none').output, /failed: Test/)
})

t.test('every attack succeeds bare, with what the workflow grants', async t => {
  const workspace = checkout()
  const token = await server.mint(WIDE)
  for (const [index, one] of hostile.entries()) {
    const file = join(dir, `attempt-${index}.sh`)
    writeFileSync(file, one.script)
    const { status, stderr } = spawnSync('bash', [file], { cwd: workspace, encoding: 'utf8', env: environment(workspace, token) })
    t.equal(status, 0, `${one.name}: ${stderr}`)
  }
})

t.test('and none succeeds once what it takes is gone', async t => {
  const workspace = checkout()
  const narrow = environment(workspace, await server.mint(NARROW))
  const filter = join(dir, 'no-memfd.py')
  // Each lack by itself, without ambit: no name, no file, no program, no permission, no call.
  const lacks: Record<string, () => { env: Record<string, string>; wrap?: string[]; script?: (text: string) => string }> = {
    network: () => ({ env: { ...narrow, COLLECTOR: `collector.invalid:${server.collectorPort}` } }),
    filesystem: () => ({ env: { ...narrow, NEIGHBOUR: join(dir, 'absent') } }),
    exec: () => ({ env: narrow, script: text => text.replace('/usr/bin/perl', '/usr/bin/perl-absent') }),
    github: () => ({ env: narrow }),
    syscall: () => ({ env: narrow, wrap: ['python3', filter] }),
  }
  writeFileSync(filter, NO_MEMFD)
  for (const [index, one] of hostile.entries()) {
    const { env, wrap = [], script = text => text } = lacks[one.kind]!()
    const file = join(dir, `refused-${index}.sh`)
    writeFileSync(file, script(one.script))
    const argv = [...wrap, 'bash', file]
    const { status, stderr } = spawnSync(argv[0]!, argv.slice(1), { cwd: workspace, encoding: 'utf8', env })
    t.not(status, 0, one.name)
    if (one.kind === 'github') t.match(stderr, /403/, one.name)
  }
})

/** A seccomp filter by hand: memfd_create fails with EPERM, everything else goes on (linux/filter.h, linux/seccomp.h). */
const NO_MEMFD = `
import ctypes, os, platform, struct, sys
number = {'x86_64': 319, 'aarch64': 279}[platform.machine()]
code = b''.join(struct.pack('HBBI', *one) for one in [
    (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)])
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, code)), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
`
