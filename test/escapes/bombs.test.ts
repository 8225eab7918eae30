import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { AMBIT, CLIENT, makePlace, processesWith, removePlace, run, startDaemon, verdictOf, writeContract } from '../fixtures/daemon.ts'

// One job against the host and the other jobs: while it takes what it can get, other cells start and end as ever.
const place = makePlace()
const daemon = await startDaemon(place)
t.teardown(async () => {
  await daemon.stop()
  removePlace(place)
})

const QUIET = writeContract(place)
const residentMiB = (): number => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${daemon.pid}/status`, 'utf8'))![1]) / 1024

let bundles = 0
const bundle = (): string => join(place.dir, `bundle-${bundles++}`)
type Record = { type: string; dropped?: number; produced?: number; delivered?: number; event?: string }
const recordsOf = (evidence: string): Record[] => readFileSync(join(evidence, 'events.jsonl'), 'utf8').trim().split('\n').map(line => JSON.parse(line) as Record)

t.test('a fork bomb that does not give up: its time ends it, whole, and other cells start meanwhile', async t => {
  const contract = writeContract(place, { ttl: '8s', spec: 'limits: { pids: 64 }' })
  const evidence = bundle()
  const program = join(place.work, 'fork-bomb')
  execFileSync('gcc', ['-static', '-O1', '-o', program, join(import.meta.dirname, 'cases/fork-bomb.c')])
  const bomb = run(place, contract, ['/workspace/fork-bomb', '0'], evidence)
  for (let i = 0; i < 4; i++) t.equal((await run(place, QUIET, ['sh', '-c', 'true & wait']).result).status, 0, 'another cell forks')
  t.equal(bomb.child.exitCode, null, 'it still goes on')
  t.equal((await bomb.result).status, 124)
  t.same(processesWith('^/workspace/fork-bomb 0'), [], 'nothing of it is left')
  t.same(verdictOf(evidence).limits.map(({ limit }) => limit).sort(), ['pids', 'ttl'])
})

t.test('memory, /tmp and /dev/shm of a cell end at its own limit, and other cells start meanwhile', async t => {
  const contract = writeContract(place, { spec: 'limits: { memory: 64MiB }' })
  for (const act of ['x=$(head -c 300M /dev/zero | tr "\\\\0" x)', 'head -c 300M /dev/zero > /tmp/filler', 'head -c 60M /dev/zero > /dev/shm/one; head -c 60M /dev/zero > /tmp/two']) {
    const evidence = bundle()
    const [bomb, other] = await Promise.all([run(place, contract, ['sh', '-c', act], evidence).result, run(place, QUIET, ['true']).result])
    t.not(bomb.status, 0, act)
    t.equal(other.status, 0)
    t.ok(verdictOf(evidence).limits.some(({ limit, by }) => limit === 'memory' && by.length > 0), `named: ${act}`)
    t.equal((await run(place, QUIET, ['sh', '-c', act]).result).status, 0, 'and goes well where the limit is higher')
  }
})

t.test('output that nobody reads holds up whoever writes it, not the daemon; all that is read arrives', async t => {
  const contract = writeContract(place, { ttl: '20s' })
  const flood = spawn(CLIENT, ['run', '--socket', place.socket, '--contract', contract, '--', 'sh', '-c', 'head -c 64M /dev/zero | tr "\\\\0" x; echo end'], { cwd: place.work, stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise(resolve => flood.once('close', resolve))
  const before = residentMiB()
  for (let i = 0; i < 5; i++) t.equal((await run(place, QUIET, ['true']).result).status, 0, 'another cell starts')
  t.equal(flood.exitCode, null, 'it waits for its reader')
  let bytes = 0
  let last = ''
  flood.stdout.on('data', (chunk: Buffer) => { bytes += chunk.length; last = chunk.subarray(-4).toString() })
  t.equal(await ended, 0)
  t.equal(bytes, 64 * 1024 * 1024 + 4)
  t.equal(last, 'end\n')
  t.ok(residentMiB() - before < 48, 'none of it went through the daemon')
})

t.test('a flood of acts fills no disk and stops no daemon: what the evidence lacks is counted, and it verifies', async t => {
  writeFileSync(join(place.work, 'acts.py'), `import os
for i in range(60000):
    try: os.open('/tmp/%d/%s' % (i, 'x' * 200), os.O_RDONLY)
    except OSError: pass
`)
  const contract = writeContract(place, { ttl: '60s' })
  const evidence = bundle()
  const before = residentMiB()
  const flood = run(place, contract, ['python3', 'acts.py'], evidence)
  let others = 0
  let over = false
  void flood.result.then(() => { over = true })
  while (!over) {
    t.equal((await run(place, QUIET, ['true']).result).status, 0, 'another cell starts')
    others++
  }
  t.equal((await flood.result).status, 0)
  t.ok(others > 1)
  t.equal(spawnSync(AMBIT, ['verify', evidence]).status, 0)
  t.ok(statSync(join(evidence, 'events.jsonl')).size < 80 * 1024 * 1024)
  const records = recordsOf(evidence)
  const losses = records.filter(({ type }) => type === 'loss')
  t.ok(losses.every(({ produced, delivered, dropped }) => produced === delivered! + dropped!))
  const told = records.filter(({ type }) => type === 'file.failed').length
  const dropped = losses.reduce((sum, loss) => sum + loss.dropped!, 0)
  t.ok(told + dropped >= 60_000, `${told} told, ${dropped} counted as lost`)
  t.ok(residentMiB() - before < 300, 'the daemon holds only so much of it')
})
