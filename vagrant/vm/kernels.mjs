// Debian's cloud kernels, fetched as packages and unpacked, never installed: build/vm/kernels/NAME.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'

/** Which suite of Debian has which kernel. */
export const KERNELS = {
  '5.10': { suite: 'bullseye' },
  '6.1': { suite: 'bookworm' },
  '6.12': { suite: 'bookworm-backports' },
  '7': { suite: 'trixie-backports' },
}

/** What the guest needs to find its root, and what makes attacks possible that a cell must refuse. */
const MODULES = [
  'virtio_pci', 'virtiofs', 'virtio_blk', 'virtio_console', 'overlay', 'loop', 'veth', 'dummy', 'tun',
  'af_alg', 'algif_hash', 'algif_skcipher', 'vsock', 'vsock_loopback', 'af_packet', 'binfmt_misc',
]

function run(command, args, options = {}) {
  const done = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 256 << 20, ...options })
  if (done.error) throw new Error(`${command}: ${done.error.message}`)
  if (done.status !== 0) throw new Error(`${command} ${args.join(' ')}: ${String(done.stderr).trim() || `status ${done.status}`}`)
  return done.stdout
}

/** The mirror that this machine itself installs from. */
function mirror() {
  const targets = run('apt-get', ['indextargets', '--format', '$(REPO_URI) $(CODENAME)', 'Created-By: Packages', 'Origin: Debian'])
  const main = targets.split('\n').map(line => line.split(' ')).find(([, suite]) => /^[a-z]+$/.test(suite ?? ''))
  if (main === undefined) throw new Error('this machine installs nothing from Debian: its package lists name no suite of it')
  return main[0]
}

/** Debian's key of the archive; apt refuses what is not signed by it. */
const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'

/**
 * The unpacked kernel NAME, fetched if it is not there yet.
 * @returns {{ name: string, release: string, image: string, modules: string }} image and folder of modules, absolute
 */
export function kernel(name, cache) {
  const home = join(cache, name)
  if (!existsSync(join(home, 'done'))) fetchKernel(name, home)
  const release = readFileSync(join(home, 'done'), 'utf8').trim()
  const folder = [`usr/lib/modules/${release}`, `lib/modules/${release}`].map(path => join(home, 'root', path)).find(existsSync)
  const image = [`boot/vmlinuz-${release}`, `usr/lib/modules/${release}/vmlinuz`].map(path => join(home, 'root', path)).find(existsSync)
  if (folder === undefined || image === undefined) throw new Error(`the packages of ${release} hold no kernel image or no modules where they are looked for`)
  return { name, release, image, modules: folder }
}

function fetchKernel(name, home) {
  const known = KERNELS[name]
  rmSync(home, { recursive: true, force: true })
  const at = path => join(home, path)
  for (const path of ['lists/partial', 'cache/archives/partial', 'parts', 'root']) mkdirSync(at(path), { recursive: true })
  // Lists, cache and state of its own: the machine's apt learns nothing of these suites.
  writeFileSync(at('parts/debian.sources'), `Types: deb\nURIs: ${mirror()}\nSuites: ${known.suite}\nComponents: main\nSigned-By: ${KEYRING}\n`)
  const own = ['-q', '-o', 'Dir::Etc::SourceList=/dev/null', '-o', `Dir::Etc::SourceParts=${at('parts')}`, '-o', `Dir::State::Lists=${at('lists')}`,
    '-o', `Dir::Cache=${at('cache')}`, '-o', 'Acquire::Languages=none', '-o', 'Acquire::Retries=3', '-o', 'APT::Sandbox::User=root']
  run('apt-get', [...own, 'update', '--error-on=any'])
  const depends = run('apt-cache', [...own, 'show', '--no-all-versions', 'linux-image-cloud-amd64'])
  const release = /linux-image-(\d[^ ,]*cloud-amd64)/.exec(depends)?.[1]
  if (release === undefined) throw new Error(`${known.suite} has no cloud kernel for x86-64`)
  // Since 7.3 image and modules are packages of their own.
  const packages = ['image', 'binary', 'modules'].map(part => `linux-${part}-${release}`)
    .filter(each => run('apt-cache', [...own, 'search', '--names-only', `^${each.replaceAll('+', '\\+').replaceAll('.', '\\.')}$`]) !== '')
  run('apt-get', [...own, 'download', ...packages], { cwd: at('cache') })
  for (const file of readdirSync(at('cache')).filter(each => each.endsWith('.deb'))) run('dpkg', ['-x', at(`cache/${file}`), at('root')])
  for (const path of ['lists', 'cache', 'parts']) rmSync(at(path), { recursive: true })
  writeFileSync(at('done.new'), `${release}\n`)
  renameSync(at('done.new'), at('done'))
}

/** An initramfs that loads the modules, mounts the host's root as the guest's and goes on to `next` there. */
export function initramfs({ modules }, folder, next, busybox) {
  rmSync(folder, { recursive: true, force: true })
  for (const path of ['bin', 'modules', 'ro', 'rw', 'new', 'proc', 'sys', 'dev']) mkdirSync(join(folder, path), { recursive: true })
  run('cp', [busybox, join(folder, 'bin/busybox')])
  const order = unpacked(modules, join(folder, 'modules'))
  writeFileSync(join(folder, 'init'), `#!/bin/busybox sh
set -e
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for module in ${order.join(' ')}; do $B insmod /modules/$module || echo "no $module"; done
$B mount -t virtiofs -o ro host /ro
$B mount -t tmpfs -o size=75% rw /rw
$B mkdir /rw/upper /rw/work
$B mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work root /new
for place in proc sys dev; do $B mount --move /$place /new/$place; done
exec $B switch_root /new ${next}
`, { mode: 0o755 })
  const image = `${folder}.cpio`
  run('sh', ['-c', `cd "$1" && find . | cpio --quiet -o -H newc > "$2"`, 'sh', folder, image])
  return image
}

/** Copies what MODULES names and depends on; the order in which they load. A module that the kernel has built in is no file. */
function unpacked(modules, folder) {
  const files = new Map(readdirSync(join(modules, 'kernel'), { recursive: true }).map(String).filter(path => /\.ko(\.xz)?$/.test(path))
    .map(path => [basename(path).replace(/\.ko.*$/, '').replaceAll('-', '_'), join(modules, 'kernel', path)]))
  const order = []
  const take = name => {
    const file = files.get(name)
    if (file === undefined || order.includes(`${name}.ko`)) return
    const bytes = file.endsWith('.xz') ? run('xz', ['-dc', file], { encoding: 'buffer' }) : readFileSync(file)
    const depends = /\0depends=([^\0]*)\0/.exec(bytes.toString('latin1'))?.[1] ?? ''
    for (const one of depends.split(',').filter(Boolean)) take(one.replaceAll('-', '_'))
    writeFileSync(join(folder, `${name}.ko`), bytes)
    order.push(`${name}.ko`)
  }
  for (const name of MODULES) take(name)
  return order
}
