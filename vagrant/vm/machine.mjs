// One emulated machine: QEMU without KVM, the host's root directory over virtio-fs, a disk of its own, results over a port.
import { spawn } from 'node:child_process'
import { closeSync, existsSync, openSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'

/** Debian 12's comes with QEMU; later ones are a package of their own, with other options. */
const SERVERS = [
  { path: '/usr/libexec/virtiofsd', options: socket => [`--socket-path=${socket}`, '--shared-dir', '/', '--sandbox', 'none', '--cache', 'always', '--readonly'] },
  { path: '/usr/lib/qemu/virtiofsd', options: socket => [`--socket-path=${socket}`, '-o', 'source=/', '-o', 'sandbox=chroot', '-o', 'cache=always'] },
]

const MEMORY = '3G'
/** Kernels and programs ask for this order: bpf is what the matrix is for. */
const LSMS = 'landlock,lockdown,yama,integrity,apparmor,bpf'

/**
 * Boots and hands on each message of the guest; resolves when the machine is off.
 * @param {{ image: string, initramfs: string, disk: string, folder: string, seconds: number, onMessage: (message: object) => void }} machine
 * @returns {Promise<{ status: number | string, late: boolean, console: string }>} console: the end of what the kernel printed
 */
export async function boot({ image, initramfs, disk, folder, seconds, onMessage }) {
  const server = SERVERS.find(each => existsSync(each.path))
  if (server === undefined) throw new Error('virtiofsd is missing: Debian 12 has it in qemu-system-common, later ones in virtiofsd')
  const socket = join(folder, 'root.socket')
  const log = join(folder, 'console.log')
  rmSync(socket, { force: true })
  rmSync(log, { force: true })
  const err = openSync(join(folder, 'virtiofsd.log'), 'w')
  const files = spawn(server.path, server.options(socket), { stdio: ['ignore', err, err] })
  closeSync(err)
  process.once('exit', () => files.kill())
  const filesGone = new Promise(resolve => files.once('exit', resolve))
  try {
    for (let tries = 0; !existsSync(socket); tries++) {
      if (tries === 200 || files.exitCode !== null) throw new Error(`virtiofsd did not start: ${readFileSync(join(folder, 'virtiofsd.log'), 'utf8').slice(-500)}`)
      await sleep(50)
    }
    const qemu = spawn('qemu-system-x86_64', [
      // With a thread for each of its processors QEMU 7.2 misses code that one of them changes for the other (jump labels: an int3
      // that nobody handles) and breaks cmpxchg16b: kernels panic now and then.
      '-accel', 'tcg,thread=single', '-M', 'q35', '-cpu', 'max,la57=off,cx16=off', '-smp', '2', '-m', MEMORY, '-display', 'none', '-nodefaults', '-no-reboot',
      '-object', `memory-backend-memfd,id=memory,size=${MEMORY},share=on`, '-numa', 'node,memdev=memory',
      '-chardev', `socket,id=files,path=${socket}`, '-device', 'vhost-user-fs-pci,chardev=files,tag=host',
      '-drive', `file=${disk},format=raw,if=virtio,cache=unsafe`,
      '-serial', `file:${log}`,
      '-device', 'virtio-serial-pci', '-chardev', 'stdio,id=results,signal=off', '-device', 'virtserialport,chardev=results,name=ambit.results',
      '-kernel', image, '-initrd', initramfs, '-append', `console=ttyS0 loglevel=6 panic=-1 mitigations=off lsm=${LSMS}`,
    ], { stdio: ['pipe', 'pipe', 'inherit'] }) // an end on its input would disconnect the port
    let late = false
    process.once('exit', () => qemu.kill('SIGKILL'))
    const limit = setTimeout(() => { late = true; qemu.kill('SIGKILL') }, seconds * 1000)
    createInterface({ input: qemu.stdout }).on('line', line => {
      if (line.startsWith('{')) onMessage(JSON.parse(line))
    })
    const status = await new Promise((resolve, reject) => {
      qemu.once('error', reject)
      qemu.once('close', (code, signal) => resolve(signal ?? code))
    }).finally(() => clearTimeout(limit))
    return { status, late, console: readFileSync(log, 'utf8').slice(-4000) }
  } finally {
    files.kill()
    await filesGone
  }
}
