import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { openSlots } from '../../src/cell/slots.ts'

const root = join(import.meta.dirname, '../..')
const client = join(root, 'build/Release/ambit-client')

async function startDaemon(t: { teardown(end: () => Promise<void>): unknown }): Promise<{ dir: string; socket: string; pid: number; ended: Promise<number | null> }> {
  const dir = mkdtempSync(join(tmpdir(), 'ambit-daemon-test-'))
  const state = join(dir, 'state')
  const socket = join(dir, 'run/ambit.sock')
  const child = spawn(process.execPath, [join(root, 'dist/cli/main.js'), 'daemon', '--state', state, '--socket', socket, '--feed-port', '0', '--log-level', 'fatal'], { stdio: 'ignore' })
  const ended = new Promise<number | null>(resolve => child.once('exit', code => resolve(code)))
  t.teardown(async () => {
    child.kill()
    await ended
    rmSync(dir, { recursive: true, force: true })
  })
  for (let i = 0; i < 1000 && !existsSync(join(state, 'daemon.json')); i++) await sleep(20)
  return { dir, socket, pid: child.pid!, ended }
}

t.test('a daemon whose spawner was killed notices by itself, tells whoever had a cell, and ends for its supervisor to see', async t => {
  const { dir, socket, pid, ended } = await startDaemon(t)
  t.equal(statSync(socket).mode & 0o777, 0o600, 'only root may ask')
  const contract = join(dir, 'c.yaml')
  writeFileSync(contract, 'apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: enforce\n  ttl: 60s\n  authority: { filesystem: { read: [/usr/lib] }, exec: [/usr/bin/sleep], syscall: { profile: build } }\n')
  const child = spawn(client, ['run', '--socket', socket, '--contract', contract, '--', '/usr/bin/sleep', '60'], { cwd: '/usr', stdio: 'ignore' })
  const told = new Promise<number | null>(resolve => child.once('exit', code => resolve(code)))
  const inCell = (one: string): boolean => {
    try {
      return readFileSync(`/proc/${one}/cgroup`, 'utf8').includes(`ambit-${pid}/`)
    } catch {
      return false
    }
  }
  const sleeps = (): boolean => spawnSync('pgrep', ['-x', 'sleep'], { encoding: 'utf8' }).stdout.split('\n').some(one => one !== '' && inCell(one))
  for (let i = 0; i < 1000 && !sleeps(); i++) await sleep(20)
  t.ok(sleeps())
  const spawner = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').find(one => readFileSync(`/proc/${one}/comm`, 'utf8').startsWith('ambit-spawner'))
  process.kill(Number(spawner), 'SIGKILL')
  t.equal(await ended, 1, 'without being asked for anything')
  t.equal(await told, 125)
  t.notOk(sleeps())
})

t.test('two daemons cannot keep the same state', async t => {
  const { dir } = await startDaemon(t)
  const second = spawnSync(process.execPath, [join(root, 'dist/cli/main.js'), 'daemon', '--state', join(dir, 'state'), '--socket', join(dir, 'other.sock'), '--feed-port', '0'], { encoding: 'utf8', timeout: 20_000 })
  t.equal(second.status, 2)
  t.match(second.stderr, /could not keep state in .*state: another daemon does/)
})

t.test('a second daemon on the same socket says so and ends', async t => {
  const { dir, socket } = await startDaemon(t)
  const second = spawnSync(process.execPath, [join(root, 'dist/cli/main.js'), 'daemon', '--state', join(dir, 'other'), '--socket', socket, '--feed-port', '0'], { encoding: 'utf8', timeout: 20_000 })
  t.equal(second.status, 2)
  t.match(second.stderr, /could not open the control socket[^]*another daemon/)
})

t.test('evidence beyond its age is removed at the start, and the log says which', async t => {
  const { dir } = await startDaemon(t)
  const state = join(dir, 'aging')
  const old = join(state, 'evidence/cold')
  mkdirSync(old, { recursive: true })
  for (const name of ['events.jsonl', 'contract.yaml', 'public-key.pem', 'statement.dsse.json']) writeFileSync(join(old, name), '')
  const bad = spawnSync(process.execPath, [join(root, 'dist/cli/main.js'), 'daemon', '--state', state, '--keep-evidence', '30'], { encoding: 'utf8' })
  t.equal(bad.status, 2)
  t.match(bad.stderr, /could not read --keep-evidence: "30" is not a time/)
  const removed = async (): Promise<string> => {
    const child = spawn(process.execPath, [join(root, 'dist/cli/main.js'), 'daemon', '--state', state, '--socket', join(dir, 'aging/a.sock'), '--feed-port', '0', '--keep-evidence', '30d'], { stdio: ['ignore', 'ignore', 'pipe'] })
    let log = ''
    child.stderr.on('data', chunk => { log += chunk })
    const ended = new Promise(resolve => child.once('close', resolve))
    for (let i = 0; i < 1000 && !log.includes('"ready"'); i++) await sleep(20)
    await sleep(200)
    child.kill()
    await ended
    return log
  }
  t.notMatch(await removed(), /old evidence removed/)
  t.ok(existsSync(old))
  utimesSync(join(old, 'statement.dsse.json'), new Date(0), new Date(0))
  t.match(await removed(), /"cell":"cold".*"why":"age","msg":"old evidence removed"/)
  t.notOk(existsSync(old))
})

t.test('a user who is not root gets a share of the cells', async t => {
  const slots = openSlots(8)
  const mine = [slots.take(1000), slots.take(1000)]
  t.throws(() => slots.take(1000), { code: 'CELL_FAILED' })
  t.same([slots.take(2000), slots.take(2000), ...Array.from({ length: 4 }, () => slots.take(0))].length + mine.length, 8)
  t.throws(() => slots.take(0), { code: 'CELL_FAILED' })
  slots.give(mine[0]!)
  t.equal(slots.take(1000), mine[0])
})
