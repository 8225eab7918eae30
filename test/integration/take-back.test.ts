import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { makePlace, removePlace, run, startDaemon, until, verdictOf, writeContract } from '../fixtures/daemon.ts'
import { begun, cgroupsOf, faultsOf, linesOf, randomOf } from '../fixtures/death.ts'

// Cells that outlive their daemon, and the next one, which takes them back.
const SEEDS = [11, 42]

t.test('continue: cells outlive the daemon, and the next one sees each to its end with nothing lost but what the evidence names', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  const contract = writeContract(place, { ttl: '120s', spec: 'onDaemonLoss: continue' })
  for (const seed of SEEDS) {
    const random = randomOf(seed)
    const daemon = await startDaemon(place)
    const runs = Array.from({ length: 4 }, (_, index) => {
      const evidence = join(place.dir, `evidence-${seed}-${index}`)
      const turns = 20 + Math.floor(random() * 30)
      // Some end before the daemon does, some while there is none, some after.
      return { turns, evidence, index, ...run(place, contract, ['sh', '-c', `i=0; while [ $i -lt ${turns} ]; do /usr/bin/sleep 0.0${1 + Math.floor(random() * 9)}; i=$((i+1)); done; echo all; exit ${10 + index}`], evidence) }
    })
    await until(() => begun(place) >= runs.length, 'all cells')
    await sleep(500 + random() * 800)
    daemon.child.kill('SIGKILL')
    await daemon.ended
    await sleep(random() * 1500)
    const next = await startDaemon(place)
    for (const { turns, evidence, index, result } of runs) {
      const { status, stdout, stderr } = await result
      t.equal(status, 10 + index, `seed ${seed}: ${stderr}`)
      t.equal(stdout, 'all\n')
      t.equal(faultsOf(evidence, place), '')
      const told = linesOf(evidence)
      const lost = told.filter(one => one.type === 'loss').reduce((sum, one) => sum + Number(one['dropped']), 0)
      const ran = told.filter(one => one.type === 'exec' && one['path'] === '/usr/bin/sleep').length
      t.ok(ran <= turns && ran + lost >= turns, `seed ${seed}: ${ran} of ${turns} executions are told, and ${lost} lost events`)
      const gap = told.find(one => one.type === 'gap')
      if (gap === undefined) continue
      t.same(gap['unobserved'], ['network', 'dns'])
      if (seed === SEEDS[0]) t.ok(verdictOf(evidence).coverage.some(({ family, gaps }) => family === 'network' && gaps.some(text => text.includes('the daemon was gone'))))
      const calls = (told.find(one => one.type === 'syscalls')!['calls'] as { name: string; unfinished: number }[]).find(({ name }) => name === 'exit_group')!
      t.equal(calls.unfinished, turns + 1, 'the sets counted on while nobody read them')
    }
    t.ok(runs.some(({ evidence }) => linesOf(evidence).some(one => one.type === 'gap')), `seed ${seed}: some cells met the gap`)
    await next.stop()
    t.same(readdirSync(join(place.state, 'spawners')), [], 'no spawner waits for anybody')
    t.same([...cgroupsOf(daemon.pid), ...cgroupsOf(next.pid)], [])
  }
})

t.test('continue: what a cell sends while there is no daemon waits for the next one, and never goes out by itself', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  const met: string[] = []
  const server = createServer(socket => {
    socket.on('error', () => {})
    socket.once('data', data => { met.push(String(data).trim()); socket.end('answer\n') })
  })
  await new Promise<void>(resolve => { server.listen(0, '127.0.0.1', resolve) })
  t.teardown(() => server.close())
  const { port } = server.address() as AddressInfo
  const contract = writeContract(place, {
    ttl: '60s', spec: `onDaemonLoss: continue\nhosts: { peer.test: 127.0.0.1 }`,
  })
  writeFileSync(contract, readFileSync(contract, 'utf8').replace('  authority:\n', `  authority:\n    network: [{ host: peer.test, port: ${port} }]\n`))
  const script = join(place.work, 'talk.py')
  writeFileSync(script, `import socket, sys, os, time
address = socket.getaddrinfo("peer.test", ${port}, socket.AF_INET)[0][4]
def say(text):
    s = socket.create_connection(address, 60)
    s.sendall(text.encode() + b"\\n")
    return s.recv(100).decode().strip()
print(say("before"), flush=True)
open("ready", "w").close()
while not os.path.exists("gone"): time.sleep(0.02)
print(say("meanwhile"), flush=True)
print(say("after"), flush=True)
`)
  const daemon = await startDaemon(place)
  const evidence = join(place.dir, 'talk')
  const talk = run(place, contract, ['python3', 'talk.py'], evidence)
  await until(() => existsSync(join(place.work, 'ready')), 'the first answer')
  daemon.child.kill('SIGKILL')
  await daemon.ended
  writeFileSync(join(place.work, 'gone'), '')
  await sleep(500)
  t.same(met, ['before'], 'nothing passes without a daemon')
  const next = await startDaemon(place)
  const { status, stdout, stderr } = await talk.result
  t.equal(status, 0, stderr)
  t.equal(stdout, 'answer\nanswer\nanswer\n')
  t.same(met, ['before', 'meanwhile', 'after'])
  t.equal(faultsOf(evidence, place), '')
  await next.stop()
})

t.test('a cell is given only to who asked for it', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  const contract = writeContract(place, { spec: 'onDaemonLoss: continue' })
  const daemon = await startDaemon(place)
  const held = run(place, contract, ['sh', '-c', 'while [ ! -e end ]; do sleep 0.05; done; exit 4'])
  await until(() => begun(place) === 1, 'the cell')
  await sleep(300)
  t.same(readdirSync(place.state).filter(name => /record|cells/.test(name)), [], 'nothing of it is in a file')
  daemon.child.kill('SIGKILL')
  await daemon.ended
  const next = await startDaemon(place)
  await sleep(500)
  mkdirSync(join(place.work, 'end'))
  t.equal((await held.result).status, 4)
  await next.stop()
})

t.test('a cell that nobody comes back for is ended, and its evidence sealed; one whose client waits is not', async t => {
  const place = makePlace()
  t.teardown(() => removePlace(place))
  const contract = writeContract(place, { ttl: '60s', spec: 'onDaemonLoss: continue' })
  const daemon = await startDaemon(place)
  const forsaken = run(place, contract, ['sleep', '50'])
  const waited = run(place, contract, ['sh', '-c', 'while [ ! -e end ]; do sleep 0.05; done; exit 4'])
  await until(() => begun(place) === 2, 'the cells')
  await sleep(500)
  daemon.child.kill('SIGKILL')
  await daemon.ended
  // Its output stays open: the cell holds it.
  const killed = new Promise(resolve => forsaken.child.once('exit', resolve))
  forsaken.child.kill('SIGKILL')
  await killed
  const next = await startDaemon(place, ['--claim-within', '2s'])
  const endings = (): (string | undefined)[] => readdirSync(join(place.state, 'evidence')).filter(id => existsSync(join(place.state, 'evidence', id, 'statement.dsse.json'))).map(id => String(linesOf(join(place.state, 'evidence', id)).at(-1)!['reason']))
  await until(() => endings().length > 0, 'the end of the one')
  t.same(endings(), ['client-gone'])
  t.equal(waited.child.exitCode, null)
  mkdirSync(join(place.work, 'end'))
  t.equal((await waited.result).status, 4)
  await next.stop()
})
