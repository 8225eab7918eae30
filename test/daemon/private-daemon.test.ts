import { spawn, spawnSync } from 'node:child_process'
import { closeSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { removeForsaken } from '../../src/daemon/private-daemon.ts'
import { BUNDLE } from '../../src/evidence/statement.ts'
import { native } from '../../src/native.ts'
import { AMBIT, makePlace, removePlace, until, writeContract } from '../fixtures/daemon.ts'

const place = makePlace()
t.teardown(() => removePlace(place))
const contract = writeContract(place)
const evidence = join(place.work, 'ev')
const run = (script: string): { status: number | null; stderr: string } => spawnSync(AMBIT, ['run', '--contract', contract, '--evidence', evidence, '--', 'sh', '-c', script], { cwd: place.work, encoding: 'utf8' })
const keptIn = (stderr: string): string | undefined => /it is kept in (\/run\/ambit\/evidence-c[0-9a-f]{12}):/.exec(stderr)?.[1]

t.test('evidence that a job keeps from being written is not lost with the private daemon', async t => {
  const usual = run('exit 3')
  t.equal(usual.status, 3, usual.stderr)
  t.equal(keptIn(usual.stderr), undefined)
  t.equal(spawnSync(AMBIT, ['verify', evidence]).status, 0, 'who hinders nothing finds it where it was asked for')
  for (const [attack, told, message] of [
    [`echo forged > ev/${BUNDLE.log}`, 2, /could not hand the evidence over/],
    ['mv ev elsewhere; mkdir ev', 125, /another directory has taken its place/],
  ] as const) {
    rmSync(evidence, { recursive: true, force: true })
    rmSync(join(place.work, 'elsewhere'), { recursive: true, force: true })
    const { status, stderr } = run(attack)
    t.equal(status, told, stderr)
    t.match(stderr, message)
    const kept = keptIn(stderr)
    t.ok(kept, stderr)
    if (kept === undefined) continue
    const { status: verified, stdout } = spawnSync(AMBIT, ['verify', kept], { encoding: 'utf8' })
    t.equal(verified, 0, stdout)
    t.match(readFileSync(join(kept, BUNDLE.log), 'utf8'), attack.split(' ')[0]!)
    rmSync(kept, { recursive: true })
  }
})

/** `ambit run` of a long command, its private daemon's pid and state directory. */
async function running(): Promise<{ kill(): Promise<void>; daemon: number; state: string }> {
  const child = spawn(AMBIT, ['run', '--contract', contract, '--', 'sh', '-c', 'echo up; exec sleep 60'], { cwd: place.work, stdio: ['ignore', 'pipe', 'ignore'] })
  const ended = new Promise(resolve => child.once('exit', resolve))
  await new Promise(resolve => child.stdout.once('data', resolve))
  for (const one of readFileSync(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8').split(' ').filter(Boolean)) {
    const words = readFileSync(`/proc/${one}/cmdline`, 'utf8').split('\0')
    if (words.includes('--private')) return { daemon: Number(one), state: words[words.indexOf('--state') + 1]!, async kill() { child.kill('SIGKILL'); await ended } }
  }
  throw new Error('it has no private daemon')
}

t.test('what a private daemon leaves that was killed with its starter goes with the next one; a living one keeps its own', async t => {
  const dead = await running()
  const living = await running()
  process.kill(dead.daemon, 'SIGKILL')
  await dead.kill()
  t.ok(existsSync(dead.state), 'nobody removed it')
  t.equal(spawnSync(AMBIT, ['run', '--contract', contract, '--', 'true'], { cwd: place.work }).status, 0)
  t.notOk(existsSync(dead.state))
  t.ok(existsSync(join(living.state, 'daemon.json')))
  await living.kill()
  await until(() => !existsSync(living.state), 'the end of a daemon whose starter alone was killed')
})

t.test('a directory goes only if nobody can be using it', async t => {
  const dir = mkdtempSync(join(tmpdir(), 'ambit-forsaken-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const self = readFileSync('/proc/self/stat', 'utf8').split(') ')[1]!.split(' ')[19]
  const make = (name: string, owner: string | null): string => {
    mkdirSync(join(dir, name))
    if (owner !== null) writeFileSync(join(dir, name, 'owner'), owner)
    return join(dir, name)
  }
  make('private-mine', `${process.pid} ${self}`)
  make('private-reused', `${process.pid} 1`)
  make('private-fresh', null)
  utimesSync(make('private-never', null), new Date(0), new Date(0))
  const lock = native().lockFile(join(make('private-locked', `${process.pid} 1`), 'lock'))!
  make('other', `${process.pid} 1`)
  mkdirSync(join(dir, 'target'))
  writeFileSync(join(dir, 'target/file'), '')
  symlinkSync(join(dir, 'target'), join(dir, 'private-link'))
  removeForsaken(dir)
  t.same(readdirSync(dir).sort(), ['other', 'private-fresh', 'private-link', 'private-locked', 'private-mine', 'target'])
  closeSync(lock)
  removeForsaken(dir)
  t.same(readdirSync(dir).sort(), ['other', 'private-fresh', 'private-link', 'private-mine', 'target'])
  t.ok(existsSync(join(dir, 'target/file')))
})
