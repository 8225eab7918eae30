import { spawnSync } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { makePlace, processesWith, removePlace, run, startDaemon, until, verdictOf, writeContract } from '../fixtures/daemon.ts'

const place = makePlace()
const daemon = startDaemon(place)
t.before(async () => { await daemon })
t.teardown(async () => {
  await (await daemon).stop()
  removePlace(place)
})
let bundles = 0
const bundle = (): string => join(place.dir, `bundle-${bundles++}`)

t.test('the out-of-memory killer\'s choice has a name: at the end of the run, in the evidence and in the verdict', async t => {
  const contract = writeContract(place, { spec: 'limits: { memory: 64MiB }' })
  const bomb = 'python3 -c "x = bytearray(256 << 20)"'
  t.equal(spawnSync('sh', ['-c', bomb]).status, 0, 'bare, it gets its memory')
  const inner = bundle()
  const survived = await run(place, contract, ['sh', '-c', `${bomb}; echo "it ended with $?"`], inner).result
  t.match(survived, { status: 0, stdout: /it ended with 137/, stderr: /^(Killed\n)?ambit: memory limit of 64MiB reached by python3\[\d+\]: killed\n$/m })
  t.match(verdictOf(inner), { outcome: { code: 0, reason: 'exited' }, limits: [{ limit: 'memory', by: [{ comm: 'python3' }] }] })
  const chosen = readFileSync(join(inner, 'events.jsonl'), 'utf8').split('\n').filter(Boolean).map(line => JSON.parse(line) as { type: string; oom?: boolean; process?: { pid: number } }).find(record => record.type === 'exit' && record.oom)
  t.equal(chosen?.process?.pid, verdictOf(inner).limits[0]!.by[0]!.pid, 'the exit of that very process is marked')
  const whole = bundle()
  t.match(await run(place, contract, ['python3', '-c', 'x = bytearray(256 << 20)'], whole).result, { status: 137, stderr: /memory limit of 64MiB reached by python3\[\d+\]/ })
  t.match(verdictOf(whole), { outcome: { signal: 'SIGKILL', reason: 'memory' }, limits: [{ limit: 'memory', by: [{ comm: 'python3' }] }] })
  const text = spawnSync(join(import.meta.dirname, '../../bin/ambit'), ['verdict', whole], { encoding: 'utf8' }).stdout
  t.match(text.split('\n')[0], /ended by SIGKILL \(memory limit of 64MiB reached by python3\[\d+\]: killed\)/)
})

t.test('a process that names itself like a line of ours writes no line', async t => {
  const forged = '\\nambit: all ok'
  const bomb = `import ctypes\nctypes.CDLL(None).prctl(15, b"${forged}", 0, 0, 0)\nx = bytearray(256 << 20)`
  const named = `${bomb.split('\n').slice(0, 2).join('\n')}\nprint(open("/proc/self/comm").read(), end="")`
  t.equal(spawnSync('python3', ['-c', named], { encoding: 'utf8' }).stdout, '\nambit: all ok\n', 'the kernel lets it have the name')
  const { stderr } = await run(place, writeContract(place, { spec: 'limits: { memory: 64MiB }' }), ['python3', '-c', bomb]).result
  t.match(stderr, /reached by \\x0aambit: all ok\[\d+\]: killed\n$/)
  t.notMatch(stderr, /^ambit: all ok/m)
})

t.test('who was refused a process has a name, too; a kill by hand is no limit', async t => {
  const contract = writeContract(place, { spec: 'limits: { pids: 12 }' })
  const crowd = 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do sleep 0.3 & done; wait; echo all'
  t.equal(spawnSync('sh', ['-c', crowd], { encoding: 'utf8' }).stdout, 'all\n', 'bare')
  const evidence = bundle()
  const refused = await run(place, contract, ['sh', '-c', crowd], evidence).result
  t.match(refused.stderr, /ambit: limit of 12 processes reached by sh\[\d+\]: \d+ forks? (was|were) refused/)
  t.notMatch(refused.stdout, /all/)
  t.match(verdictOf(evidence).limits, [{ limit: 'pids', by: [{ comm: 'sh' }] }])
  const killed = bundle()
  const none = await run(place, contract, ['sh', '-c', 'kill -9 $$'], killed).result
  t.match(none, { status: 137, stderr: '' })
  t.match(verdictOf(killed), { outcome: { signal: 'SIGKILL', reason: 'exited' }, limits: [] })
})

t.test('when its time is over, every process is asked to end, then ended: none outlives a cell', async t => {
  const contract = writeContract(place, { ttl: '1s' })
  const scripts: Record<string, string> = {
    'ignores TERM': 'trap "" TERM; while :; do sleep 0.1 limits-marker; done',
    'forks constantly': 'trap "" TERM; f() { while :; do (sleep 0.01) & sleep 0.005; done; }; f limits-marker',
    'is stopped': 'sh -c "kill -STOP \\$\\$; : limits-marker"; :',
    'double-forks into sessions of their own': '(setsid sh -c "trap \\"\\" TERM; (setsid sleep 1000 limits-marker &) ; sleep 1000" &); sleep 1000',
  }
  for (const [name, script] of Object.entries(scripts)) {
    const evidence = bundle()
    const { status, stderr } = await run(place, contract, ['sh', '-c', `: limits-marker; ${script}`], evidence).result
    t.equal(status, 124, name)
    t.match(stderr, /ambit: time limit of 1s reached by \w+\[\d+\]/, name)
    t.match(verdictOf(evidence), { outcome: { reason: 'ttl' }, limits: [{ limit: 'ttl', detail: /reached by/ }] }, name)
    await until(() => processesWith('limits-marker').length === 0, `the end of the cell that ${name}`)
  }
  const polite = await run(place, contract, ['sh', '-c', '(trap "echo one > one.txt; exit" TERM; while :; do sleep 0.05; done) & (trap "echo two > two.txt; exit" TERM; kill -STOP $(exec sh -c "echo \\$PPID"); while :; do sleep 0.05; done) & trap "wait; exit 3" TERM; wait']).result
  t.equal(polite.status, 124)
  t.ok(existsSync(join(place.work, 'one.txt')), 'not only the command hears of it')
  t.ok(existsSync(join(place.work, 'two.txt')), 'nor only who was running')
})

t.test('processor time is held, and the verdict says how much was withheld', async t => {
  const spin = ['sh', '-c', 'i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done']
  const evidence = bundle()
  const held = await run(place, writeContract(place, { spec: 'limits: { cpus: 0.2 }' }), spin, evidence).result
  t.match(held, { status: 0, stderr: '' })
  t.match(verdictOf(evidence).limits, [{ limit: 'cpu', detail: /^held back for \d+\.\d\d s by the limit of 0\.2 processors$/ }])
  const free = bundle()
  await run(place, writeContract(place), spin, free).result
  t.same(verdictOf(free).limits, [])
})

t.test('disk reads are held where the host can; what it cannot hold is refused in enforce and told in observe', async t => {
  const file = join(place.work, 'data')
  writeFileSync(file, Buffer.alloc(4 << 20))
  closeSync(openSync(file, 'r+'))
  const read = ['dd', 'if=data', 'of=/dev/null', 'bs=1M', 'iflag=direct']
  const spec = (io: string): string => `limits: { io: ${io} }`
  const evidence = bundle()
  const held = await run(place, writeContract(place, { spec: spec('{ read: 2MiB }') }), read, evidence).result
  t.equal(held.status, 0, held.stderr)
  const enforcer = readFileSync(join(evidence, 'events.jsonl'), 'utf8').split('\n').find(line => line.includes('"type":"coverage"'))!
  t.match(enforcer, /"name":"limit of io read","state":"2MiB a second on \d+:\d+/)
  const seconds = Number(/copied, ([\d.]+) s/.exec(held.stderr)?.[1])
  t.ok(seconds >= 1, `4 MiB at 2 MiB a second took ${seconds} s: the kernel lets the first slice through at once`)
  const v1 = existsSync('/sys/fs/cgroup/blkio') && statSync('/sys/fs/cgroup/blkio').isDirectory()
  const write = await run(place, writeContract(place, { spec: spec('{ write: 2MiB }') }), ['true']).result
  if (!v1) t.equal(write.status, 0, write.stderr)
  else {
    t.match(write, { status: 125, stderr: /could not hold the cell to io write 2MiB.*: the blkio controller of cgroup v1/ })
    const told = bundle()
    t.equal((await run(place, writeContract(place, { spec: spec('{ write: 2MiB }'), mode: 'observe' }), ['true'], told).result).status, 0)
    t.match(readFileSync(join(told, 'events.jsonl'), 'utf8'), /"name":"limit of io write","state":"not held: /)
  }
})
