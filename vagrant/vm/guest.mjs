// Runs test files one after another inside the emulated machine and tells the host of each, as lines of JSON on a port.
import { spawn, spawnSync } from 'node:child_process'
import { openSync, readdirSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'))
const ports = '/sys/class/virtio-ports'
const name = readdirSync(ports).find(each => readFileSync(join(ports, each, 'name'), 'utf8').trim() === 'ambit.results')
const port = openSync(`/dev/${name}`, 'w')
const tell = message => {
  const line = Buffer.from(`${JSON.stringify(message)}\n`)
  for (let at = 0; at < line.length;) at += writeSync(port, line, at)
}

tell({ type: 'up', kernel: readFileSync('/proc/sys/kernel/osrelease', 'utf8').trim(), lsm: readFileSync('/sys/kernel/security/lsm', 'utf8').trim(), seconds: Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]) })
const doctor = spawnSync(process.execPath, ['dist/cli/main.js', 'doctor', '--json'], { encoding: 'utf8', timeout: job.doctorSeconds * 1000, killSignal: 'SIGKILL' })
tell({ type: 'doctor', text: doctor.stdout, error: doctor.stderr.slice(-1000) })
for (const { file, seconds } of job.files) {
  tell({ type: 'begin', file })
  const began = Date.now()
  const child = spawn(process.execPath, ['--enable-source-maps', file.replace(/\.ts$/, '.js')], { stdio: ['ignore', 'pipe', 'pipe'], detached: true, env: { ...process.env, ...job.environment } })
  for (const stream of ['stdout', 'stderr']) child[stream].on('data', data => tell({ type: stream, file, text: data.toString('utf8') }))
  let hung = false
  const limit = setTimeout(() => {
    hung = true
    process.kill(-child.pid, 'SIGKILL')
  }, seconds * 1000)
  const status = await new Promise(resolve => child.once('close', (code, signal) => resolve(code ?? signal)))
  clearTimeout(limit)
  tell({ type: 'end', file, status, hung, seconds: (Date.now() - began) / 1000 })
}
tell({ type: 'done' })
