import { copyFileSync, chmodSync, closeSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Attack, Proof, Stage, Statement } from './case.ts'
import { all, deniedFile, deniedSocket, limitReached, refusedCall } from './case.ts'
import { file, processOfHost, unixService } from './stand-ins.ts'

const everyCall = (...names: string[]): Proof => all(...names.map(name => refusedCall(name)))
const everyFile = (...paths: string[]): Proof => all(...paths.map(path => deniedFile(path)))

/** The usual contract with other limits, or with more that may be read and executed. */
function contract(stage: Stage, { limits = '', read = [], exec = [] }: { limits?: string; read?: string[]; exec?: string[] }): string {
  return `mode: enforce
ttl: 1m
workspace: shared
${limits === '' ? '' : `limits: { ${limits} }\n`}authority:
  filesystem: { read: [${read.join(', ')}], write: [/workspace, /tmp] }
  exec: [${[stage.program, ...exec].join(', ')}]
  syscall: { profile: build }`
}

/** A descriptor of the caller, closed with the case. */
function opened(stage: Stage, path: string, flags: string): number {
  const fd = openSync(path, flags)
  stage.defer(() => closeSync(fd))
  return fd
}

const quoted = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`
/** Gives the command a terminal, as the user's shell does. */
const onTerminal = (argv: readonly string[]): string[] => ['script', '-qec', argv.map(quoted).join(' '), '/dev/null']

/** A process of the host with a secret in its environment; returns its name. */
async function otherJob(stage: Stage): Promise<string> {
  const program = join(stage.dir, 'other-job')
  copyFileSync(stage.program, program)
  chmodSync(program, 0o755)
  await processOfHost(stage, ['env', 'STAND_IN_SECRET=1', program, '--wait'])
  return 'other-job'
}

function serviceFolder(stage: Stage): string {
  const folder = `/run/ambit-escapes-${process.pid}`
  mkdirSync(folder)
  stage.defer(() => rmSync(folder, { recursive: true }))
  return folder
}

const CORE_PATTERN = '/proc/sys/kernel/core_pattern'

/** What the escape table does not name: ways round the filter, other processes, the kernel's doors. */
const KERNEL: readonly Attack[] = [
  {
    name: 'io-uring', covers: ['row 18', 'io_uring as a way round seccomp'],
    attempts: 'have a file opened through a ring, past the filter and the tracer',
    evidence: everyCall('io_uring_setup', 'io_uring_enter', 'io_uring_register'),
  },
  {
    name: 'x32', covers: ['row 19', 'x32'],
    attempts: 'make a refused call by its number in the x32 ABI',
    evidence: refusedCall('unshare', 'x32'), mayBeAbsent: 'a kernel without x32, as most are',
  },
  {
    name: 'int80', covers: ['row 19', 'int 0x80'],
    attempts: 'make a refused call as a 32-bit program would',
    evidence: refusedCall('unshare', 'i386'), mayBeAbsent: 'a kernel without 32-bit calls',
  },
  {
    name: 'nested-namespaces', covers: ['row 9', 'row 11', 'row 12', 'nested user namespaces'],
    attempts: 'become root of a user namespace of its own, by unshare, clone, clone3 and setns',
    evidence: everyCall('unshare', 'clone', 'clone3', 'setns'),
  },
  {
    name: 'keyrings', covers: ['row 14', 'keyrings'],
    attempts: 'share keys with the other processes of the user',
    evidence: everyCall('add_key', 'request_key', 'keyctl'), mayBeAbsent: 'a kernel without keyrings',
  },
  {
    name: 'af-alg', covers: ['row 23', 'AF_ALG'],
    attempts: 'use the kernel\'s ciphers through sockets',
    setUp: (_, way) => [way],
    evidence: refusedCall('socket'), mayBeAbsent: 'a kernel without AF_ALG',
  },
  { name: 'af-packet', covers: ['row 23', 'AF_PACKET'], attempts: 'open a packet socket', evidence: refusedCall('socket') },
  { name: 'af-vsock', covers: ['row 23', 'AF_VSOCK'], attempts: 'open a socket to the machine below this one', setUp: (_, way) => [way], evidence: refusedCall('socket'), mayBeAbsent: 'a kernel without vsock' },
  { name: 'af-netlink', covers: ['AF_NETLINK'], attempts: 'speak netlink to the firewall, the audit system and five more', evidence: refusedCall('socket') },
  { name: 'raw-ip', covers: ['row 23'], attempts: 'open a raw IP socket', evidence: refusedCall('socket') },
  { name: 'bpf', covers: ['bpf()'], attempts: 'load a program into the kernel', evidence: refusedCall('bpf') },
  { name: 'userfaultfd', covers: ['userfaultfd'], attempts: 'hold the kernel in the middle of a copy', evidence: refusedCall('userfaultfd') },
  { name: 'mount', covers: ['mount'], attempts: 'mount a file system, and change roots', evidence: everyCall('mount', 'umount2', 'chroot', 'pivot_root') },
  {
    name: 'mount-api', covers: ['row 12', 'mount API'],
    attempts: 'do the same by the newer calls, which older filters do not know',
    evidence: everyCall('fsopen', 'fsconfig', 'fsmount', 'open_tree', 'mount_setattr', 'move_mount', 'fspick'),
  },
  {
    name: 'release-agent', covers: ['row 8', 'row 9', 'cgroup release_agent'],
    attempts: 'have the kernel run a program as the host\'s root when a cgroup is empty',
    setUp: (stage, way) => {
      writeFileSync(join(stage.dir, 'agent'), `#!/bin/sh\ntouch ${stage.dir}/released\n`, { mode: 0o755 })
      return [stage.dir, way]
    },
    evidence: everyCall('mount', 'unshare'), mayBeAbsent: 'a kernel without cgroup v1, or whose own root is another than ours',
  },
  { name: 'core-pattern', covers: ['row 10', 'core_pattern'], attempts: 'name the program that gets the host\'s core dumps', evidence: deniedFile(CORE_PATTERN) },
  {
    name: 'kernel-settings', covers: ['row 10', 'kernel sysctls'],
    attempts: 'change settings of the kernel that start programs, load code or stop the machine',
    evidence: everyFile('/proc/sys/kernel/panic', '/proc/sys/kernel/core_uses_pid', '/proc/sys/vm/drop_caches', '/sys/power/state'),
  },
  { name: 'network-settings', covers: ['kernel sysctls'], attempts: 'change the settings of the network that the fences rest on', evidence: everyFile('/proc/sys/net/ipv4/ip_forward', '/proc/sys/net/ipv4/conf/lo/route_localnet') },
  { name: 'device-nodes', covers: ['row 22', 'device nodes'], attempts: 'make a device node and open it', evidence: refusedCall(['mknodat', 'mknod']) },
  { name: 'block-devices', covers: ['row 22', 'opening block devices'], attempts: 'open the disks and other devices of the host', evidence: deniedFile('/dev/kmsg') },
]

/** Other processes, programs, descriptors, services. */
const NEIGHBOURS: readonly Attack[] = [
  {
    name: 'victim-memory', covers: ['row 17', '/proc/PID/mem of a process of the host'],
    attempts: 'find another job\'s process and take the secret from its environment or memory',
    setUp: async stage => [await otherJob(stage)],
    evidence: { silent: 'the cell\'s /proc has no such process, so that there is nothing to be refused' },
  },
  { name: 'parent-memory', covers: ['row 17', '/proc/PID/mem of cell-init'], attempts: 'open the memory of the process that started it', evidence: everyFile('/proc/1/mem', '/proc/1/environ') },
  { name: 'ptrace-parent', covers: ['row 17', 'ptrace'], attempts: 'attach to the process that started it', evidence: refusedCall('ptrace') },
  { name: 'process-vm-read', covers: ['row 17'], attempts: 'read the memory of the process that started it', evidence: refusedCall('process_vm_readv') },
  { name: 'pidfd-getfd', covers: ['row 17'], attempts: 'take a descriptor out of the process that started it', evidence: refusedCall('pidfd_getfd') },
  { name: 'memfd-exec', covers: ['memfd exec'], attempts: 'run a program that lies in memory only', evidence: refusedCall('memfd_create') },
  {
    name: 'deleted-exec', covers: ['deleted-file exec'],
    attempts: 'run a program whose file is gone',
    evidence: ({ records, rows, pids }) => {
      const record = records.find(one => one.type === 'exec.failed' && pids.has(one.process.pid))
      const row = rows.find(one => one.kind === 'exec' && one.outcome === 'denied')
      return record?.type === 'exec.failed' && row !== undefined ? `denied exec ${row.grant}: ${record.errno} for pid ${record.process.pid}` : null
    },
  },
  {
    name: 'inherited-descriptors', covers: ['row 2', 'inherited descriptors'],
    attempts: 'use what a careless caller left open: a file and a directory',
    inherits: stage => [opened(stage, '/etc/passwd', 'r'), opened(stage, stage.dir, 'r')],
    evidence: { silent: 'the descriptors stay with the caller: nothing is asked for, and nothing refused' },
  },
  {
    name: 'reopened-stdin', covers: ['inherited descriptors'],
    attempts: 'write to the file that the caller gave to be read, by opening it anew',
    input: stage => {
      const path = file(stage)
      chmodSync(path, 0o666)
      return opened(stage, path, 'r')
    },
    tookEffect: stage => readFileSync(join(stage.dir, 'outside.txt'), 'utf8') !== 'outside\n',
    evidence: deniedFile('/proc/self/fd/0'),
  },
  {
    name: 'service-socket', source: 'unix-socket', covers: ['row 16', 'pathname sockets: docker.sock, D-Bus'],
    attempts: 'talk to a service of the host by the path of its socket',
    setUp: async stage => {
      const path = join(serviceFolder(stage), 'docker.sock')
      await unixService(stage, path)
      return [path]
    },
    evidence: deniedSocket(`/run/ambit-escapes-${process.pid}/docker.sock`),
  },
  {
    name: 'setuid-binary', covers: ['row 20', 'setuid binaries'],
    attempts: 'become root by a set-user-id program',
    setUp: stage => {
      const helper = join(stage.dir, 'helper')
      copyFileSync(stage.program, helper)
      chmodSync(helper, 0o4755)
      return [helper]
    },
    contract: stage => contract(stage, { read: [join(stage.dir, 'helper')], exec: [join(stage.dir, 'helper')] }),
    evidence: { silent: 'the program runs, and the kernel passes over the bit without an error: nosuid, no_new_privs' },
  },
  { name: 'setid-file', covers: ['row 20'], attempts: 'leave a set-user-id program to whoever owns the workspace', evidence: refusedCall('fchmod') },
  {
    name: 'terminal-input', covers: ['row 13', 'TIOCSTI'],
    attempts: 'type into the terminal that the user\'s shell reads next',
    through: onTerminal, evidence: refusedCall('ioctl'), mayBeAbsent: 'dev.tty.legacy_tiocsti is 0',
  },
  {
    name: 'terminal-steal', covers: ['row 4', 'row 13'],
    attempts: 'take the user\'s terminal over',
    through: onTerminal, evidence: refusedCall('ioctl'),
  },
]

/** Each is bounded by its argument: it worked where nobody stopped it there. */
const BOMBS: readonly Attack[] = [
  {
    name: 'fork-bomb', covers: ['a fork bomb'], attempts: 'start 2000 processes',
    contract: stage => contract(stage, { limits: 'pids: 64' }), evidence: limitReached('pids'),
  },
  {
    name: 'memory-bomb', covers: ['a memory bomb'], attempts: 'take 512 MiB where 64 are granted',
    contract: stage => contract(stage, { limits: 'memory: 64MiB' }), evidence: limitReached('memory'),
  },
  {
    name: 'fill-tmp', source: 'disk-filler', covers: ['a disk filler: /tmp'], attempts: 'write 600 MiB to /tmp',
    setUp: (stage, way) => [way === 'bare' ? stage.dir : '/tmp', '600'],
    evidence: { silent: 'the file system is full, which is an answer to a write and no refusal; /tmp ends at 512 MiB' },
  },
  {
    name: 'fill-tmp-memory', source: 'disk-filler', covers: ['a disk filler: /tmp', 'a memory bomb'], attempts: 'hold in /tmp what may not be held in memory',
    setUp: (stage, way) => [way === 'bare' ? stage.dir : '/tmp', '256'],
    contract: stage => contract(stage, { limits: 'memory: 64MiB' }), evidence: limitReached('memory'),
  },
  {
    name: 'fill-shm', source: 'disk-filler', covers: ['a disk filler: /dev/shm'], attempts: 'write 256 MiB to /dev/shm',
    setUp: () => ['/dev/shm', '256'],
    evidence: { silent: 'the file system is full, which is an answer to a write and no refusal; /dev/shm ends at 64 MiB' },
  },
  {
    name: 'fill-root', source: 'disk-filler', covers: ['a disk filler: the root'], attempts: 'write 256 MiB to the root directory',
    setUp: (stage, way) => [way === 'bare' ? stage.dir : '/', '256'],
    evidence: deniedFile('/ambit-filler'),
  },
]

export const ATTACKS: readonly Attack[] = [...KERNEL, ...NEIGHBOURS, ...BOMBS]

export const STATEMENTS: readonly Statement[] = []
