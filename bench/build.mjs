// What confinement and observation cost real work: the same compilation bare, under bubblewrap, and in an observed cell.
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startPrivateDaemon } from '../dist/daemon/private-daemon.js'
import { CLIENT } from '../dist/package.js'
import { compare, rounds, time } from './measure.mjs'

const dir = mkdtempSync(join(tmpdir(), 'ambit-bench-'))
const daemon = await startPrivateDaemon()
try {
  const work = join(dir, 'work')
  mkdirSync(work)
  for (let i = 0; i < 20; i++) writeFileSync(join(work, `unit${i}.c`), `#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\nint unit${i}(const char *s) { char b[64]; snprintf(b, sizeof b, "%s-%d", s, ${i}); return (int)strlen(b) + abs(${i}); }\n`)
  const script = 'set -e; for f in unit*.c; do gcc -O1 -c "$f" -o "${f%.c}.o"; done; tar -czf units.tgz *.o; rm -f *.o units.tgz'
  const contract = join(dir, 'build.yaml')
  writeFileSync(contract, `apiVersion: ambit/v1
kind: Cell
metadata: { name: bench-build }
spec:
  mode: observe
  ttl: 5m
  workspace: shared
  authority:
    filesystem: { read: [/], write: [/workspace, /tmp] }
    exec: ['*']
    syscall: { profile: build }
`)
  compare('20 compilations and a tar', [
    { name: 'bare', run: () => time(['bash', '-c', script], { cwd: work }) },
    { name: 'bubblewrap, unobserved', run: () => time(['bwrap', '--unshare-all', '--ro-bind', '/', '/', '--bind', work, work, '--proc', '/proc', '--dev', '/dev', '--tmpfs', '/var/tmp', '--setenv', 'TMPDIR', '/var/tmp', '--chdir', work, 'bash', '-c', script]) },
    { name: 'ambit cell, observed', run: () => time([CLIENT, 'run', '--socket', daemon.socket, '--contract', contract, '--', 'bash', '-c', script], { cwd: work }) },
  ], rounds(10), 'bare')
} finally {
  await daemon.stop()
  rmSync(dir, { recursive: true, force: true })
}
