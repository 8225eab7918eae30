// What a cell's relay costs a connection: the same client and server (bench/relay.c) directly over loopback and through the relay
// of a cell. An idle cell runs all along, so that its probes slow down both alike.
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { startPrivateDaemon } from '../dist/daemon/private-daemon.js'
import { CLIENT } from '../dist/package.js'
import { quantile, rounds } from './measure.mjs'

const MIB = Number(process.env.AMBIT_BENCH_MIB ?? 1024)
const dir = mkdtempSync(join(tmpdir(), 'ambit-bench-'))
const work = join(dir, 'work')
mkdirSync(work)
execFileSync('gcc', ['-O2', '-o', join(work, 'relay'), join(import.meta.dirname, 'relay.c')])
const server = spawn(join(work, 'relay'), ['serve'], { stdio: ['ignore', 'pipe', 'inherit'] })
const port = Number(String((await once(server.stdout, 'data'))[0]))

const tlsMib = Math.min(MIB, 256)
const served = join(dir, 'served')
mkdirSync(served)
writeFileSync(join(served, 'file'), '')
truncateSync(join(served, 'file'), tlsMib * 1024 * 1024)
execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=bench.test', '-keyout', join(dir, 'key.pem'), '-out', join(dir, 'cert.pem')], { stdio: 'ignore' })
const tls = spawn('openssl', ['s_server', '-accept', '127.0.0.1:0', '-key', join(dir, 'key.pem'), '-cert', join(dir, 'cert.pem'), '-WWW'], { cwd: served, stdio: ['ignore', 'pipe', 'ignore'] })
let said = ''
for await (const part of tls.stdout) {
  said += part
  if (/ACCEPT .*:\d+/.test(said)) break
}
const tlsPort = Number(/ACCEPT .*:(\d+)/.exec(said)[1])

const daemon = await startPrivateDaemon()
const contract = join(dir, 'relay.yaml')
writeFileSync(contract, `apiVersion: ambit/v1
kind: Cell
metadata: { name: bench-relay }
spec:
  mode: enforce
  ttl: 1h
  workspace: shared
  hosts: { bench.test: 127.0.0.1 }
  authority:
    network: [{ host: bench.test, port: ${port} }, { host: bench.test, port: ${tlsPort} }]
    filesystem: { read: [/usr/lib, /usr/bin, /etc], write: [/workspace, /tmp] }
    exec: ['*']
    syscall: { profile: build }
`)
const inCell = command => [CLIENT, 'run', '--socket', daemon.socket, '--contract', contract, '--', ...command]
// It has used its relay once: so the thread lives on, and its processor time can be read.
const [program, ...args] = inCell(['sh', '-c', `/workspace/relay small bench.test ${port} request 1 && exec sleep infinity`])
const idle = spawn(program, args, { cwd: work, stdio: 'ignore' })

function measure(command) {
  const { status, stdout, stderr } = spawnSync(command[0], command.slice(1), { cwd: work, encoding: 'utf8' })
  if (status !== 0) throw new Error(`${command.join(' ')}: status ${status}: ${stderr}`)
  return Number(stdout)
}

/** Milliseconds of a processor that the daemon's threads have used: the relay's own, and all others. */
function used() {
  const { pid } = JSON.parse(readFileSync(join(daemon.stateDir, 'daemon.json'), 'utf8'))
  const sums = { relay: 0, others: 0 }
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const [head, tail] = readFileSync(`/proc/${pid}/task/${task}/stat`, 'utf8').split(') ')
    const fields = tail.split(' ')
    sums[head.endsWith('(ambit-relay') ? 'relay' : 'others'] += (Number(fields[11]) + Number(fields[12])) * 10
  }
  return sums
}

const clients = {
  direct: (...args) => measure([join(work, 'relay'), args[0], '127.0.0.1', String(port), ...args.slice(1)]),
  relayed: (...args) => measure(inCell(['/workspace/relay', args[0], 'bench.test', String(port), ...args.slice(1)])),
}
const curl = ['curl', '-sk', '-o', '/dev/null', '-w', '%{time_total}000000']
const micros = text => text * 1e6
const tlsClients = {
  direct: () => micros(measure([...curl, '--resolve', `bench.test:${tlsPort}:127.0.0.1`, `https://bench.test:${tlsPort}/file`])),
  relayed: () => micros(measure(inCell([...curl, `https://bench.test:${tlsPort}/file`]))),
}
const bulk = [
  ...[['up', 'upload'], ['down', 'download'], ['http-up', 'upload, HTTP in clear'], ['http-down', 'download, HTTP in clear']].map(([way, name]) => ({ name, mib: MIB, direct: () => clients.direct('bulk', way, String(MIB)), relayed: () => clients.relayed('bulk', way, String(MIB)) })),
  { name: 'download, TLS (openssl, curl)', mib: tlsMib, ...tlsClients },
]
const small = [['connect', 'connect, a byte, a byte back', 100], ['request', 'a byte and a byte back, connected', 1000], ['http', 'an HTTP request, connected', 500]]
  .map(([what, name, count]) => ({ name, direct: () => clients.direct('small', what, String(count)), relayed: () => clients.relayed('small', what, String(count)) }))

const many = rounds(9)
const results = new Map([...bulk, ...small].map(({ name }) => [name, { direct: [], relayed: [], relay: 0, others: 0 }]))
try {
  await sleep(1000)
  for (let round = -1; round < many; round++) {
    for (const { name, direct, relayed } of [...bulk, ...small]) {
      const result = results.get(name)
      const without = direct()
      const before = used()
      const through = relayed()
      const after = used()
      if (round < 0) continue
      result.direct.push(without)
      result.relayed.push(through)
      result.relay += after.relay - before.relay
      result.others += after.others - before.others
    }
  }
  const print = (name, ...cells) => process.stdout.write(`${name.padEnd(36)}${cells.map(text => text.padStart(12)).join('')}\n`)
  process.stdout.write(`\none stream, ${many} interleaved rounds, medians; ms of a processor for each GiB\n`)
  print('', 'of direct', 'relay', 'JavaScript')
  for (const { name, mib } of bulk) {
    const { direct, relayed, relay, others } = results.get(name)
    const perGib = value => String(Math.round(value / many / (mib / 1024)))
    print(name, (quantile(direct, 0.5) / quantile(relayed, 0.5)).toFixed(2), perGib(relay), perGib(others))
  }
  process.stdout.write('\nsmall requests, the same rounds, medians of medians\n')
  print('', 'direct', 'relayed', 'added')
  for (const { name } of small) {
    const { direct, relayed } = results.get(name)
    const [without, through] = [quantile(direct, 0.5), quantile(relayed, 0.5)]
    print(name, ...[without, through, through - without].map(value => `${value.toFixed(0)} µs`))
  }
} finally {
  idle.kill()
  await once(idle, 'exit')
  await daemon.stop()
  for (const child of [server, tls]) child.kill()
  rmSync(dir, { recursive: true, force: true })
}
