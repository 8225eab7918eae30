import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { makePlace, removePlace, run, startDaemon, writeContract } from '../fixtures/daemon.ts'

// Two jobs of one user at one time: what one leaves where processes of a machine meet, the other does not find.
const place = makePlace()
const program = join(place.work, 'neighbour')
const built = spawnSync('gcc', ['-static', '-O1', '-Wall', '-Wextra', '-Werror', '-o', program, join(import.meta.dirname, 'neighbour.c')], { encoding: 'utf8' })
if (built.status !== 0) throw new Error(built.stderr)
const daemon = await startDaemon(place)
t.teardown(async () => {
  await daemon.stop()
  removePlace(place)
})

const PLACES = ['process', 'signal', 'memory', 'semaphore', 'queue', 'abstract', 'port', 'shm', 'tmp']
const contract = writeContract(place)

t.test('bare, one job finds everything of another', async t => {
  const holder = spawn(program, ['hold'], { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise(resolve => holder.once('close', resolve))
  try {
    const ready = await new Promise<string>(resolve => holder.stdout.once('data', (chunk: Buffer) => resolve(chunk.toString())))
    // The user may have no room for POSIX queues, and the kernel may have none.
    const found = ready === 'ready\n' ? PLACES : PLACES.filter(place => place !== 'queue')
    t.equal(spawnSync(program, ['seek'], { encoding: 'utf8' }).stdout, `found: ${found.join(' ')}\n`)
    t.match(await run(place, contract, ['/workspace/neighbour', 'seek']).result, { status: 10 }, 'nor does a cell find anything of it')
  } finally {
    holder.kill('SIGTERM')
    await ended
  }
})

t.test('in a cell, nothing of another cell that runs at the same time', async t => {
  // It looks for itself until it is found: then all of it is there.
  const holder = run(place, contract, ['sh', '-c', '/workspace/neighbour hold & until /workspace/neighbour seek | grep tmp; do :; done; wait'])
  await new Promise<void>(resolve => holder.child.stdout!.on('data', (chunk: Buffer) => { if (chunk.includes('found: ')) resolve() }))
  t.match(await run(place, contract, ['/workspace/neighbour', 'seek']).result, { status: 10, stdout: 'found nothing of the other\n' })
  t.match(spawnSync(program, ['seek'], { encoding: 'utf8' }).stdout, /^found: process signal\n$/, 'the host finds the process alone')
  holder.child.kill('SIGTERM')
  await holder.result
})

t.test('a lock on a file that may only be read is a lock on the host, too: the evidence says that locks are not held', async t => {
  const tree = mkdtempSync('/var/tmp/ambit-locks-')
  t.teardown(() => rmSync(tree, { recursive: true }))
  chmodSync(tree, 0o755)
  const file = join(tree, 'file')
  writeFileSync(file, '', { mode: 0o644 })
  const locks = writeContract(place, { authority: `filesystem: { read: [/usr/lib, /usr/bin, /bin, /lib, /lib64, ${tree}], write: [] }
exec: ['*']
syscall: { profile: build }` })
  const evidence = join(place.dir, 'locks')
  const holder = run(place, locks, ['python3', '-c', `import fcntl, os, signal; fcntl.flock(os.open('${file}', os.O_RDONLY), fcntl.LOCK_EX); print('locked', flush=True); signal.pause()`], evidence)
  await new Promise(resolve => holder.child.stdout!.once('data', resolve))
  t.equal(spawnSync('flock', ['--nonblock', file, 'true']).status, 1, 'the host waits')
  holder.child.kill('SIGTERM')
  await holder.result
  t.equal(spawnSync('flock', ['--nonblock', file, 'true']).status, 0)
  t.match(readFileSync(join(evidence, 'events.jsonl'), 'utf8'), /"name":"file locks","state":"not held/)
})
