// Time to run `true`: bare, under unshare, bubblewrap, runc, and in a full enforcing and observed cell; where a cell's goes;
// 200 at once; what a cell that waits takes of memory.
import { execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { seccompPlan, syscall } from '../dist/authority/syscall.js'
import { native } from '../dist/native.js'
import { CLIENT } from '../dist/package.js'
import { startDaemon } from './daemon.mjs'
import { compare, quantile, rounds, time } from './measure.mjs'

const AT_ONCE = 200
const WAITING = 20
const dir = mkdtempSync(join(tmpdir(), 'ambit-bench-'))
const daemon = await startDaemon()
try {
  const contract = join(dir, 'true.yaml')
  writeFileSync(contract, `apiVersion: ambit/v1
kind: Cell
metadata: { name: bench }
spec:
  mode: enforce
  ttl: 1m
  workspace: none
  authority:
    filesystem: { read: [/usr/lib], write: [] }
    exec: [/usr/bin/true, /usr/bin/sleep]
    syscall: { profile: build }
`)
  const cell = [CLIENT, 'run', '--socket', daemon.socket, '--contract', contract, '--', '/usr/bin/true']
  const bundle = join(dir, 'bundle')
  mkdirSync(join(bundle, 'rootfs/bin'), { recursive: true })
  writeFileSync(join(dir, 'true.c'), 'int main(void) { return 0; }\n')
  execFileSync('gcc', ['-static', '-Os', '-o', join(bundle, 'rootfs/bin/true'), join(dir, 'true.c')])
  execFileSync('runc', ['spec'], { cwd: bundle })
  const spec = JSON.parse(readFileSync(join(bundle, 'config.json'), 'utf8'))
  spec.process.terminal = false
  spec.process.args = ['/bin/true']
  writeFileSync(join(bundle, 'config.json'), JSON.stringify(spec))
  const filter = join(dir, 'filter')
  writeFileSync(filter, native().buildSeccomp(seccompPlan(syscall.schema.parse({ profile: 'build' }), { programsListed: true, setIdHarmless: false })))
  const plain = ['bwrap', '--unshare-all', '--ro-bind', '/', '/', '--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp', '/usr/bin/true']
  // The same programs, libraries and filter as the cell; no limits, no Landlock, no evidence.
  const alike = ['bwrap', '--unshare-all', '--ro-bind', '/usr/lib', '/usr/lib', '--ro-bind', '/usr/bin/true', '/usr/bin/true', '--ro-bind', '/etc/ld.so.cache', '/etc/ld.so.cache',
    '--symlink', 'usr/lib', '/lib', '--symlink', 'usr/lib64', '/lib64', '--ro-bind', '/usr/lib64', '/usr/lib64', '--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp', '--seccomp', '3', '/usr/bin/true']

  const reference = 'bubblewrap, the host read-only'
  compare('launch of /usr/bin/true, to its exit', [
    { name: 'bare', run: () => time(['/usr/bin/true']) },
    { name: 'unshare -Umpiunf', run: () => time(['unshare', '-Umpiunf', '/usr/bin/true']) },
    { name: reference, run: () => time(plain) },
    { name: 'bubblewrap, a cell\'s mounts and filter', run: () => time(alike, { stdio: ['ignore', 'ignore', 'pipe', openSync(filter, 'r')] }) },
    { name: 'runc, static true', run: round => time(['runc', '--root', join(dir, 'runc'), 'run', '--bundle', bundle, `ambit-bench-${process.pid}-${round + 1}`]) },
    { name: 'cell, enforced and observed', run: () => time(cell) },
    { name: 'the same, evidence handed over', run: round => time([...cell.slice(0, 2), '--evidence', join(dir, `ev${round}`), ...cell.slice(2)]) },
  ], rounds(30), reference)

  await sleep(200)
  // Only those that were told the command's end before the evidence was sealed.
  const launches = daemon.lines().filter(line => line.phases !== undefined).map(line => line.phases).filter(one => 'ended' in one)
  const TEXT = {
    admitted: 'contract read, paths and limits looked at', reserved: 'a cell made ahead taken, limits set', planned: 'plan made and sent', served: 'log, probes, relay and resolver',
    built: 'root built, by the spawner and process 1', ended: 'filter, Landlock, the command, the cell\'s end', sealed: 'after the answer: sets read, evidence sealed',
  }
  process.stdout.write(`\nwhere the daemon's part of a launch goes (medians of ${launches.length}, µs; the client's own start and the ways between processes are not in it)\n`)
  for (const [name, text] of Object.entries(TEXT)) process.stdout.write(`${text.padEnd(52)}${String(quantile(launches.map(one => one[name]), 0.5)).padStart(7)}\n`)

  const atOnce = async command => {
    const began = process.hrtime.bigint()
    const failed = (await Promise.all(Array.from({ length: AT_ONCE }, () => new Promise(resolve => {
      const child = spawn(command[0], command.slice(1), { stdio: ['ignore', 'ignore', 'pipe'] })
      let said = ''
      child.stderr.on('data', chunk => { said += chunk })
      child.once('close', code => resolve(code === 0 ? null : `status ${code}: ${said}`))
    })))).filter(why => why !== null)
    if (failed.length > 0) throw new Error(`${failed.length} of ${AT_ONCE} failed: ${failed[0]}`)
    return Number(process.hrtime.bigint() - began) / 1e6
  }
  process.stdout.write(`\n${AT_ONCE} at once, all of them ended well\n`)
  for (const [name, command] of [['unshare -Umpiunf', ['unshare', '-Umpiunf', '/usr/bin/true']], [reference, plain], ['cell, enforced and observed', cell]]) {
    process.stdout.write(`${name.padEnd(40)}${(await atOnce(command)).toFixed(0).padStart(7)} ms\n`)
  }

  const residentKiB = () => {
    const children = readFileSync(`/proc/${daemon.pid}/task/${daemon.pid}/children`, 'utf8').trim().split(' ').filter(Boolean)
    return [daemon.pid, ...children].reduce((sum, pid) => sum + Number(/^VmRSS:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]), 0)
  }
  await sleep(500)
  const before = residentKiB()
  const sleeps = Array.from({ length: WAITING }, () => spawn(CLIENT, ['run', '--socket', daemon.socket, '--contract', contract, '--', '/usr/bin/sleep', '50'], { stdio: 'ignore' }))
  await sleep(2000)
  const after = residentKiB()
  const memoryOf = folder => ['memory.usage_in_bytes', 'memory.current'].map(file => join(folder, file)).filter(existsSync).map(file => Number(readFileSync(file, 'utf8')))
  const groups = execFileSync('find', ['/sys/fs/cgroup', '-type', 'd', '-path', `*/ambit-${daemon.pid}/*`], { encoding: 'utf8' }).trim().split('\n')
  const used = groups.flatMap(memoryOf)
  process.stdout.write(`\na cell that waits (of ${WAITING})\n${'daemon and spawner grow by'.padEnd(40)}${((after - before) / WAITING).toFixed(0).padStart(7)} KiB\n${'its own group holds, the command in it'.padEnd(40)}${(quantile(used, 0.5) / 1024).toFixed(0).padStart(7)} KiB\n`)
  for (const child of sleeps) child.kill('SIGTERM')
  await Promise.all(sleeps.map(child => new Promise(resolve => child.exitCode === null && child.signalCode === null ? child.once('exit', resolve) : resolve())))
} finally {
  await daemon.stop()
  rmSync(dir, { recursive: true, force: true })
}
