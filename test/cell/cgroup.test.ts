import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { openCgroups, type CgroupHost } from '../../src/cell/cgroup.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-cgroup-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))
const real = (records = join(dir, 'records')): CgroupHost => ({
  mounts: readFileSync('/proc/self/mountinfo', 'utf8'), own: readFileSync('/proc/self/cgroup', 'utf8'), namespace: readlinkSync('/proc/self/ns/cgroup'),
  isDelegated: () => false, records, hasKill: true,
})

const all = (cell: { v2: string; v1: string[] }): string[] => [cell.v2, ...cell.v1]

/** Runs a script in the cell's groups: each shell moves itself in before anything else. */
function within(folders: string[], script: string): Run {
  const enter = folders.map(folder => `echo 0 > ${folder}/cgroup.procs`).join('; ')
  return bare(`${enter}; echo in; ${script}`)
}
type Run = { pid: number; began: Promise<unknown>; ended: Promise<{ code: number | null; signal: string | null }> }
function bare(script: string): Run {
  const child = spawn('sh', ['-c', script], { stdio: ['ignore', 'pipe', 'ignore'] })
  return {
    pid: child.pid!,
    began: new Promise(resolve => child.stdout.once('data', resolve)),
    ended: new Promise(resolve => child.once('exit', (code, signal) => resolve({ code, signal }))),
  }
}

t.test('cells get groups with limits that hold, are killed at once and leave nothing', async t => {
  const cgroups = openCgroups(real())
  t.equal(cgroups.parentV2.endsWith(`/ambit-${process.pid}`), true)
  t.match(cgroups.layout, /v2 at \/sys\/fs\/cgroup/)
  t.match(cgroups.layout, /memory/)
  t.match(cgroups.layout, /pids/)
  t.throws(() => openCgroups(real()), { code: 'KERNEL_LACKS', message: /EEXIST/ }, 'one for each process')

  const cell = cgroups.createCell('one', { memoryBytes: 32 << 20, pids: 10 })
  t.equal(cell.id, statSync(cell.v2, { bigint: true }).ino)
  t.ok(all(cell).every(folder => existsSync(folder) && dirname(folder).endsWith(`ambit-${process.pid}`)))
  t.throws(() => cgroups.createCell('one', { memoryBytes: 1 << 20, pids: 1 }), { code: 'CELL_FAILED' })
  t.ok(existsSync(cell.v2), 'the first one is untouched')
  t.throws(() => cgroups.createCell('../out', { memoryBytes: 1 << 20, pids: 1 }), { code: 'INTERNAL' })
  t.throws(() => cgroups.createCell('bad', { memoryBytes: Number.NaN, pids: 1 }), { code: 'CELL_FAILED' })
  t.same(all(cell).map(folder => existsSync(join(dirname(folder), 'bad'))), all(cell).map(() => false), 'all or none')
  t.same(cgroups.events('one'), { oomKills: 0, memoryAtLimit: false, pidsMax: 0, heldBackMs: 0 })

  const hog = 'exec python3 -c "x = bytearray(96 << 20)"'
  t.match(await bare(hog).ended, { code: 0 }, 'bare')
  t.match(await within(all(cell), hog).ended, { signal: 'SIGKILL' }, 'beyond the memory of the cell')
  t.ok(cgroups.events('one').oomKills >= 1)
  t.ok(cgroups.events('one').memoryAtLimit)
  const forks = 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do sleep 5 & done; wait'
  const crowd = within(all(cell), forks)
  await crowd.began
  for (let i = 0; i < 300 && cgroups.events('one').pidsMax === 0; i++) await sleep(10)
  t.ok(cgroups.events('one').pidsMax >= 1)
  cgroups.killCell('one')
  await crowd.ended

  const second = cgroups.createCell('two', { memoryBytes: 32 << 20, pids: 10 })
  const sleepers = within(all(second), 'setsid sleep 1000 & (sleep 1000; true) & wait')
  await sleepers.began
  // Removal waits for what is ending.
  const removed = Promise.all([cgroups.removeCell('one'), cgroups.removeCell('two')])
  cgroups.killCell('two')
  await removed
  t.match(await sleepers.ended, { signal: 'SIGKILL' })
  t.notOk([...all(cell), ...all(second)].some(existsSync))
  await cgroups.removeCell('one')
  cgroups.killCell('one')
  t.same(cgroups.events('one'), { oomKills: 0, memoryAtLimit: false, pidsMax: 0, heldBackMs: 0 }, 'of a cell that is gone')
  cgroups.createCell('left', { memoryBytes: 32 << 20, pids: 10 })
  await cgroups.close()
  t.notOk(all(cell).some(folder => existsSync(dirname(folder))))
  t.same(readdirSync(join(dir, 'records')), [])
})

t.test('a kernel without cgroup.kill freezes a group, kills what is in it and leaves nothing, however fast it forks', async t => {
  const cgroups = openCgroups({ ...real(), hasKill: false })
  t.match(cgroups.layout, /kill by freezing/)
  const cell = cgroups.createCell('forking', { memoryBytes: 256 << 20, pids: 2000 })
  mkdirSync(join(cell.v2, 'nested'))
  const forks = within(all(cell), 'f() { while :; do (sleep 0.02) & sleep 0.004; done; }; f & f & (echo 0 > ' + join(cell.v2, 'nested/cgroup.procs') + '; f) & trap "" TERM; sh -c "kill -STOP \\$\\$" & f')
  await forks.began
  await sleep(200)
  t.ok(cgroups.processes('forking').length > 3)
  cgroups.killCell('forking')
  t.match(await forks.ended, { signal: 'SIGKILL' })
  for (let i = 0; i < 300 && cgroups.processes('forking').length > 0; i++) await sleep(10)
  t.same(cgroups.processes('forking'), [])
  await cgroups.removeCell('forking')
  t.doesNotThrow(() => cgroups.killCell('forking'), 'gone already')
  await cgroups.close()
})

t.test('the level is the depth that the kernel counts', async t => {
  const cgroups = openCgroups(real())
  const cell = cgroups.createCell('deep', { memoryBytes: 32 << 20, pids: 10 })
  const child = within(all(cell), 'sleep 1000')
  await child.began
  const path = /^0::(.*)$/m.exec(readFileSync(`/proc/${child.pid}/cgroup`, 'utf8'))![1]!
  t.equal(cgroups.level, path.split('/').filter(Boolean).length)
  cgroups.killCell('deep')
  await child.ended
  await cgroups.close()
})

t.test('groups of a dead process are removed if a record proves whose they are, and only then', async t => {
  const records = join(dir, 'stale')
  const source = `
    const { openCgroups } = await import(${JSON.stringify(join(import.meta.dirname, '../../src/cell/cgroup.ts'))})
    const cgroups = openCgroups({ ...${JSON.stringify(real(records))}, isDelegated: () => false })
    cgroups.createCell('forgotten', { memoryBytes: 33554432, pids: 10 })
    console.log(cgroups.parentV2)`
  const script = join(dir, 'forget.mts')
  writeFileSync(script, source)
  const tsx = join(import.meta.dirname, '../../node_modules/.bin/tsx')
  const died = spawnSync(tsx, [script], { encoding: 'utf8' })
  const left = died.stdout.trim()
  t.ok(existsSync(join(left, 'forgotten')), died.stderr)
  const parentName = basename(left)
  t.same(readdirSync(records), [`${parentName}.json`])

  const record = join(records, `${parentName}.json`)
  const proof = readFileSync(record, 'utf8')
  const reopen = async (): Promise<void> => { await openCgroups(real(records)).close() }
  writeFileSync(record, proof.replace(/"inode":"\d+"/g, '"inode":"1"'))
  await reopen()
  t.ok(existsSync(left), 'another group of that name is not ours')
  writeFileSync(record, '{"pid": "x"')
  await reopen()
  t.ok(existsSync(left), 'a damaged record proves nothing')
  const living = JSON.parse(proof) as { pid: number; start: string }
  writeFileSync(record, JSON.stringify({ ...living, pid: process.pid, start: readFileSync('/proc/self/stat', 'utf8').split(') ')[1]!.split(' ')[19] }))
  await reopen()
  t.ok(existsSync(left), 'its maker lives')

  const tenant = within([join(left, 'forgotten')], 'exec sleep 1000')
  await tenant.began
  writeFileSync(record, proof)
  await reopen()
  t.ok(existsSync(left), 'somebody is in it')
  t.ok(existsSync(record), 'and it is remembered')
  process.kill(tenant.pid, 'SIGKILL')
  await tenant.ended
  for (let i = 0; i < 100 && existsSync(left); i++) {
    await reopen()
    await sleep(10)
  }
  t.notOk(existsSync(left))
  t.same(readdirSync(records), [])
})

// Layouts that this machine does not have: plain folders show what would be written where.
t.test('on a pure v2 host the limits are on v2, below a parent that hands the controllers on', async t => {
  const v2 = join(dir, 'pure v2')
  mkdirSync(v2)
  writeFileSync(join(v2, 'cgroup.controllers'), 'cpuset cpu io memory hugetlb pids\n')
  writeFileSync(join(v2, 'cgroup.subtree_control'), 'cpu pids\n')
  const host: CgroupHost = { ...real(), mounts: `30 23 0:28 / ${v2.replace(' ', '\\040')} rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n`, own: '0::/user.slice/session-1.scope\n', records: join(dir, 'pure-records') }
  const cgroups = openCgroups(host)
  t.equal(cgroups.level, 2)
  t.equal(cgroups.parentV2, join(v2, `ambit-${process.pid}`))
  t.equal(cgroups.layout, `v2 at ${v2}: memory, pids, cpu, io, kill`)
  t.equal(readFileSync(join(v2, 'cgroup.subtree_control'), 'utf8'), '+io', 'only what is missing: this file of a test keeps the last that was written')
  t.equal(readFileSync(join(cgroups.parentV2, 'cgroup.subtree_control'), 'utf8'), '+io')
  const cell = cgroups.createCell('x', { memoryBytes: 1000, pids: 5, cpus: 1.5, io: { disks: ['254:0'], read: 7000, write: 9000 } })
  t.same(cell.v1, [])
  t.equal(readFileSync(join(cell.v2, 'cpu.max'), 'utf8'), '150000 100000')
  t.equal(readFileSync(join(cell.v2, 'io.max'), 'utf8'), '254:0 rbps=7000 wbps=9000')
  t.same(['cpus', 'io read', 'io write'].map(limit => cgroups.lacks(limit as 'cpus')), [null, null, null])
  t.equal(readFileSync(join(cell.v2, 'memory.max'), 'utf8'), '1000')
  t.equal(readFileSync(join(cell.v2, 'pids.max'), 'utf8'), '6')
  writeFileSync(join(cell.v2, 'memory.events'), 'low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n')
  writeFileSync(join(cell.v2, 'pids.events'), 'max 4\n')
  writeFileSync(join(cell.v2, 'cpu.stat'), 'usage_usec 9\nnr_throttled 2\nthrottled_usec 2500\n')
  t.same(cgroups.events('x'), { oomKills: 3, memoryAtLimit: true, pidsMax: 4, heldBackMs: 2.5 })
})

t.test('a delegated unit is used and stepped aside in; other units are left alone', t => {
  const v2 = join(dir, 'delegated')
  const unit = join(v2, 'system.slice/ambitd.service')
  mkdirSync(unit, { recursive: true })
  for (const folder of [v2, unit]) writeFileSync(join(folder, 'cgroup.controllers'), 'memory pids\n')
  writeFileSync(join(unit, 'cgroup.procs'), `${process.pid}\n`)
  const host = (delegated: boolean): CgroupHost => ({
    ...real(), mounts: `30 23 0:28 / ${v2} rw - cgroup2 cgroup2 rw\n`, own: '0::/system.slice/ambitd.service\n',
    isDelegated: name => delegated && name === 'ambitd.service', records: join(dir, 'delegated-records'),
  })
  const own = openCgroups(host(true))
  t.equal(own.parentV2, join(unit, `ambit-${process.pid}`))
  t.equal(own.level, 4)
  t.equal(readFileSync(join(unit, 'daemon/cgroup.procs'), 'utf8'), String(process.pid))
  t.equal(openCgroups(host(false)).parentV2, join(v2, `ambit-${process.pid}`))
  rmSync(join(v2, `ambit-${process.pid}`), { recursive: true })
  writeFileSync(join(unit, 'cgroup.procs'), `${process.pid}\n1\n`)
  t.equal(openCgroups(host(true)).parentV2, join(v2, `ambit-${process.pid}`), 'not if others are in it')
  t.end()
})

t.test('hosts that cannot hold cells are refused with the reason', t => {
  const host = (change: Partial<CgroupHost>): CgroupHost => ({ ...real(join(dir, 'refused')), ...change })
  t.throws(() => openCgroups(host({ mounts: '' })), { code: 'KERNEL_LACKS', message: /no cgroup v2/ })
  t.throws(() => openCgroups(host({ namespace: 'cgroup:[4026532999]' })), { code: 'KERNEL_LACKS', message: /cgroup namespace/ })
  const bare = join(dir, 'bare')
  mkdirSync(bare)
  writeFileSync(join(bare, 'cgroup.controllers'), 'memory\n')
  t.throws(() => openCgroups(host({ mounts: `30 23 0:28 / ${bare} rw - cgroup2 cgroup2 rw\n` })), { code: 'KERNEL_LACKS', message: /pids controller/ })
  mkdirSync(join(bare, 'pids/own'), { recursive: true })
  writeFileSync(join(bare, 'cgroup.subtree_control'), 'memory')
  const cgroups = openCgroups(host({ mounts: `30 23 0:28 / ${bare} rw - cgroup2 cgroup2 rw\n31 23 0:29 /docker/x ${bare}/pids rw - cgroup cgroup rw,pids\n`, own: '3:cpu,pids:/docker/x/own\n0::/\n' }))
  t.match(cgroups.layout, `hybrid; v2 at ${bare}: memory, kill; v1 pids at ${bare}/pids/own`)
  t.ok(existsSync(join(bare, `pids/own/ambit-${process.pid}`)))
  rmdirSync(join(bare, `pids/own/ambit-${process.pid}`))
  t.end()
})
