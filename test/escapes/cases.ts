import { execFileSync, spawnSync } from 'node:child_process'
import { chmodSync, closeSync, copyFileSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { CHANGES_DIR } from '../../src/changes/changes.ts'
import { clientMessage } from '../../src/daemon/protocol.ts'
import { CLIENT, PACKAGE_ROOT } from '../../src/package.ts'
import type { Attack, Stage, Statement, Way } from './case.ts'
import { deniedFile, deniedSocket, refusedCall } from './case.ts'
import { file, folder, processOfHost } from './stand-ins.ts'

/** What grants the attack's program, and more. */
function contract(stage: Stage, { write = '/workspace, /tmp', read = '', exec = '' }: { write?: string; read?: string; exec?: string }): string {
  return `mode: enforce
ttl: 1m
workspace: shared
authority:
  filesystem: { read: [${read}], write: [${write}] }
  exec: [${[stage.program, ...exec === '' ? [] : [exec]].join(', ')}]
  syscall: { profile: build }`
}

/** A program of the host, copied so that it may be spoilt. */
function copied(stage: Stage, name: string, of: string): string {
  const path = join(stage.dir, name)
  copyFileSync(of, path)
  chmodSync(path, 0o755)
  return path
}

/** A process that waits, and whose program is a copy. */
async function waiting(stage: Stage): Promise<number> {
  return (await processOfHost(stage, [copied(stage, 'launcher', '/usr/bin/tail'), '-f', file(stage)])).pid
}

/** Who started the attack: process 1 where it has a pid namespace, and a stand-in where it has none. */
async function starter(stage: Stage, way: Way): Promise<string[]> {
  return [way === 'bare' ? String(await waiting(stage)) : '1']
}

/** A directory of another, and a link to it in a place that an earlier job could write. */
function plantedLink(stage: Stage, at: string): void {
  const victim = folder(stage, 'victim')
  writeFileSync(join(victim, 'outside.txt'), 'outside\n')
  symlinkSync(victim, at)
}
const victimChanged = (stage: Stage): boolean => readFileSync(join(stage.dir, 'victim/outside.txt'), 'utf8') !== 'outside\n'

/** An image with the attack's program, under its own name. */
function image(stage: Stage): string {
  const root = folder(stage, 'image')
  for (const path of [dirname(stage.program), stage.workspace]) mkdirSync(join(root, path), { recursive: true })
  copyFileSync(stage.program, join(root, stage.program))
  return root
}

/** What is left of the writes of cells that are over, by a name that this case's attack gave. */
function leftBehind(name: string): boolean {
  return existsSync(CHANGES_DIR) && readdirSync(CHANGES_DIR).some(cell => existsSync(join(CHANGES_DIR, cell, 'system-0/upper', name)))
}

/** Where the host's cgroup hierarchies are mounted. */
function hierarchies(): string[] {
  return readFileSync('/proc/self/mounts', 'utf8').split('\n').map(line => line.split(' ')).filter(([, , type]) => type?.startsWith('cgroup') === true).map(([, at]) => at!)
}

/** cap_net_raw, permitted and effective, as security.capability holds it (struct vfs_cap_data, include/uapi/linux/capability.h). */
const CAPABILITIES = 'import os, sys, struct; os.setxattr(sys.argv[1], "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))'
/** Node's own sockets take no abstract name. */
const ABSTRACT_SERVICE = `import socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind("\\0" + sys.argv[1])
s.listen()
print("ready", flush=True)
while True:
    c, _ = s.accept()
    c.send(b"hello from outside")
    c.close()`
const TERMINAL = 'import os, time; master, slave = os.openpty(); print(os.ttyname(slave), flush=True); time.sleep(600)'

/** The rows of the escape table: what got out of other runtimes, tried against this one. Rows that plus.ts attacks as well say so there. */
export const ATTACKS: readonly Attack[] = [
  {
    name: 'launcher-program', covers: ['row 1'],
    attempts: 'overwrite the program that started it, through /proc/PID/exe',
    setUp: starter,
    evidence: deniedFile('/proc/1/exe'),
  },
  {
    name: 'granted-program', covers: ['row 1'],
    attempts: 'change a program of the host that it may execute',
    setUp: stage => [copied(stage, 'tool', '/usr/bin/true')],
    contract: stage => contract(stage, { exec: join(stage.dir, 'tool') }),
    tookEffect: stage => statSync(join(stage.dir, 'tool')).size !== statSync('/usr/bin/true').size,
    evidence: deniedFile(stage => join(stage.dir, 'tool')),
  },
  {
    name: 'leaked-directory', covers: ['row 2', 'inherited descriptors'],
    attempts: 'reach a file of the host through an inherited descriptor or ".." from the working directory',
    setUp: stage => [file(stage)],
    inherits: stage => {
      const fd = openSync(stage.dir, 'r')
      stage.defer(() => { closeSync(fd) })
      return [fd]
    },
    evidence: deniedFile(stage => join(stage.dir, 'outside.txt')),
  },
  {
    name: 'root-below-overlay', source: 'leaked-directory', covers: ['row 2'],
    attempts: 'the same from a cell whose workspace is an overlay',
    setUp: stage => [file(stage)],
    contract: stage => contract(stage, {}).replace('workspace: shared', 'workspace: overlay'),
    evidence: deniedFile(stage => join(stage.dir, 'outside.txt')),
  },
  {
    name: 'replaced-device', covers: ['row 3'],
    attempts: 'put a link in the place of /dev/null, for whoever mounts or masks with it later',
    setUp: (stage, way) => {
      const outside = file(stage)
      if (way !== 'bare') return ['/dev', outside]
      const devices = folder(stage, 'dev')
      file(stage, 'dev/null')
      return [devices, outside]
    },
    evidence: { silent: 'EBUSY: the device is a mount of its own, which says nothing of a grant; and nothing is mounted once the job runs' },
  },
  {
    name: 'host-terminal', covers: ['row 4'],
    attempts: 'write on a terminal of the host, known by its number',
    setUp: async stage => {
      const { said } = await processOfHost(stage, ['python3', '-c', TERMINAL])
      writeFileSync(join(stage.dir, 'terminal'), said)
      return [said]
    },
    evidence: (evidence, stage) => deniedFile(readFileSync(join(stage.dir, 'terminal'), 'utf8'))(evidence, stage),
  },
  {
    name: 'process-settings', covers: ['row 5'],
    attempts: 'write to the files in /proc by which a runtime sets up and confines processes',
    setUp: starter,
    evidence: deniedFile('/proc/1/oom_score_adj'),
  },
  {
    name: 'planted-link', covers: ['row 6', 'row 7', 'symlink races'],
    attempts: 'have a later cell show a directory of the host, by a link in a place that was granted',
    setUp: stage => {
      plantedLink(stage, join(folder(stage, 'tree'), 'cache'))
      return [join(stage.dir, 'tree/cache')]
    },
    contract: stage => contract(stage, { write: join(stage.dir, 'tree/cache') }),
    bubblewrap: stage => ['--bind', join(stage.dir, 'tree/cache'), join(stage.dir, 'tree/cache')],
    tookEffect: victimChanged, stoppedBy: /link/,
    evidence: { silent: 'the cell is not built, and its caller is told why' },
  },
  {
    name: 'planted-workspace-link', source: 'planted-link', covers: ['row 6', 'row 7', 'symlink races'],
    attempts: 'the same by a link in the workspace, of which a part is granted',
    setUp: stage => {
      plantedLink(stage, join(stage.workspace, 'out'))
      return ['out']
    },
    contract: stage => contract(stage, { read: '/workspace', write: '/workspace/out' }),
    bubblewrap: stage => ['--ro-bind', stage.workspace, stage.workspace, '--bind', join(stage.workspace, 'out'), join(stage.workspace, 'out')],
    tookEffect: victimChanged, stoppedBy: /link/,
    evidence: { silent: 'the cell is not built, and its caller is told why' },
  },
  {
    name: 'image-links', covers: ['row 3', 'row 4', 'row 6', 'row 7'],
    attempts: 'have what a runtime mounts in an image land on the host, by links in the image',
    setUp: (stage, way) => {
      const [root, victim] = [image(stage), folder(stage, 'victim')]
      for (const name of ['dev', 'proc', 'tmp', 'run', 'etc', 'sys', 'workspace']) symlinkSync(victim, join(root, name))
      // A runtime that goes by names, as they did.
      if (way === 'bare') mkdirSync(join(root, 'dev/shm'), { recursive: true })
      return []
    },
    bubblewrap: stage => ['--bind', join(stage.dir, 'image'), '/', '--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp'],
    contract: stage => `rootfs: ${join(stage.dir, 'image')}\n${contract(stage, {})}`,
    tookEffect: stage => readdirSync(join(stage.dir, 'victim')).length > 0,
    evidence: { silent: 'the cell\'s own folders lie in a layer above the image\'s: the links are never followed, by nobody' },
  },
  {
    name: 'link-out', covers: ['row 3', 'row 6'],
    attempts: 'leave the root by links in the workspace: absolute, upwards, and through /proc',
    setUp: stage => [file(stage)],
    evidence: { silent: 'the job follows a link of its own that leads nowhere: the evidence has the name that the job said, which is granted' },
  },
  {
    name: 'cgroup-files', covers: ['row 8', 'row 9'],
    attempts: 'make a cgroup, from where limits can be lifted',
    setUp: hierarchies,
    evidence: (evidence, stage) => deniedFile(hierarchies()[0]!)(evidence, stage),
  },
  {
    name: 'mount-namespace', covers: ['row 9', 'row 11', 'nested user namespaces'],
    attempts: 'make a user namespace, be root in it and mount',
    evidence: refusedCall('unshare'),
  },
  {
    name: 'stolen-key', covers: ['row 14', 'keyrings'],
    attempts: 'read a key that a process of the host keeps in its user\'s keyring',
    setUp: async stage => {
      stage.defer(() => spawnSync(stage.program, ['steal']))
      await processOfHost(stage, [stage.program, 'plant'])
      return ['steal']
    },
    evidence: refusedCall('keyctl'),
  },
  {
    name: 'abstract-socket', covers: ['row 15', 'abstract sockets'],
    attempts: 'talk to a service of the host through an abstract socket',
    setUp: async stage => {
      const name = `ambit-escapes-${process.pid}`
      await processOfHost(stage, ['python3', '-c', ABSTRACT_SERVICE, name])
      return [name]
    },
    evidence: { silent: 'connect fails as on a host where nobody listens: abstract names belong to the network namespace' },
  },
  {
    name: 'file-capabilities', covers: ['row 20'],
    attempts: 'gain capabilities from a program whose file carries them',
    setUp: stage => {
      const helper = copied(stage, 'helper', stage.program)
      execFileSync('python3', ['-c', CAPABILITIES, helper])
      return [helper]
    },
    contract: stage => contract(stage, { exec: join(stage.dir, 'helper') }),
    evidence: { silent: 'the program runs, and the kernel passes over its capabilities without an error: nosuid, no_new_privs, an empty bounding set' },
  },
  {
    name: 'file-handle', covers: ['row 21'],
    attempts: 'open a file of the host by its handle, past every root',
    setUp: stage => {
      const told = spawnSync(stage.program, ['tell', file(stage)], { encoding: 'utf8' })
      return told.status === 0 ? told.stdout.trim().split(' ') : ['0', '']
    },
    evidence: refusedCall('open_by_handle_at'), mayBeAbsent: 'a file system without handles, as overlays are',
  },
  {
    name: 'joined-namespace', covers: ['row 24'],
    attempts: 'join the namespaces of the process that started it',
    setUp: starter,
    evidence: refusedCall('setns'),
  },
  {
    name: 'overlay-mount', covers: ['row 25'],
    attempts: 'mount an overlay over directories of its own',
    evidence: refusedCall('unshare'),
  },
  {
    name: 'daemon-socket', covers: ['row 26'],
    attempts: 'have the daemon make another cell for it, by its control socket',
    setUp: stage => [stage.daemon],
    evidence: deniedSocket(stage => stage.daemon),
  },
  {
    name: 'swapped-directory', covers: ['row 26', 'symlink races'],
    attempts: 'have whoever writes the evidence write elsewhere, by swapping the directory for a link',
    setUp: (stage, way) => {
      // Bare and under bubblewrap whoever ran it writes by name, as a script does: see below.
      if (way !== 'cell') folder(stage, 'workspace/ev')
      return ['ev', folder(stage, 'victim')]
    },
    bundle: stage => join(stage.workspace, 'ev'),
    tookEffect: (stage, way) => {
      if (way !== 'cell') writeFileSync(join(stage.workspace, 'ev/events.jsonl'), 'written for the job\n')
      return readdirSync(join(stage.dir, 'victim')).length > 0
    },
    stoppedBy: /could not hand the evidence over/,
    evidence: { silent: 'links in its workspace are the job\'s to make; the daemon writes into the directory that it was given open, and makes every file anew' },
  },
  {
    name: 'deep-directory', covers: ['row 26', 'a disk filler'],
    attempts: 'leave behind what cannot be removed, and fill the disk cell by cell',
    setUp: stage => [folder(stage, 'tree'), `deep-${process.pid}`],
    bubblewrap: stage => ['--bind', join(stage.dir, 'tree'), join(stage.dir, 'tree')],
    contract: stage => `system: overlay\n${contract(stage, { write: join(stage.dir, 'tree') })}`,
    tookEffect: (stage, way) => {
      if (way === 'cell') return leftBehind(`deep-${process.pid}`)
      try {
        rmSync(join(stage.dir, 'tree'), { recursive: true })
        return false
      } catch {
        return true
      }
    },
    evidence: { silent: 'making directories is granted; they are removed all the same' },
  },
  {
    name: 'hidden-secret', covers: ['row 26'],
    attempts: 'read what only root may read, as root of a cell with a copy of the host\'s directories',
    setUp: stage => {
      folder(stage, 'tree')
      return [file(stage, 'tree/outside.txt', 0o600)]
    },
    contract: stage => `system: overlay\ncapabilities: [DAC_OVERRIDE, FOWNER]\n${contract(stage, { write: join(stage.dir, 'tree') })}`,
    evidence: { silent: 'the file is there and empty: nothing is refused' },
  },
]

export const STATEMENTS: readonly Statement[] = [
  {
    name: 'no-join', covers: ['row 24'],
    statement: 'cells have no join: no request of the control socket and no command of the client enters a cell that runs',
    check: () => {
      const refuses = (op: string): boolean => {
        try {
          clientMessage(Buffer.from(JSON.stringify({ op, cell: 'c1', argv: ['true'] })))
          return false
        } catch {
          return true
        }
      }
      return ['join', 'exec', 'enter', 'attach', 'shell'].every(word => refuses(word) && spawnSync(CLIENT, [word, 'c1', '--', 'true']).status === 2)
    },
  },
  {
    name: 'no-set-user-id', covers: ['row 25', 'row 20'],
    statement: 'nothing that is installed is set-user-id: only a daemon that root started mounts, and what it mounts it chose',
    check: () => ['build/Release', 'bin', 'dist'].map(name => join(PACKAGE_ROOT, name)).every(dir =>
      existsSync(dir) && readdirSync(dir, { recursive: true, encoding: 'utf8' }).every(name => (statSync(join(dir, name)).mode & 0o6000) === 0)),
  },
]
