import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, copyFileSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { CLIENT, makePlace, removePlace, run, startDaemon, writeContract } from '../fixtures/daemon.ts'

// Somebody exchanges a directory or file that a contract or a caller names with a link, all the time, while many cells start.
const place = makePlace()
const tree = mkdtempSync('/var/tmp/ambit-races-')
chmodSync(tree, 0o755)
const swap = join(tree, 'swap')
const built = spawnSync('gcc', ['-static', '-O1', '-Wall', '-o', swap, join(import.meta.dirname, 'swap.c')], { encoding: 'utf8' })
if (built.status !== 0) throw new Error(built.stderr)
const daemon = await startDaemon(place)
t.teardown(async () => {
  await daemon.stop()
  rmSync(tree, { recursive: true })
  removePlace(place)
})

const CELLS = 48
const TOGETHER = 8
let scenes = 0

/** A folder with a victim outside of every grant. */
function scene(): { folder: string; victim: string; named: string; link: string } {
  const folder = join(tree, `${++scenes}`)
  const victim = join(folder, 'victim')
  for (const path of [folder, victim]) mkdirSync(path, { mode: 0o755 })
  return { folder, victim, named: join(folder, 'named'), link: join(folder, 'link') }
}

/** Runs `act` while the two names are exchanged all the time. */
async function whileExchanged<T>(one: string, other: string, act: () => Promise<T>): Promise<T> {
  const racer = spawn(swap, [one, other], { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise(resolve => racer.once('close', resolve))
  await new Promise((resolve, reject) => { racer.stdout.once('data', resolve); racer.once('exit', () => reject(new Error('the racer ended'))) })
  try {
    return await act()
  } finally {
    racer.kill('SIGKILL')
    await ended
  }
}

type Ended = { status: number | null; stdout: string; stderr: string }
async function manyCells(contract: string, command: string[]): Promise<Ended[]> {
  const ended: Ended[] = []
  while (ended.length < CELLS) ended.push(...await Promise.all(Array.from({ length: TOGETHER }, () => run(place, contract, command).result)))
  return ended
}

/** The attack without us: somebody uses the name until it leads to the victim. */
async function naively(use: () => boolean): Promise<boolean> {
  for (let i = 0; i < 20_000; i++) {
    try {
      if (use()) return true
    } catch {
      // The name was in the middle of its exchange.
    }
    if (i % 100 === 0) await new Promise(setImmediate)
  }
  return false
}

const contractOf = (authority: string): string => writeContract(place, { authority })

const TOOLS = '/usr/lib, /usr/bin, /bin, /lib, /lib64'

t.test('a directory that may be written', async t => {
  const { victim, named, link } = scene()
  mkdirSync(named)
  symlinkSync(victim, link)
  const inVictim = join(victim, 'file')
  const contract = contractOf(`filesystem: { read: [${TOOLS}], write: [${named}] }
exec: ['*']
syscall: { profile: build }`)
  await whileExchanged(named, link, async () => {
    t.ok(await naively(() => { writeFileSync(join(named, 'file'), 'changed\n'); return existsSync(inVictim) }), 'bare, it leads there')
    rmSync(inVictim)
    const ended = await manyCells(contract, ['sh', '-c', `echo changed > ${named}/file`])
    t.notOk(existsSync(inVictim), 'no cell wrote to the victim')
    t.ok(ended.some(({ status }) => status === 0), 'cells that met the directory ran')
    t.ok(ended.some(({ stderr }) => /link/.test(stderr)), 'cells that met the link were refused')
  })
})

t.test('a file that may be read, and a directory on the way to it', async t => {
  for (const inner of ['', '/on/the/way']) {
    const { victim, named, link } = scene()
    const make = (folder: string, text: string): void => {
      if (inner === '') writeFileSync(folder, text, { mode: 0o600 })
      else { mkdirSync(join(folder, inner), { recursive: true }); writeFileSync(join(folder, inner, 'file'), text, { mode: 0o600 }) }
    }
    const secret = join(victim, 'secret')
    make(named, 'mine\n')
    make(secret, 'not yours\n')
    symlinkSync(secret, link)
    const path = inner === '' ? named : join(named, inner, 'file')
    const contract = contractOf(`filesystem: { read: [${TOOLS}, ${path}], write: [] }
exec: ['*']
syscall: { profile: build }`)
    await whileExchanged(named, link, async () => {
      t.ok(await naively(() => readFileSync(path, 'utf8') === 'not yours\n'), 'bare, it leads there')
      const ended = await manyCells(contract, ['cat', path])
      t.notOk(ended.some(({ stdout }) => stdout.includes('not yours')), 'no cell read the secret')
      t.ok(ended.some(({ stderr }) => /link/.test(stderr)), 'cells that met the link were refused')
    })
  }
})

t.test('a program that may be executed', async t => {
  const { victim, named, link } = scene()
  copyFileSync('/usr/bin/true', named)
  copyFileSync('/usr/bin/echo', join(victim, 'echo'))
  symlinkSync(join(victim, 'echo'), link)
  const contract = contractOf(`filesystem: { read: [/usr/lib, /lib, /lib64], write: [] }
exec: [${named}]
syscall: { profile: build }`)
  await whileExchanged(named, link, async () => {
    t.ok(await naively(() => spawnSync(named, ['outside'], { encoding: 'utf8' }).stdout === 'outside\n'), 'bare, another program runs')
    const ended = await manyCells(contract, [named, 'outside'])
    t.notOk(ended.some(({ stdout }) => stdout.includes('outside')), 'no cell ran the program that was not granted')
    t.ok(ended.some(({ status }) => status === 0), 'cells that met the program ran it')
  })
})

t.test('a part of the workspace that may be written', async t => {
  const { victim, folder } = scene()
  const out = join(place.work, 'out')
  const link = join(place.work, 'link')
  mkdirSync(out)
  symlinkSync(victim, link)
  t.teardown(() => { for (const path of [out, link]) rmSync(path, { recursive: true, force: true }) })
  const inVictim = join(victim, 'file')
  const contract = contractOf(`filesystem: { read: [${TOOLS}], write: [/workspace/out] }
exec: ['*']
syscall: { profile: build }`)
  await whileExchanged(out, link, async () => {
    t.ok(await naively(() => { writeFileSync(join(out, 'file'), 'changed\n'); return existsSync(inVictim) }), 'bare, it leads there')
    rmSync(inVictim)
    const ended = await manyCells(contract, ['sh', '-c', 'echo changed > out/file'])
    t.notOk(existsSync(inVictim), 'no cell wrote to the victim')
    t.ok(ended.some(({ status }) => status === 0), 'cells that met the directory ran')
    t.ok(ended.some(({ status }) => status !== 0), 'cells that met the link were refused')
  })
  t.same(readdirSync(folder), ['victim'])
})

t.test('the workspace itself: a cell gets the directory that its caller stands in, whatever has its name', async t => {
  const { victim, named, link } = scene()
  mkdirSync(named)
  symlinkSync(victim, link)
  const contract = contractOf(`filesystem: { read: [${TOOLS}], write: [/workspace] }
exec: ['*']
syscall: { profile: build }`)
  // The shell enters the directory before anybody exchanges it, and its calls of ambit stand there.
  const script = `read go; for i in $(seq ${CELLS}); do ${CLIENT} run --socket ${place.socket} --contract ${contract} -- sh -c "echo changed > file-$i"; done`
  const shell = spawn('sh', ['-c', script], { cwd: named, stdio: ['pipe', 'inherit', 'inherit'] })
  const done = new Promise(resolve => shell.once('close', resolve))
  await whileExchanged(named, link, async () => {
    t.ok(await naively(() => { writeFileSync(join(named, 'bare'), ''); return existsSync(join(victim, 'bare')) }), 'bare, by its name, it leads there')
    shell.stdin.end('go\n')
    await done
  })
  t.same(readdirSync(victim), ['bare'], 'no cell wrote to the victim')
  const real = [named, link].find(path => existsSync(join(path, 'file-1')))!
  t.equal(readdirSync(real).filter(name => name.startsWith('file-')).length, CELLS, 'all wrote to the directory')
})

t.test('the directory for the evidence', async t => {
  const { folder, victim, named, link } = scene()
  symlinkSync(victim, link)
  const contract = contractOf(`filesystem: { read: [${TOOLS}], write: [] }
exec: ['*']
syscall: { profile: build }`)
  mkdirSync(named)
  let exported = 0
  let refused = 0
  for (let i = 0; i < CELLS; i += TOGETHER) {
    await whileExchanged(named, link, async () => {
      if (i === 0) t.ok(await naively(() => { mkdirSync(join(named, 'bare')); return existsSync(join(victim, 'bare')) }), 'bare, it leads there')
      rmSync(join(victim, 'bare'), { recursive: true, force: true })
      for (const { status, stderr } of await Promise.all(Array.from({ length: TOGETHER }, () => run(place, contract, ['true'], named).result))) {
        if (status === 0) exported++
        else { refused++; t.match(stderr, /link|not empty|another directory|could not|exist/) }
      }
    })
    t.same(readdirSync(victim), [], 'nothing came into the victim')
    const real = [named, link].find(path => !lstatSync(path).isSymbolicLink())!
    rmSync(real, { recursive: true })
    if (real === link) renameSync(named, link)
    mkdirSync(named)
  }
  t.ok(refused > 0, 'runs that met the link were refused')
  t.ok(exported + refused >= CELLS)
  t.same(readdirSync(folder).sort(), ['link', 'named', 'victim'])
})

t.test('a job that puts other evidence in the place of its own: the run says so', async t => {
  const contract = contractOf(`filesystem: { read: [${TOOLS}], write: [/workspace] }
exec: ['*']
syscall: { profile: build }`)
  const evidence = join(place.work, 'ev')
  t.teardown(() => { for (const name of ['ev', 'moved']) rmSync(join(place.work, name), { recursive: true, force: true }) })
  t.match(await run(place, contract, ['true'], evidence).result, { status: 0 }, 'left alone, it is there')
  renameSync(evidence, join(place.work, 'earlier'))
  const { status, stderr } = await run(place, contract, ['sh', '-c', 'mv ev moved && mv earlier ev'], evidence).result
  t.equal(status, 125)
  t.match(stderr, /another directory has taken its place/)
  t.ok(existsSync(join(evidence, 'events.jsonl')), 'what lies there is whole, and of another cell')
})
