// Time to run `true`: bare, under unshare, bubblewrap, runc, and in a full enforcing and observed cell.
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startPrivateDaemon } from '../dist/daemon/private-daemon.js'
import { CLIENT } from '../dist/package.js'
import { compare, rounds, time } from './measure.mjs'

const dir = mkdtempSync(join(tmpdir(), 'ambit-bench-'))
const daemon = await startPrivateDaemon({ spareCells: 2 })
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
    exec: [/usr/bin/true]
    syscall: { profile: build }
`)
  const bundle = join(dir, 'bundle')
  mkdirSync(join(bundle, 'rootfs/bin'), { recursive: true })
  writeFileSync(join(dir, 'true.c'), 'int main(void) { return 0; }\n')
  execFileSync('gcc', ['-static', '-Os', '-o', join(bundle, 'rootfs/bin/true'), join(dir, 'true.c')])
  execFileSync('runc', ['spec'], { cwd: bundle })
  const spec = JSON.parse(readFileSync(join(bundle, 'config.json'), 'utf8'))
  spec.process.terminal = false
  spec.process.args = ['/bin/true']
  writeFileSync(join(bundle, 'config.json'), JSON.stringify(spec))

  compare('launch of /usr/bin/true, to its exit', [
    { name: 'bare', run: () => time(['/usr/bin/true']) },
    { name: 'unshare -Umpiunf', run: () => time(['unshare', '-Umpiunf', '/usr/bin/true']) },
    { name: 'bubblewrap, no seccomp or limits', run: () => time(['bwrap', '--unshare-all', '--ro-bind', '/', '/', '--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp', '/usr/bin/true']) },
    { name: 'runc, static true', run: round => time(['runc', '--root', join(dir, 'runc'), 'run', '--bundle', bundle, `ambit-bench-${process.pid}-${round + 1}`]) },
    { name: 'ambit cell, enforced and observed', run: () => time([CLIENT, 'run', '--socket', daemon.socket, '--contract', contract, '--', '/usr/bin/true']) },
  ], rounds(30), 'bubblewrap, no seccomp or limits')
} finally {
  await daemon.stop()
  rmSync(dir, { recursive: true, force: true })
}
