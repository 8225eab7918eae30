import { mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { makePlace, processesWith, removePlace, run, startDaemon, until, USUAL_AUTHORITY as USUAL, writeContract } from '../fixtures/daemon.ts'
import { begun } from '../fixtures/death.ts'

t.test('a cell under the profile of another engine is taken back with it', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  writeFileSync(join(place.dir, 'profile.json'), JSON.stringify({ defaultAction: 'SCMP_ACT_ALLOW', syscalls: [] }))
  const contract = writeContract(place, { spec: 'onDaemonLoss: continue', authority: USUAL.replace('build', 'oci:profile.json') })
  const daemon = await startDaemon(place)
  const held = run(place, contract, ['sh', '-c', 'while [ ! -e end ]; do sleep 0.05; done; exit 4'])
  await until(() => begun(place) === 1, 'the cell')
  await sleep(300)
  daemon.child.kill('SIGKILL')
  await daemon.ended
  const next = await startDaemon(place)
  mkdirSync(join(place.work, 'end'))
  const { status, stderr } = await held.result
  t.equal(status, 4, stderr)
  await next.stop()
})

t.test('a cell that cannot be gone on with is ended, and its ids are nobody\'s before', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  const contract = writeContract(place, { ttl: '60s', spec: 'onDaemonLoss: continue' })
  const daemon = await startDaemon(place)
  const marks = ['61.25', '61.75']
  const lost = run(place, contract, ['/usr/bin/sleep', marks[0]!])
  await until(() => begun(place) === 1, 'the first cell')
  const other = run(place, contract, ['/usr/bin/sleep', marks[1]!])
  await until(() => marks.every(mark => processesWith(`^/usr/bin/sleep ${mark}`).length === 1), 'both commands')
  await sleep(300)
  daemon.child.kill('SIGKILL')
  await daemon.ended
  t.same(marks.map(mark => processesWith(`^/usr/bin/sleep ${mark}`).length), [1, 1], 'without a daemon both go on')
  // As a full disk, or whoever wrote to it, would leave it.
  const [first] = readdirSync(join(place.state, 'evidence')).sort((a, b) => statSync(join(place.state, 'evidence', a)).birthtimeMs - statSync(join(place.state, 'evidence', b)).birthtimeMs)
  writeFileSync(join(place.state, 'evidence', first!, 'events.jsonl'), '')
  const next = await startDaemon(place, ['--log-level', 'fatal'])
  t.same(marks.map(mark => processesWith(`^/usr/bin/sleep ${mark}`).length), [0, 1], 'the one whose evidence is gone is ended, the other goes on')
  t.not((await lost.result).status, 0)
  await next.stop()
  await other.result
})

t.test('what another cell is being built or runs with does not end with the daemon a cell that goes on', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  const tree = join(place.dir, 'tree')
  mkdirSync(tree)
  const daemon = await startDaemon(place, ['--spare-cells', '0'])
  const held = run(place, writeContract(place, { ttl: '60s', spec: 'onDaemonLoss: continue' }), ['/usr/bin/sleep', '62.25'])
  await until(() => processesWith('^/usr/bin/sleep 62.25').length === 1, 'the cell that goes on')
  // To show a tree, the spawner takes the caller's ids and gives them back, which makes the kernel forget whose death is watched.
  const beside = run(place, writeContract(place, { ttl: '60s', authority: USUAL.replace('/workspace', `${tree}, /workspace`) }), ['/usr/bin/sleep', '62.75'])
  await until(() => processesWith('^/usr/bin/sleep 62.75').length === 1, 'the other cell')
  daemon.child.kill('SIGKILL')
  await daemon.ended
  await until(() => processesWith('^/usr/bin/sleep 62.75').length === 0, 'the end of what does not go on')
  t.equal(processesWith('^/usr/bin/sleep 62.25').length, 1, 'the other one goes on')
  await beside.result
  const next = await startDaemon(place)
  held.child.kill('SIGKILL')
  await next.stop()
  await held.result
})
