import { spawn } from 'node:child_process'
import { ApiReader } from './api.ts'
import type { Probes } from './probes.ts'
import { programTriples } from './programs.ts'
import type { EvidenceBody, HookReport } from './records.ts'

/** What a canary needs of src/cell/cgroup.ts: a place of its own below the cells' parent. */
export type CanaryCgroups = {
  createCell(id: string, limits: { memoryBytes: number; pids: number }): { id: bigint; v2: string; v1: string[] }
  removeCell(id: string): unknown
}

/** Nothing listens there, and nothing needs to: the hooks fire at the attempt. Discard service, RFC 863. */
const PORT = 9
const ABSENT = '/ambit-canary-absent'

/**
 * The acts of one canary, in a process of its own that enters the cell first. Only loopback addresses, only files that every
 * host has. The number in the name keeps one canary's traces apart from another's.
 */
const ACTS = `
const fs = require('fs'), net = require('net'), dgram = require('dgram'), { spawnSync } = require('child_process')
fs.writeFileSync(process.argv[1] + '/cgroup.procs', String(process.pid))
spawnSync('/bin/sh', ['-c', 'exit 7'])
spawnSync(${JSON.stringify(ABSENT)})
spawnSync(process.execPath, ['--version'])
fs.closeSync(fs.openSync('/proc/self/status', 'r'))
const quiet = socket => socket.on('error', () => {})
quiet(net.connect(${PORT}, '127.0.0.1'))
quiet(net.connect(${PORT}, '::1'))
let left = 2
for (const [type, address] of [['udp4', '127.0.0.1'], ['udp6', '::1']]) {
  const socket = quiet(dgram.createSocket(type))
  socket.send('x', ${PORT}, address, () => { socket.close(); if (--left === 0) setTimeout(() => process.exit(0), 20) })
}
`

type Proof = (log: readonly EvidenceBody[], sets: readonly EvidenceBody[]) => boolean
const connected = (address: string, protocol: string): Proof => log => log.some(body => body.type === 'connect' && body.address === address && body.port === PORT && body.protocol === protocol)
const counted = (outcome: 'succeeded' | 'unfinished'): Proof => (_, sets) => sets.some(body => body.type === 'syscalls' && body.calls.some(call => call[outcome] > 0))

/** What only that hook can have told. Hooks that are not here are not proven by a canary: their report stands. */
const PROOFS: Record<string, Proof> = {
  'tp_btf/sys_exit (files)': log => log.some(body => body.type === 'file' && (body.source === 'descriptor' || body.source === 'name')),
  'lsm/file_open': log => log.some(body => body.type === 'file' && body.source === 'lsm'),
  'lsm/bprm_check_security': log => log.some(body => body.type === 'exec.failed' && body.by === 'lsm'),
  'tp_btf/sys_exit (failed execs)': log => log.some(body => body.type === 'exec.failed' && body.path === ABSENT && body.errno === 'ENOENT'),
  'tp_btf/sched_process_exec': log => log.some(body => body.type === 'exec' && body.argv[2] === 'exit 7'),
  'tp_btf/sched_process_fork': log => log.some(body => body.type === 'fork'),
  'tp_btf/sched_process_exit': log => log.some(body => body.type === 'exit' && body.code === 7),
  'tp_btf/sys_enter': counted('succeeded'),
  'tp_btf/sys_exit': counted('succeeded'),
  'tp_btf/sched_process_exit (unfinished calls)': counted('unfinished'),
  // Without it the clone that a child leaves would count as refused, with no seccomp filter in sight.
  'tp_btf/sched_process_fork (newborn threads)': (_, sets) => sets.some(body => body.type === 'syscalls' && body.calls.length > 0 && body.calls.every(call => call.refused === 0)),
  'cgroup/connect4': connected('127.0.0.1', 'tcp'),
  'cgroup/connect6': connected('::1', 'tcp'),
  'cgroup/sendmsg4': connected('127.0.0.1', 'udp'),
  'cgroup/sendmsg6': connected('::1', 'udp'),
}

/** How long the acts may take, ms: Node's start on a loaded machine, many times over. */
const PATIENCE_MS = 20_000

/**
 * Does each act for real in a scratch cell and looks whether its hook told of it. A hook that attached but was not heard is
 * `canary-failed`. Leaves nothing behind. TLS libraries are attached, so that their state is known, but no request is made.
 */
export async function runCanaries(probes: Probes, cgroups: CanaryCgroups): Promise<HookReport[]> {
  const id = `canary-${process.pid}`
  const cgroup = cgroups.createCell(id, { memoryBytes: 512 << 20, pids: 64 })
  try {
    probes.addCell(cgroup.id, 0)
    try {
      probes.watch(cgroup.id, new ApiReader(['canary.invalid']))
      // So that the canary's own program is refused when it starts it once more.
      probes.holdPrograms(cgroup.id, () => programTriples(['/bin/sh']))
      const log: EvidenceBody[] = []
      probes.route(cgroup.id, { append: body => { log.push(body) } })
      const failure = await act(cgroup.v2)
      await probes.flush()
      const sets = probes.finalSets(cgroup.id)
      return probes.hooks().map(hook => {
        const proof = PROOFS[hook.name]
        const notThere = hook.state === 'missing' || (hook.name.startsWith('lsm/') && hook.state !== 'attached')
        if (proof === undefined || notThere || proof(log, sets)) return hook
        return { ...hook, state: 'canary-failed', detail: failure ?? 'it attached, but the act that must fire it left no trace' }
      })
    } finally {
      probes.removeCell(cgroup.id)
    }
  } finally {
    await cgroups.removeCell(id)
  }
}

/** Null, or why the acts were not all done. */
async function act(folder: string): Promise<string | null> {
  return new Promise(resolve => {
    const child = spawn(process.execPath, ['-e', ACTS, folder], { stdio: ['ignore', 'ignore', 'pipe'], timeout: PATIENCE_MS, killSignal: 'SIGKILL' })
    let said = ''
    child.stderr.on('data', chunk => { said = (said + String(chunk)).slice(-500) })
    child.once('error', error => resolve(`the canary could not be started: ${error.message}`))
    child.once('close', (code, signal) => resolve(code === 0 ? null : `the canary ended with ${code ?? signal}: ${said.trim().split('\n').find(line => line.includes('Error')) ?? said.trim()}`))
  })
}
