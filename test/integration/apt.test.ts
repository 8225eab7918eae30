import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { dirname, join } from 'node:path'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { makePlace, removePlace, run, startDaemon, verdictOf, type Running } from '../fixtures/daemon.ts'

// Root inside, nobody outside: apt installs from a file and from a repository over http, in a copy of the host's directories.
const place = makePlace()
const changes = mkdtempSync('/var/tmp/ambit-changes-')
const repository = join(place.dir, 'repository')
mkdirSync(repository)

const asked: string[] = []
const server = createServer((request, response) => {
  asked.push(`${request.headers.host} ${request.url}`)
  const file = join(repository, decodeURIComponent(request.url!).replace(/^\/+/, ''))
  if (!existsSync(file) || !statSync(file).isFile()) response.writeHead(404).end()
  else response.writeHead(200).end(readFileSync(file))
})

let daemon: Running
t.before(async () => {
  // In one of the directories that cells write to a copy of, as on a host where it is installed.
  daemon = await startDaemon(place, ['--changes', changes])
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
})
t.teardown(async () => {
  await daemon.stop()
  server.close()
  removePlace(place)
  rmSync(changes, { recursive: true })
})

/** Packs a package; files by path, with mode. Returns the .deb. */
function pack(name: string, control: string, files: Record<string, [mode: number, content: string]>, scripts: Record<string, string> = {}): string {
  const tree = join(place.dir, `tree-${name}`)
  const put = (path: string, mode: number, content: string): void => {
    mkdirSync(dirname(join(tree, path)), { recursive: true, mode: 0o755 })
    writeFileSync(join(tree, path), content)
    chmodSync(join(tree, path), mode)
  }
  put('DEBIAN/control', 0o644, `Package: ${name}\nVersion: 1.0\nArchitecture: all\nMaintainer: Test <test@example.org>\n${control}Description: for a test\n`)
  for (const [script, text] of Object.entries(scripts)) put(`DEBIAN/${script}`, 0o755, `#!/bin/sh\nset -e\n${text}\n`)
  for (const [path, [mode, content]] of Object.entries(files)) put(path, mode, content)
  spawnSync('chmod', ['-R', 'go-w', tree])
  const deb = join(place.dir, `${name}.deb`)
  const { status, stderr } = spawnSync('dpkg-deb', ['--build', '--root-owner-group', tree, deb], { encoding: 'utf8' })
  if (status !== 0) throw new Error(stderr)
  return deb
}

/** A flat repository, as its index describes it (deb822(5)). */
function publish(debs: string[]): void {
  const index = debs.map(deb => {
    const name = deb.split('/').at(-1)!
    cpSync(deb, join(repository, name))
    const bytes = readFileSync(deb)
    const control = spawnSync('dpkg-deb', ['--field', deb], { encoding: 'utf8' }).stdout.trim()
    return `${control}\nFilename: ./${name}\nSize: ${bytes.length}\nSHA256: ${createHash('sha256').update(bytes).digest('hex')}\n`
  }).join('\n')
  writeFileSync(join(repository, 'Packages'), index)
  writeFileSync(join(repository, 'Packages.gz'), gzipSync(index))
  const sums = ['Packages', 'Packages.gz'].map(name => ` ${createHash('sha256').update(readFileSync(join(repository, name))).digest('hex')} ${statSync(join(repository, name)).size} ${name}`)
  writeFileSync(join(repository, 'Release'), `Origin: test\nSuite: test\nDate: ${new Date().toUTCString()}\nSHA256:\n${sums.join('\n')}\n`)
}

const CAPABILITIES = 'CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID'
function contract(name: string, { workspace = 'overlay', system = 'overlay', capabilities = CAPABILITIES, port = 80 } = {}): string {
  const file = join(place.dir, `${name}.yaml`)
  writeFileSync(file, `apiVersion: ambit/v1
kind: Cell
metadata: { name: ${name} }
spec:
  mode: enforce
  ttl: 90s
  workspace: ${workspace}
  system: ${system}
  capabilities: [${capabilities}]
  environment: { set: { DEBIAN_FRONTEND: noninteractive, PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } }
  hosts: { repo.test: 127.0.0.1 }
  authority:
    network: [{ host: repo.test, port: ${port} }]
    filesystem: { read: [/], write: [/workspace, /tmp, /usr, /etc, /var] }
    exec: ['*']
    syscall: { profile: build }
`)
  return file
}

/** What a package manager would change on the host. */
function host(): string {
  const state = ['/var/lib/dpkg/status', '/var/lib/apt/extended_states', '/etc/passwd', '/etc/shadow', '/etc/ld.so.cache'].filter(existsSync).map(path => `${path} ${statSync(path).mtimeMs} ${createHash('sha256').update(readFileSync(path)).digest('hex')}`)
  const folders = ['/usr/bin', '/etc', '/var/lib/dpkg/info', '/var/lib/apt/lists', '/var/cache/apt/archives', '/var/log/apt'].map(path => `${path} ${readdirSync(path).length} ${statSync(path).mtimeMs}`)
  return [...state, ...folders].join('\n')
}

const LISTS = '-o Dir::Etc::sourcelist=/workspace/sources.list -o Dir::Etc::sourceparts=/dev/null'

t.test('apt-get installs a local package and what it depends on from a repository, and the host is as it was', async t => {
  const local = pack('ambit-test-local', 'Depends: ambit-test-dep\n',
    { 'usr/bin/ambit-test-local': [0o755, '#!/bin/sh\necho local runs; ambit-test-dep\n'], 'etc/ambit-test.conf': [0o644, 'configured\n'], 'var/lib/ambit-test/owned': [0o640, 'x\n'] },
    { postinst: 'chown games:games /var/lib/ambit-test/owned\nchmod 600 /var/lib/ambit-test/owned\ngroupadd --system ambit-test-group\nldconfig' })
  publish([pack('ambit-test-dep', '', { 'usr/bin/ambit-test-dep': [0o755, '#!/bin/sh\necho dependency runs\n'] })])
  cpSync(local, join(place.work, 'local.deb'))
  const { port } = server.address() as AddressInfo
  writeFileSync(join(place.work, 'sources.list'), `deb [trusted=yes] http://repo.test:${port} ./\n`)
  const before = host()
  const evidence = join(place.dir, 'evidence')
  const script = `set -e
id -u
apt-get ${LISTS} update
apt-get ${LISTS} install -y --no-install-recommends ./local.deb
ambit-test-local
dpkg-query -W -f '\${Package} \${Status}\\n' 'ambit-test-*'
stat -c '%U %a' /var/lib/ambit-test/owned
getent group ambit-test-group
wc -c < /etc/shadow
cat /etc/os-release /etc/resolv.conf`
  const { status, stdout, stderr } = await run(place, contract('apt', { port }), ['sh', '-c', script], evidence).result
  t.equal(status, 0, `${stdout}\n${stderr}`)
  t.match(stdout, /^0\n/, 'root inside')
  t.match(stdout, /local runs\ndependency runs\n/)
  t.match(stdout, /ambit-test-local install ok installed/)
  t.match(stdout, /ambit-test-dep install ok installed/)
  t.match(stdout, /^games 600$/m)
  t.match(stdout, /^ambit-test-group:/m)
  t.match(stdout, /^ID=[^]*nameserver 127\.0\.0\.1\n/m)
  t.ok(asked.some(line => line.includes('ambit-test-dep.deb')), 'it came over http')
  t.equal(host(), before, 'nothing changed on the host')
  for (const path of ['/usr/bin/ambit-test-local', '/usr/bin/ambit-test-dep', '/etc/ambit-test.conf', '/var/lib/ambit-test']) t.notOk(existsSync(path), path)
  t.same(readdirSync(changes), [], 'and nothing of it is kept')
  const { rows } = verdictOf(evidence)
  t.match(rows.find(({ kind, grant }) => kind === 'network' && grant.startsWith('repo.test')), { outcome: 'used' })
  t.match(rows.find(({ kind, grant }) => kind === 'filesystem' && grant === 'write /usr'), { outcome: 'used' })
  // apt asks for a service record first, and does without.
  t.same(rows.filter(({ kind, outcome }) => kind === 'network' && outcome !== 'used').map(({ grant }) => grant), ['_http._tcp.repo.test'], 'with declared egress only')
})

t.test('a package with a set-user-id program: its bit is without effect in a copy, and refused where a job could leave it', async t => {
  const deb = pack('ambit-test-setid', '', { 'usr/bin/ambit-test-setid': [0o4755, '#!/bin/sh\necho runs\n'] })
  cpSync(deb, join(place.work, 'setid.deb'))
  const script = 'dpkg -i /workspace/setid.deb; echo "status $?"; stat -c %a /usr/bin/ambit-test-setid; grep -c " /usr .*nosuid" /proc/self/mountinfo'
  const apart = await run(place, contract('setid'), ['sh', '-c', script]).result
  t.match(apart.stdout, /status 0\n4755\n[1-9]/, apart.stdout + apart.stderr)
  const shared = await run(place, contract('setid-shared', { workspace: 'shared', capabilities: CAPABILITIES.replace('FSETID, ', '') }), ['sh', '-c', script]).result
  t.match(shared.stdout, /status 1/)
  t.match(shared.stderr, /error setting permissions of .*Operation not permitted/)
})

t.test('what others may not read on the host is empty for the root inside, and without grants nothing of it works', async t => {
  const secret = '/etc/ambit-test-secret'
  const folder = '/var/lib/ambit-test-private'
  t.teardown(() => spawnSync('rm', ['-rf', secret, folder]))
  writeFileSync(secret, 'key\n', { mode: 0o600 })
  mkdirSync(folder, { mode: 0o700 })
  writeFileSync(join(folder, 'inner'), 'key\n', { mode: 0o644 })
  const look = `cat ${secret} ${folder}/inner /etc/shadow; ls -la ${folder}; stat -c '%u %a' ${secret}; echo mine > ${folder}/inner && cat ${folder}/inner`
  t.match(spawnSync('sh', ['-c', `cat ${secret} ${folder}/inner`], { encoding: 'utf8' }).stdout, /key\nkey\n/, 'bare')
  const { stdout, stderr } = await run(place, contract('secrets'), ['sh', '-c', look]).result
  t.notMatch(stdout, /key|root:/)
  t.match(stdout, /^0 600$/m)
  t.match(stdout, /^mine$/m, stderr)
  t.equal(readFileSync(join(folder, 'inner'), 'utf8'), 'key\n')
  const plain = await run(place, contract('no-capabilities', { capabilities: '' }), ['sh', '-c', 'dpkg -i /workspace/local.deb']).result
  t.not(plain.status, 0, 'without capabilities')
  const readonly = await run(place, contract('no-overlay', { system: 'readonly', capabilities: 'CHOWN' }), ['true']).result
  t.equal(readonly.status, 125)
  t.match(readonly.stderr, /system: overlay/)
})

t.test('the root inside has what the contract lists and nothing else, and none of it reaches the host', async t => {
  const script = 'grep -E "^Cap(Eff|Prm|Bnd|Inh|Amb):" /proc/self/status; chown games /tmp/x 2>/dev/null; touch /tmp/x; chown games:games /tmp/x && stat -c %U /tmp/x; setpriv --reuid games --regid games --clear-groups grep CapEff /proc/self/status; mount -t tmpfs none /tmp; kill -9 1; cat /proc/1/environ; nice -n -5 true'
  const { stdout, stderr } = await run(place, contract('caps', { capabilities: 'CHOWN, SETUID, SETGID, KILL' }), ['sh', '-c', script]).result
  t.match(stdout, /CapInh:\t0{16}\nCapPrm:\t00000000000000e1\nCapEff:\t00000000000000e1\nCapBnd:\t00000000000000e1\nCapAmb:\t0{16}\n/)
  t.match(stdout, /^games$/m, stderr)
  t.match(stdout, /CapEff:\t0{16}$/m, 'who becomes another user loses them')
  t.match(stderr, /mount.*(permission denied|must be superuser|not permitted)/i)
  t.match(stderr, /\/proc\/1\/environ: (Permission denied|Operation not permitted)/)
})

t.test('a job that may become any user of the cell does not become its process 1, and sets no limit of it', async t => {
  const script = `import os, resource
def attempt(what, act):
    try:
        act()
        print(what, 'done', flush=True)
    except OSError as error:
        print(what, error.errno, flush=True)
attempt('limits of another user', lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (8, 8)))
for name, ids in (('setuid', (65535,)), ('setreuid', (-1, 65535)), ('setresuid', (-1, -1, 65535)), ('setresuid', (65535, 65535, 65535))):
    if os.fork() == 0:
        attempt(name, lambda: getattr(os, name)(*ids))
        attempt('limits', lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (8, 8)))
        os._exit(0)
    os.wait()
attempt('another', lambda: os.setresuid(65534, 65533, 1))
`
  writeFileSync(join(place.work, 'become.py'), script)
  const { status, stdout, stderr } = await run(place, contract('users', { capabilities: 'SETUID, SETGID' }), ['python3', '/workspace/become.py']).result
  t.equal(status, 0, stderr)
  t.same(stdout.split('\n').filter(Boolean).sort(), ['another done', ...Array.from({ length: 4 }, () => 'limits 1'), 'limits of another user 1', 'setresuid 1', 'setresuid 1', 'setreuid 1', 'setuid 1'])
})

t.test('only root may have the host\'s directories as their owner sees them', async t => {
  const client = join(place.dir, 'client')
  cpSync(join(import.meta.dirname, '../../build/Release/ambit-client'), client)
  for (const path of [place.dir, dirname(place.socket)]) chmodSync(path, 0o755)
  chmodSync(place.socket, 0o666)
  const { status, stderr } = spawnSync(client, ['run', '--socket', place.socket, '--contract', contract('user', { workspace: 'none' }), '--', 'true'], { cwd: '/usr', encoding: 'utf8', uid: 61_001, gid: 61_001 })
  t.equal(status, 2)
  t.match(stderr, /only root may ask/)
})
