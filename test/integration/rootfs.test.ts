import { spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, realpathSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t from 'tap'
import { makePlace, removePlace, run, startDaemon, verdictOf, type Running } from '../fixtures/daemon.ts'

// Cells that run from an unpacked image instead of the host's system.
const place = makePlace()
const USER = { uid: 61_011, gid: 61_011 }
let daemon: Running
t.before(async () => {
  daemon = await startDaemon(place, ['--changes', join(place.dir, 'changes')])
  for (const path of [place.dir, dirname(place.socket)]) chmodSync(path, 0o755)
  chmodSync(place.socket, 0o666)
})
t.teardown(async () => {
  await daemon.stop()
  removePlace(place)
})

const PROGRAMS = ['sh', 'cat', 'ls', 'stat', 'touch', 'rm', 'chown', 'mkdir', 'grep', 'readlink']

/** A small image, as an unpacked one is: some programs, their libraries, a file that says which it is. */
function image(owner = { uid: 0, gid: 0 }): string {
  const root = mkdtempSync(join(place.dir, 'image-'))
  for (const folder of ['usr/bin', 'usr/lib', 'usr/lib64', 'etc', 'srv', 'var', 'private']) mkdirSync(join(root, folder), { recursive: true })
  for (const folder of ['bin', 'lib', 'lib64']) symlinkSync(`usr/${folder}`, join(root, folder))
  const copied = new Set<string>()
  for (const name of PROGRAMS) {
    const real = realpathSync(join('/usr/bin', name))
    cpSync(real, join(root, 'usr/bin', name))
    const libraries = [...spawnSync('ldd', [real], { encoding: 'utf8' }).stdout.matchAll(/(\/\S+) \(0x/g)].map(found => found[1]!)
    for (const library of libraries) {
      if (copied.has(library)) continue
      copied.add(library)
      const target = join(root, library.replace(/^\/(lib|lib64)\//, '/usr/$1/'))
      mkdirSync(dirname(target), { recursive: true })
      cpSync(realpathSync(library), target)
    }
  }
  writeFileSync(join(root, 'etc/image'), 'the image\n')
  writeFileSync(join(root, 'etc/secret'), 'of the image\'s root\n', { mode: 0o600 })
  writeFileSync(join(root, 'private/file'), 'not granted\n')
  chmodSync(root, 0o755)
  spawnSync('chown', ['-hR', `${owner.uid}:${owner.gid}`, root])
  return root
}

let contracts = 0
function contract(rootfs: string, { spec = '', read = '/usr, /bin, /lib, /lib64, /etc', write = '/workspace, /tmp', exec = '\'*\'' } = {}): string {
  const file = join(place.dir, `image-${contracts++}.yaml`)
  writeFileSync(file, `apiVersion: ambit/v1
kind: Cell
metadata: { name: image }
spec:
  mode: enforce
  ttl: 60s
  workspace: shared
  rootfs: ${rootfs}
${spec.replace(/^(?=.)/gm, '  ')}
  authority:
    filesystem: { read: [${read}], write: [${write}] }
    exec: [${exec}]
    syscall: { profile: build }
`)
  return file
}
const inCell = (file: string, script: string, evidence?: string): ReturnType<typeof run>['result'] => run(place, file, ['sh', '-c', script], evidence).result
function picture(folder: string): string {
  return spawnSync('find', [folder, '-printf', '%P %y %m %U %G %s %T@ %l\\n'], { encoding: 'utf8' }).stdout
}

t.test('a cell runs from an image, read-only, with its own /proc, /dev, /tmp and names, and nothing of the host', async t => {
  const root = image()
  const before = picture(root)
  const { status, stdout, stderr } = await inCell(contract(root), `cat /etc/image /etc/secret /etc/resolv.conf /etc/hostname
stat -c '%u %n' /etc/image /usr/bin/cat
ls /usr/bin
echo x > /dev/null && grep -c ' /proc ' /proc/self/mountinfo
echo made > made-in-image.txt
touch /tmp/x /etc/y; ls -d /usr/share /home /root`)
  t.match(stdout, /^the image\nof the image's root\nnameserver 127\.0\.0\.1\n[^]*cell-c/, stderr)
  t.match(stdout, /^0 \/etc\/image\n0 \/usr\/bin\/cat$/m, 'the image\'s owner is root inside')
  t.match(stdout, new RegExp(`^${[...PROGRAMS].sort().join('\n')}$`, 'm'), 'the image\'s programs and no others')
  t.match(stderr, /touch: .*\/etc\/y.*(Read-only file system|Permission denied)/)
  t.notMatch(stdout, /^\/(usr\/share|home|root)$/m)
  t.not(status, 0)
  t.equal(picture(root), before, 'the image is as it was')
  t.equal(readFileSync(join(place.work, 'made-in-image.txt'), 'utf8'), 'made\n')
})

t.test('what is written through an overlay is there for the job and gone after it', async t => {
  const root = image()
  const before = picture(root)
  const file = contract(root, { spec: 'rootfsWrites: overlay\ncapabilities: [CHOWN, DAC_OVERRIDE, FOWNER]', write: '/workspace, /tmp, /srv, /etc, /usr' })
  const { status, stdout, stderr } = await inCell(file, 'echo changed > /etc/image; rm /etc/secret /usr/bin/touch; mkdir /srv/made; chown 7:8 /srv/made; cat /etc/image; stat -c "%u:%g" /srv/made; ls /etc')
  t.equal(status, 0, stderr)
  t.match(stdout, /^changed\n7:8\n/)
  t.notMatch(stdout, /^secret$/m)
  t.equal(picture(root), before)
  t.same(readdirSync(join(place.dir, 'changes')), [])
  const { stderr: readonly, status: refused } = await inCell(contract(root, { write: '/workspace, /srv' }), 'echo x > /srv/y')
  t.not(refused, 0)
  t.match(readonly, /Read-only file system/)
})

t.test('links of an image in the way of what a cell mounts lead nowhere', async t => {
  const root = image()
  const outside = mkdtempSync(join(place.dir, 'outside-'))
  writeFileSync(join(outside, 'resolv.conf'), 'of the host\n')
  for (const name of ['dev', 'proc', 'tmp', 'run', 'workspace']) symlinkSync(outside, join(root, name))
  symlinkSync(join(outside, 'resolv.conf'), join(root, 'etc/resolv.conf'))
  symlinkSync(join(outside, 'made'), join(root, 'etc/hostname'))
  spawnSync('sh', ['-c', `echo x > ${root}/dev/null; echo x > ${root}/etc/hostname`])
  t.same(readdirSync(outside).sort(), ['made', 'null', 'resolv.conf'], 'bare: whoever writes to these places writes outside')
  spawnSync('sh', ['-c', `rm ${outside}/made ${outside}/null`])
  for (const spec of ['', 'rootfsWrites: overlay']) {
    const { status, stdout, stderr } = await inCell(contract(root, { spec, write: '/workspace, /tmp' }), 'stat -c %F /dev /proc /tmp /run /workspace /dev/null; cat /etc/resolv.conf; touch /tmp/x /workspace/y')
    t.equal(status, 0, stderr)
    t.match(stdout, /^(directory\n){5}character special file\nnameserver/)
    t.same(readdirSync(outside), ['resolv.conf'])
    t.equal(readFileSync(join(outside, 'resolv.conf'), 'utf8'), 'of the host\n')
  }
  // An /etc that is a link altogether.
  spawnSync('sh', ['-c', `mv ${root}/etc ${root}/real-etc; ln -s ${outside} ${root}/etc`])
  const { stdout } = await inCell(contract(root, { read: '/usr, /bin, /lib, /lib64' }), 'cat /etc/resolv.conf; ls /etc')
  t.match(stdout, /^nameserver/)
  t.same(readdirSync(outside), ['resolv.conf'])
})

t.test('the contract\'s paths are paths in the image: what it does not grant is refused, and the evidence says so', async t => {
  const root = image()
  t.match(spawnSync('chroot', [root, '/bin/cat', '/private/file'], { encoding: 'utf8' }).stdout, /not granted/, 'bare')
  const evidence = join(place.dir, 'evidence')
  const { stdout, stderr } = await inCell(contract(root, { exec: '/bin/sh, /bin/cat' }), 'cat /etc/image; cat /private/file; ls /', evidence)
  t.match(stdout, /^the image\n$/)
  t.match(stderr, /\/private\/file: Permission denied/)
  const { rows } = verdictOf(evidence)
  t.match(rows.find(({ kind, grant }) => kind === 'filesystem' && grant === 'read /private/file'), { outcome: 'denied' })
  t.match(rows.find(({ kind, grant }) => kind === 'exec' && grant === '/bin/cat'), { outcome: 'used' })
  t.ok(rows.some(({ kind, grant, outcome }) => kind === 'exec' && /\/ls$/.test(grant) && outcome === 'denied'))
})

t.test('a caller who is not root runs images of their own, and sees in those of root what everybody may', async t => {
  const client = join(place.dir, 'client')
  cpSync(join(import.meta.dirname, '../../build/Release/ambit-client'), client)
  const work = join(place.dir, 'user-work')
  mkdirSync(work)
  spawnSync('chown', [`${USER.uid}:${USER.gid}`, work])
  const asUser = (file: string, script: string): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(client, ['run', '--socket', place.socket, '--contract', file, '--', 'sh', '-c', script], { cwd: work, encoding: 'utf8', input: '', ...USER })
  const own = image(USER)
  const written = asUser(contract(own, { spec: 'rootfsWrites: overlay', write: '/workspace, /srv' }), 'cat /etc/secret; stat -c "%u %n" /etc/image; echo x > /srv/x && cat /srv/x; echo y > y')
  t.match(written.stdout, /^of the image's root\n0 \/etc\/image\nx\n/, written.stderr)
  t.equal(statSync(join(work, 'y')).uid, USER.uid)
  t.notOk(existsSync(join(own, 'srv/x')))
  const others = asUser(contract(image()), 'cat /etc/image /etc/secret')
  t.match(others.stdout, /^the image\n$/)
  t.match(others.stderr, /secret: Permission denied/)
  const closed = image()
  chmodSync(closed, 0o700)
  t.equal(lstatSync(closed).mode & 0o777, 0o700)
  t.not(asUser(contract(closed), 'cat /etc/image').status, 0)
})

t.test('an image that is none, leads elsewhere or holds the daemon\'s own is refused with the line', async t => {
  const root = image()
  const link = join(place.dir, 'link-to-image')
  symlinkSync(root, link)
  for (const [path, why] of [[join(place.dir, 'nowhere'), /:8:\d+: .*does not exist/], [link, /:8:\d+: .*leads through a link/], [place.dir, /the daemon keeps its own/]] as const) {
    const { status, stderr } = await inCell(contract(path), 'true')
    t.equal(status, 2, stderr)
    t.match(stderr, why)
  }
  const { stderr } = await inCell(contract(root, { read: '/usr, /no/such' }), 'true')
  t.match(stderr, /filesystem\.read: \/no\/such does not exist in the image/)
})
