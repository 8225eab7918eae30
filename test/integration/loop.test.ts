import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'

const root = join(import.meta.dirname, '../..')
const ambit = join(root, 'bin/ambit')
const dir = mkdtempSync(join(tmpdir(), 'ambit-test-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

t.test('the example goes round the whole loop', async t => {
  const out = join(dir, 'out')
  const { status, stdout, stderr } = spawnSync(ambit, ['loop', join(root, 'examples/overbroad-build'), '--out', out], { encoding: 'utf8' })
  t.equal(status, 0, stderr + stdout.slice(-3000))
  t.notMatch(stdout, /✗/)
  t.match(readFileSync(join(out, 'narrowed.diff'), 'utf8'), /^-.*packages: write/m)
  for (const name of readdirSync(out).filter(entry => existsSync(join(out, entry, 'events.jsonl')))) {
    t.equal(spawnSync(ambit, ['verify', join(out, name)]).status, 0, `${name} verifies`)
  }

  t.test('and its parts work as commands of their own on what it left', async t => {
    const workflow = join(out, 'narrowed/.github/workflows/build.yml')
    const audited = spawnSync(ambit, ['audit', join(out, 'narrowed'), '--ledger', join(out, 'ledger'), '--json'], { encoding: 'utf8' })
    t.equal(audited.status, 0, audited.stderr)
    t.ok((JSON.parse(audited.stdout) as { findings: { state: string }[] }).findings.some(finding => finding.state === 'closed'))
    const sarif = spawnSync(ambit, ['audit', join(out, 'narrowed'), '--ledger', join(out, 'ledger'), '--sarif', '-'], { encoding: 'utf8' })
    t.equal((JSON.parse(sarif.stdout) as { version: string }).version, '2.1.0')
    const before = join(root, 'examples/overbroad-build/.github/workflows/build.yml')
    const diff = spawnSync(ambit, ['narrow', join(out, 'observe'), '--workflow', before, '--job', 'build', '--diff'], { encoding: 'utf8' })
    t.equal(diff.status, 0, diff.stderr)
    t.match(diff.stdout, /packages: write/)
    t.ok(existsSync(workflow))
  })

  t.test('a wide workflow that comes back is a regression', async t => {
    const again = spawnSync(ambit, ['audit', join(root, 'examples/overbroad-build'), '--ledger', join(out, 'ledger'), '--json'], { encoding: 'utf8' })
    t.equal(again.status, 1)
    t.ok((JSON.parse(again.stdout) as { findings: { state: string }[] }).findings.some(finding => finding.state === 'regressed'))
  })
})

/** The state directory of a process's private daemon, and its pid. */
function privateDaemon(pid: number): { state: string; pid: number } | null {
  for (const child of readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').filter(Boolean)) {
    const words = readFileSync(`/proc/${child}/cmdline`, 'utf8').split('\0')
    if (words.includes('--private')) return { state: words[words.indexOf('--state') + 1]!, pid: Number(child) }
  }
  return null
}
const gone = async (daemon: { state: string; pid: number }): Promise<boolean> => {
  for (let i = 0; i < 200; i++) {
    if (!existsSync(daemon.state) && !existsSync(`/proc/${daemon.pid}`)) return true
    await sleep(50)
  }
  return false
}

t.test('an interrupted loop, and a killed run, leave nothing behind', async t => {
  const temporary = join(dir, 'temporary')
  mkdirSync(temporary)
  const child = spawn(ambit, ['loop', join(root, 'examples/overbroad-build'), '--out', join(dir, 'interrupted')], { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, TMPDIR: temporary } })
  const ended = new Promise(resolve => child.once('close', resolve))
  let daemon: { state: string; pid: number } | null = null
  await new Promise<void>(resolve => child.stdout.on('data', (chunk: Buffer) => { if (String(chunk).includes('▶')) resolve() }))
  daemon = privateDaemon(child.pid!)
  t.ok(daemon)
  child.kill('SIGINT')
  t.equal(await ended, 130)
  t.ok(await gone(daemon!))
  t.same(readdirSync(temporary), [])

  const run = spawn(ambit, ['run', '--contract', join(root, 'examples/contracts/minimal.yaml'), '--', 'sh', '-c', 'echo up; read forever'], { stdio: ['pipe', 'pipe', 'inherit'] })
  await new Promise(resolve => run.stdout.once('data', resolve))
  daemon = privateDaemon(run.pid!)
  t.ok(daemon)
  run.kill('SIGKILL')
  t.ok(await gone(daemon!), 'the private daemon ends with whoever started it')
})

t.test('a job with `uses:` steps is told plainly which ones run on a runner only', async t => {
  const repo = join(dir, 'uses')
  mkdirSync(join(repo, '.github/workflows'), { recursive: true })
  writeFileSync(join(repo, '.github/workflows/ci.yml'), 'on: push\njobs:\n  one:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@v4\n      - run: echo hi\n')
  const { status, stderr } = spawnSync(ambit, ['loop', repo], { encoding: 'utf8' })
  t.equal(status, 2)
  t.match(stderr, /actions\/checkout@v4/)
  t.match(stderr, /ci\.yml:6/)
})

t.test('a user\'s own workflow of run steps works without a server', async t => {
  const repo = join(dir, 'own')
  mkdirSync(join(repo, '.github/workflows'), { recursive: true })
  writeFileSync(join(repo, '.github/workflows/ci.yml'), 'on: push\npermissions: {}\njobs:\n  one:\n    runs-on: ubuntu-latest\n    steps:\n      - run: echo "A=1" >> "$GITHUB_ENV"\n      - run: test "$A" = 1 && tar -cf x.tar .github\n')
  const { stdout, stderr } = spawnSync(ambit, ['loop', repo, '--job', 'one', '--out', join(dir, 'own-out')], { encoding: 'utf8' })
  t.match(stdout, /✓ the job is green/, stderr)
  t.match(stdout, /✓ the job is still green/, stderr)
})

t.test('bad input is named with its place and changes nothing', async t => {
  const repo = join(dir, 'bad')
  mkdirSync(join(repo, '.github/workflows'), { recursive: true })
  writeFileSync(join(repo, '.github/workflows/ci.yml'), 'on: push\njobs:\n\tone: {}\n')
  const { status, stderr } = spawnSync(ambit, ['loop', repo], { encoding: 'utf8' })
  t.equal(status, 2)
  t.match(stderr, /ci\.yml:3/)
  t.equal(spawnSync(ambit, ['loop', join(dir, 'missing')]).status, 2)
  t.equal(spawnSync(ambit, ['loop', '--no-such-option']).status, 2)
})

t.test('options that say nothing, or two things, are refused before anything is printed or written', async t => {
  const out = join(dir, 'out')
  const before = join(root, 'examples/overbroad-build/.github/workflows/build.yml')
  for (const args of [
    ['audit', root, '--fail-on', 'bogus'], ['audit', join(root, 'examples/overbroad-build'), '--json', '--sarif', '-'], ['audit', join(root, 'examples/overbroad-build'), '--sarif', join(dir, 'no/such/file')],
    ['verdict', join(out, 'observe'), '--fail-on', 'bogus'], ['verdict', join(out, 'observe'), '--ledger', join(dir, 'unsigned')],
    ['narrow', join(out, 'observe'), '--workflow', before, '--diff'], ['narrow', join(out, 'observe'), '--job', 'build'], ['narrow', join(out, 'observe'), '--write'], ['narrow', join(out, 'observe'), '--workflow', before, '--job', 'nope'],
    ['daemon', '--log-level', 'loud'], ['loop', join(root, 'examples/overbroad-build'), '--out', out],
  ]) {
    const { status, stdout, stderr } = spawnSync(ambit, args, { encoding: 'utf8' })
    t.equal(status, 2, `${args.join(' ')}: ${stderr}`)
    t.equal(stdout, '', args.join(' '))
  }
  t.notOk(existsSync(join(dir, 'unsigned')))
  const refused = readdirSync(out).find(name => /^hostile-\d+$/.test(name))!
  const copy = join(dir, 'copy.yml')
  writeFileSync(copy, readFileSync(before))
  const failed = spawnSync(ambit, ['narrow', join(out, refused), '--workflow', copy, '--job', 'build', '--write', '--key', join(out, refused, 'public-key.pem')], { encoding: 'utf8' })
  t.match(failed, { status: 2, stderr: /did not end well/ })
  t.equal(readFileSync(copy, 'utf8'), readFileSync(before, 'utf8'))
})

t.test('without root it is said what root is needed for', async t => {
  for (const args of [['doctor'], ['daemon', '--state', join(dir, 'never'), '--socket', join(dir, 'never/s')], ['run', '--contract', join(root, 'examples/contracts/minimal.yaml'), '--', 'true']]) {
    // A user namespace without a map: the files are still ours to read, and nothing else is.
    const { status, stderr } = spawnSync('unshare', ['--user', ambit, ...args], { encoding: 'utf8' })
    t.equal(status, 2, args.join(' '))
    t.match(stderr, /root/, args.join(' '))
  }
  t.notOk(existsSync(join(dir, 'never')), 'and nothing is half made')
})

t.test('every command has help', async t => {
  for (const command of ['loop', 'audit', 'run', 'verdict', 'narrow', 'verify', 'feed', 'doctor', 'daemon', 'completion']) {
    const { status, stdout } = spawnSync(ambit, [command, '--help'], { encoding: 'utf8' })
    t.equal(status, 0, command)
    t.match(stdout, /Usage|usage/, command)
  }
})

t.test('doctor tries every hook and says what each lack costs', async t => {
  const { stdout, stderr } = spawnSync(ambit, ['doctor', '--json'], { encoding: 'utf8' })
  const report = JSON.parse(stdout || stderr) as { hooks: { name: string; state: string }[] }
  t.ok(report.hooks.some(hook => hook.name.includes('sys_enter') && hook.state === 'attached'))
  t.notOk(report.hooks.some(hook => hook.state === 'canary-failed'), JSON.stringify(report.hooks))
})
