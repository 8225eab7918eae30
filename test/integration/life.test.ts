import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { makePlace, processesWith, removePlace, run, startDaemon, until, verdictOf, writeContract } from '../fixtures/daemon.ts'
import { begun, cgroupsOf, faultsOf, linesOf, randomOf } from '../fixtures/death.ts'

// A daemon that is killed, at moments that nobody chose, and what becomes of its cells.
const SEEDS = [11, 42]

t.test('stop: every cell ends with its daemon, whatever it was at, and the next daemon finds nothing to trip over', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  const contract = writeContract(place, { ttl: '120s' })
  for (const seed of SEEDS) {
    const random = randomOf(seed)
    const daemon = await startDaemon(place)
    const marker = `life-stop-${seed}`
    const runs = []
    for (let i = 0; i < 10; i++) {
      runs.push(run(place, contract, ['sh', '-c', `: ${marker}; trap "" TERM; (setsid sleep 100 ${marker} &); ${random() < 0.4 ? 'exit 0' : 'sleep 100'}`]))
      await sleep(random() * 40)
    }
    await sleep(random() * 200)
    t.ok(runs.some(one => one.child.exitCode === null), 'some of them are at work')
    daemon.child.kill('SIGKILL')
    await daemon.ended
    const statuses = await Promise.all(runs.map(async one => (await one.result).status))
    t.ok(statuses.every(status => [0, 2, 125].includes(status ?? -1)), `seed ${seed}: ${statuses.join(' ')}`)
    await until(() => processesWith(marker).length === 0, `the end of all that ran when the daemon died (seed ${seed})`)
    const next = await startDaemon(place)
    t.same(cgroupsOf(daemon.pid), [], `its groups are gone (seed ${seed})`)
    t.equal((await run(place, contract, ['true']).result).status, 0, 'and cells run again')
    await next.stop()
    t.same(cgroupsOf(next.pid), [])
  }
})

t.test('continue: without any daemon a cell ends at its time, and the next one tells so; a daemon may die twice', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  const contract = writeContract(place, { ttl: '3s', spec: 'onDaemonLoss: continue' })
  const first = await startDaemon(place)
  const marker = 'life-ttl-marker'
  const evidence = join(place.dir, 'ttl')
  const held = run(place, contract, ['sh', '-c', `trap "" TERM; : ${marker}; (setsid sleep 100 ${marker} &); while :; do sleep 0.1; done`], evidence)
  await until(() => processesWith(marker).length > 1, 'the cell')
  first.child.kill('SIGKILL')
  await first.ended
  await until(() => processesWith(marker).filter(pid => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('ambit-client') === false).length === 0, 'its end without a daemon')
  const second = await startDaemon(place)
  t.match(await held.result, { status: 124, stderr: /time limit of 3s reached while no daemon was there/ })
  t.match(verdictOf(evidence), { outcome: { reason: 'ttl' } })

  const longer = writeContract(place, { ttl: '60s', spec: 'onDaemonLoss: continue' })
  const twice = run(place, longer, ['sh', '-c', 'while [ ! -e twice ]; do sleep 0.05; done; exit 9'], join(place.dir, 'twice'))
  await until(() => begun(place) === 2, 'the second cell')
  await sleep(500)
  let daemon = second
  for (let deaths = 0; deaths < 2; deaths++) {
    daemon.child.kill('SIGKILL')
    await daemon.ended
    daemon = await startDaemon(place)
    await sleep(500)
  }
  mkdirSync(join(place.work, 'twice'))
  t.equal((await twice.result).status, 9)
  t.equal(faultsOf(join(place.dir, 'twice'), place), '')
  t.equal(linesOf(join(place.dir, 'twice')).filter(one => one.type === 'gap').length, 2)
  await daemon.stop()
  t.same(readdirSync(join(place.state, 'spawners')), [])
})
