import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, copyFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { makePlace, removePlace, run, startDaemon, until, verdictOf, writeContract } from '../fixtures/daemon.ts'

// `true` is the program that was checked, `false` the one that takes its path: the exit status tells which of them ran.
const place = makePlace()
const tools = mkdtempSync('/var/tmp/ambit-tools-')
chmodSync(tools, 0o755)
const daemon = await startDaemon(place)
t.teardown(async () => {
  await daemon.stop()
  removePlace(place)
  rmSync(tools, { recursive: true })
})

const [GOOD, BAD] = ['/usr/bin/true', '/usr/bin/false']
const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex')
const tool = join(tools, 'tool')
function put(from: string): void {
  copyFileSync(from, join(tools, 'next'))
  chmodSync(join(tools, 'next'), 0o755)
  renameSync(join(tools, 'next'), tool)
}
const contract = (entry: string, read = '/usr/lib'): string => writeContract(place, { authority: `filesystem: { read: [${read}], write: [/workspace] }\nexec: [/usr/bin/dash, /usr/bin/sleep, ${entry}]\nsyscall: { profile: build }` })
const pinned = (digest = sha256(GOOD), path = tool): string => `{ path: ${path}, sha256: ${digest} }`
const evidence = join(place.dir, 'bundle')

t.test('a program whose content is the one that the contract names runs, and the verdict says so', async t => {
  put(GOOD)
  const { status, stderr } = await run(place, contract(pinned()), [tool], evidence).result
  t.equal(status, 0, stderr)
  const row = verdictOf(evidence).rows.find(({ grant }) => grant.startsWith(tool))
  t.match(row, { outcome: 'used', grant: `${tool} sha256:${sha256(GOOD).slice(0, 12)}` })
  t.match(row!.proof, sha256(GOOD))
})

t.test('a program with another content is refused, with its path, both digests and the line; without the digest it runs', async t => {
  put(BAD)
  t.equal((await run(place, contract(tool), [tool]).result).status, 1)
  const file = contract(pinned())
  const { status, stderr } = await run(place, file, [tool]).result
  t.not(status, 1)
  for (const part of [tool, sha256(GOOD), sha256(BAD), `${file}:10`]) t.ok(stderr.includes(part), `${part} in: ${stderr}`)
})

t.test('a link of the host\'s packages is pinned where it leads', async t => {
  const { status, stderr } = await run(place, contract(pinned(sha256('/bin/sh'), '/bin/sh')), ['/bin/sh', '-c', 'exit 7']).result
  t.equal(status, 7, stderr)
  symlinkSync(tool, join(tools, 'link'))
  put(GOOD)
  t.match((await run(place, contract(pinned(sha256(GOOD), join(tools, 'link'))), [join(tools, 'link')]).result).stderr, /is a link, and jobs may have made it/)
  rmSync(join(tools, 'link'))
})

for (const [shown, read] of [['by itself', '/usr/lib'], ['in its directory', `/usr/lib, ${tools}`]] as const) {
  t.test(`a program that is exchanged while the cell runs, shown ${shown}: the checked one runs, or none`, async t => {
    put(GOOD)
    for (const name of ['ready', 'go']) rmSync(join(place.work, name), { force: true })
    writeFileSync(join(place.work, 'job'), `${tool} || exit 9; : > ready; while ! [ -e go ]; do sleep 0.05; done; ${tool}`)
    const { result } = run(place, contract(pinned(), read), ['/usr/bin/dash', 'job'])
    await until(() => existsSync(join(place.work, 'ready')), 'the first use')
    put(BAD)
    writeFileSync(join(place.work, 'go'), '')
    const { status, stderr } = await result
    t.ok(status === 0 || (status === 126 && /Permission denied/.test(stderr)), `${status} ${stderr}`)
  })
}

t.test('a program that is exchanged all the time is never the other one in a cell', async t => {
  copyFileSync(GOOD, join(tools, 'good'))
  copyFileSync(BAD, join(tools, 'bad'))
  const swapper = spawn('python3', ['-c', `import os, sys
d = sys.argv[1]
n = 0
while True:
    n += 1
    try: os.unlink(d + '/next')
    except FileNotFoundError: pass
    os.link(d + ('/good' if n % 2 else '/bad'), d + '/next')
    os.rename(d + '/next', d + '/tool')
`, tools], { stdio: 'ignore' })
  const ended = new Promise(resolve => swapper.once('exit', resolve))
  const counts = { ran: 0, refused: 0, other: 0, plain: 0 }
  try {
    const [held, free] = [contract(pinned()), contract(tool)]
    for (let i = 0; i < 25; i++) {
      const { status, stderr } = await run(place, held, [tool]).result
      if (status === 0) counts.ran++
      else if (status !== 1 || stderr !== '') counts.refused++
      else counts.other++
      if ((await run(place, free, [tool]).result).status === 1) counts.plain++
    }
  } finally {
    swapper.kill('SIGKILL')
    await ended
  }
  t.equal(counts.other, 0, JSON.stringify(counts))
  t.ok(counts.refused > 0 && counts.plain > 0, JSON.stringify(counts))
})

t.test('the daemon keeps no descriptor of a program', async t => {
  put(GOOD)
  const { ino } = statSync(tool)
  const open = (): number => readdirSync(`/proc/${daemon.pid}/fd`).filter(fd => statSync(`/proc/${daemon.pid}/fd/${fd}`, { throwIfNoEntry: false })?.ino === ino).length
  for (const file of [contract(pinned()), contract(pinned('f'.repeat(64)))]) await run(place, file, [tool]).result
  t.equal(open(), 0)
})
