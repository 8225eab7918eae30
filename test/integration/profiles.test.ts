import { spawn, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'

// Seccomp profiles of container engines, in both directions: theirs in a cell, ours under runc.
const root = join(import.meta.dirname, '../..')
const dir = mkdtempSync(join(tmpdir(), 'ambit-profiles-'))
const socket = join(dir, 'state/ambit.sock')
const work = join(dir, 'work')
mkdirSync(join(dir, 'state'), { mode: 0o700 })
mkdirSync(work)
const daemon = spawn(process.execPath, [join(root, 'dist/cli/main.js'), 'daemon', '--state', join(dir, 'state'), '--socket', socket, '--feed-port', '0', '--log-level', 'warn'], { stdio: ['ignore', 'inherit', 'inherit'] })
t.before(async () => {
  for (let i = 0; i < 1000 && !existsSync(join(dir, 'state/daemon.json')); i++) await sleep(20)
})
t.teardown(async () => {
  const gone = new Promise(resolve => daemon.once('exit', resolve))
  daemon.kill('SIGTERM')
  await gone
  rmSync(dir, { recursive: true, force: true })
})

function contract(syscall: string): string {
  const file = join(dir, 'contract.yaml')
  writeFileSync(file, `apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: test }\nspec:\n  mode: enforce\n  ttl: 30s\n  workspace: shared\n  authority:\n    filesystem: { read: [/usr], write: [/workspace, /tmp] }\n    exec: ['*']\n    syscall: ${syscall}\n`)
  return file
}
type Run = { status: number | null; stdout: string; stderr: string }
const run = (file: string, command: string[], evidence?: string): Run =>
  spawnSync(join(root, 'build/Release/ambit-client'), ['run', '--socket', socket, '--contract', file, ...(evidence ? ['--evidence', evidence] : []), '--', ...command], { cwd: work, encoding: 'utf8' })
const perl = (code: string): string[] => ['perl', '-e', code]
const MKDIR = perl('mkdir "made" or die "$!\\n"; rmdir "made"; print "made\\n"')

t.test('a profile of another engine beside the contract holds a cell', async t => {
  t.match(run(contract('{ profile: build }'), MKDIR), { status: 0, stdout: 'made\n' }, 'without it')
  copyFileSync('/usr/share/containers/seccomp.json', join(dir, 'podman.json'))
  const evidence = join(dir, 'ev')
  t.match(run(contract('{ profile: oci:podman.json }'), MKDIR, evidence), { status: 0, stdout: 'made\n' })
  const log = readFileSync(join(evidence, 'events.jsonl'), 'utf8').split('\n').filter(Boolean).map(line => JSON.parse(line) as { type: string; enforcers?: { name: string; state: string }[]; contract?: unknown })
  t.match(log.find(one => one.type === 'coverage')?.enforcers?.find(one => one.name === 'seccomp')?.state, /profile of another engine \(OCI\).*io_uring.*refused in every cell/)
  t.match(log.find(one => one.type === 'cell.started')?.contract, { spec: { authority: { syscall: { profile: { oci: { defaultAction: 'SCMP_ACT_ERRNO' } } } } } }, 'the evidence holds the profile itself')

  const podman = JSON.parse(readFileSync(join(dir, 'podman.json'), 'utf8')) as { syscalls: { names: string[]; action: string }[] }
  for (const rule of podman.syscalls) rule.names = rule.names.filter(name => !['mkdir', 'mkdirat'].includes(name))
  writeFileSync(join(dir, 'less.json'), JSON.stringify(podman))
  t.match(run(contract('{ profile: oci:less.json }'), MKDIR), { status: /[^0]/, stdout: '' }, 'what it leaves out is refused')
  t.match(run(contract('{ profile: oci:less.json, allow: [mkdir] }'), MKDIR), { status: 0 }, 'unless the contract adds it')
  t.match(run(contract('{ profile: build, deny: [mkdir] }'), MKDIR), { status: /[^0]/ }, 'or takes it away')
})

t.test('the client reads profiles with its own rights; the daemon opens none', async t => {
  t.match(run(contract('{ profile: oci:none.json }'), ['true']).stderr, /contract\.yaml:\d+:\d+: .*the file "none\.json" could not be read/)
  writeFileSync(join(dir, 'bad.json'), '{ "defaultAction": "SCMP_ACT_NOTIFY" }')
  t.match(run(contract('{ profile: oci:bad.json }'), ['true']).stderr, /SCMP_ACT_NOTIFY cannot be kept/)
  writeFileSync(join(dir, 'bad.json'), '{ nothing')
  t.match(run(contract('{ profile: oci:bad.json }'), ['true']).stderr, /"bad\.json" is not JSON/)
  spawnSync('mkfifo', [join(dir, 'fifo')])
  t.match(run(contract('{ profile: oci:fifo }'), ['true']).stderr, /"fifo" could not be read/, 'and waits for nobody')
})

t.test('arguments decide in a real cell', async t => {
  const ask = perl('use Socket; print socket(my $s, AF_INET, SOCK_DGRAM, 0) ? "inet" : "none", " ", socket(my $u, AF_UNIX, SOCK_STREAM, 0) ? "unix" : "none"')
  t.equal(run(contract('{ profile: build }'), ask).stdout, 'inet unix')
  t.equal(run(contract('{ profile: build, deny: [{ name: socket, args: [{ index: 0, op: ne, value: AF_UNIX }] }] }'), ask).stdout, 'none unix')
  t.equal(run(contract('{ profile: strict, allow: [{ name: socket, args: [{ index: 0, op: eq, value: AF_INET }] }] }'), ask).stdout, 'inet none')
})

t.test('the narrowed calls hold a program under runc', async t => {
  const evidence = join(dir, 'narrow-ev')
  const file = contract('{ profile: build }')
  t.equal(run(file, MKDIR, evidence).status, 0)
  const profile = join(dir, 'narrowed.json')
  const narrow = spawnSync(join(root, 'bin/ambit'), ['narrow', evidence, '--contract', file, '--oci', profile], { encoding: 'utf8' })
  t.equal(narrow.status, 0, narrow.stderr)

  const bundle = join(dir, 'bundle')
  for (const folder of ['rootfs', 'rootfs/usr', 'rootfs/proc', 'rootfs/dev', 'rootfs/tmp']) mkdirSync(join(bundle, folder), { recursive: true })
  for (const name of ['bin', 'lib', 'lib64']) spawnSync('ln', ['-s', `usr/${name}`, join(bundle, 'rootfs', name)])
  const contained = (code: string, seccomp: unknown): Run => {
    const namespaces = ['pid', 'mount', 'ipc', 'uts', 'network'].map(type => ({ type }))
    writeFileSync(join(bundle, 'config.json'), JSON.stringify({
      ociVersion: '1.0.2', root: { path: 'rootfs' },
      process: { cwd: '/tmp', args: perl(code), env: ['PATH=/usr/bin', 'LC_ALL=C'], user: { uid: 0, gid: 0 }, noNewPrivileges: true },
      mounts: [{ destination: '/proc', type: 'proc', source: 'proc' }, { destination: '/dev', type: 'tmpfs', source: 'tmpfs' }, { destination: '/tmp', type: 'tmpfs', source: 'tmpfs' }, { destination: '/usr', type: 'bind', source: '/usr', options: ['rbind', 'ro'] }],
      linux: { namespaces, ...(seccomp === null ? {} : { seccomp }) },
    }))
    return spawnSync('runc', ['--root', join(dir, 'runc'), 'run', '--bundle', bundle, `ambit-test-${process.pid}`], { encoding: 'utf8' })
  }
  const narrowed = JSON.parse(readFileSync(profile, 'utf8')) as unknown
  const made = 'mkdir "made" or die "$!\\n"; print "made\\n"'
  const linked = 'symlink "x", "y" or die "$!\\n"; print "linked\\n"'
  const setuid = 'open my $f, ">", "f" or die "open $!\\n"; chmod 04755, "f" or die "$!\\n"; print "set\\n"'
  for (const [code, said] of [[made, 'made\n'], [linked, 'linked\n'], [setuid, 'set\n']] as const) t.match(contained(code, null), { status: 0, stdout: said }, 'without a profile it works')
  t.match(contained(made, narrowed), { status: 0, stdout: 'made\n' }, 'the program that was measured runs')
  t.match(contained(linked, narrowed), { status: /[^0]/, stderr: /not implemented/i }, 'what it did not call is refused')

  const wide = join(dir, 'wide.json')
  const more = join(dir, 'more.yaml')
  writeFileSync(more, readFileSync(file, 'utf8'))
  const evidence2 = join(dir, 'chmod-ev')
  t.equal(run(more, perl('open my $f, ">", "f"; chmod 0755, "f" or die; unlink "f"'), evidence2).status, 0)
  t.equal(spawnSync(join(root, 'bin/ambit'), ['narrow', evidence2, '--contract', more, '--oci', wide]).status, 0)
  const chmods = JSON.parse(readFileSync(wide, 'utf8')) as unknown
  t.match(contained(setuid.replace('04755', '0755'), chmods), { status: 0, stdout: 'set\n' })
  t.match(contained(setuid, chmods), { status: /[^0]/, stderr: /not implemented|not permitted/i }, 'no set-id mode there, either')
})
