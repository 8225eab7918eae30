import type { Coverage } from '../../src/evidence/coverage.ts'
import { FAMILIES, type EvidenceBody, type Family, type ProcessRef } from '../../src/evidence/records.ts'

/** Records as the probes and the relay write them, with only what a test is about spelt out. */

type Body<T extends EvidenceBody['type']> = Extract<EvidenceBody, { type: T }>

export const proc = (pid: number, comm = 'job'): ProcessRef => ({ pid, start: String(pid * 1000), comm })
const P = proc(100)

export function coverage(gaps: Partial<Record<Family, string[]>> = {}): Coverage {
  return { hooks: [], gaps: family => gaps[family] ?? [] }
}

export const startedWhere = (links: Record<string, string>): EvidenceBody => ({
  type: 'cell.started', cell: 'c1', mode: 'observe', contract: {}, contractDigest: '', argv: ['x'], host: 'h', boot: 'b', kernel: 'k', pipeline: null, links,
})
export const startedWith = (more: Partial<Body<'cell.started'>>): EvidenceBody => ({ ...startedWhere({}) as Body<'cell.started'>, ...more })
export const file = (path: string, access: Body<'file'>['access'] = 'read', created = false): EvidenceBody =>
  ({ type: 'file', process: P, path, access, created, dev: '8:1', ino: '1', source: 'descriptor' })
export const looked = (path: string): EvidenceBody =>
  ({ type: 'file', process: P, path, access: 'read', created: false, dev: '0:0', ino: '0', source: 'name' })
export const changed = (path: string): EvidenceBody =>
  ({ type: 'file', process: P, path, access: 'write', created: false, dev: '0:0', ino: '0', source: 'argument' })
export const fileFailed = (path: string, errno = 'ENOENT', onHost = true, access: Body<'file'>['access'] = 'read'): EvidenceBody =>
  ({ type: 'file.failed', process: P, path, access, errno, onHost })
export const socket = (path: string, reached = true, errno = 'EACCES', owner?: 'cell' | 'host'): EvidenceBody => (reached
  ? { type: 'file', process: P, path, access: 'write', created: false, dev: '0:0', ino: '0', source: 'argument', socket: true, ...(owner !== undefined && { owner }) }
  : { type: 'file.failed', process: P, path, access: 'write', errno, onHost: true, socket: true })
export const exec = (path: string, unlinked = false): EvidenceBody =>
  ({ type: 'exec', process: P, parent: 1, path, argv: [path], argvTruncated: false, dev: '8:1', ino: '1', unlinked })
/** A script is told by its name, and by its interpreter's arguments. */
export const script = (path: string, argv: string[]): EvidenceBody[] => [
  { ...exec(path) as Body<'exec'>, argv, dev: '0:0', ino: '0' },
  { ...exec(argv[0]!) as Body<'exec'>, argv },
]
export const execFailed = (path: string, errno = 'ENOENT', onHost = true): EvidenceBody => ({ type: 'exec.failed', process: P, path, errno, onHost })
export const flow = (name: string | null, port: number, options: Partial<Body<'flow'>> = {}): EvidenceBody =>
  ({ type: 'flow', flow: 1, name, nameSource: name === null ? 'none' : 'sni', address: '198.51.100.7', port, decision: 'allowed', reason: '', bytesOut: 100, bytesIn: 200, durationMs: 1, ...options })
export const dns = (name: string, decision: 'allowed' | 'refused', answers: string[] = [], reason = 'not declared'): EvidenceBody =>
  ({ type: 'dns', name, rrtype: 'A', decision, answers, reason })
export const connect = (address: string, port: number, protocol: 'tcp' | 'udp' = 'tcp'): EvidenceBody => ({ type: 'connect', process: P, address, port, protocol })
export const request = (method: string, path: string, options: { host?: string; connection?: string; process?: ProcessRef } = {}): EvidenceBody =>
  ({ type: 'api.request', process: options.process ?? P, library: 'openssl', connection: options.connection ?? 'c1', method, path, host: options.host ?? 'api.github.com' })
export const response = (status: number, connection = 'c1'): EvidenceBody => ({ type: 'api.response', process: P, library: 'openssl', connection, status })
export const unreadable = (reason: string, connection = 'c9'): EvidenceBody => ({ type: 'api.unreadable', process: P, library: 'openssl', connection, reason })
export const oidcHanded = (url: string): EvidenceBody =>
  ({ type: 'credential', kind: 'oidc', name: 'ACTIONS_ID_TOKEN_REQUEST_TOKEN', outcome: 'delivered', grants: { 'id-token': 'write' }, expires: null, delivery: 'environment', detail: `the place to ask for an OIDC token: ${url}` })
export const refusedCall = (name: string): EvidenceBody => ({ type: 'syscall.refused', process: P, arch: 'x86_64', nr: 0, name, errno: 'EPERM' })

export type CallCounts = { succeeded?: number; failed?: number; refused?: number; unfinished?: number; arch?: Body<'syscalls'>['calls'][number]['arch'] }
export const syscalls = (calls: Record<string, CallCounts>): EvidenceBody => ({
  type: 'syscalls', outOfRange: 0,
  calls: Object.entries(calls).map(([name, counts], nr) => ({ arch: 'x86_64' as const, nr, name, succeeded: 0, failed: 0, refused: 0, unfinished: 0, ...counts })),
})

export const started = (contract: unknown, mode: 'observe' | 'enforce' = 'observe'): EvidenceBody =>
  ({ type: 'cell.started', cell: 'c0ffee', mode, contract, contractDigest: '0'.repeat(64), argv: ['true'], host: 'h', boot: 'b', kernel: 'k', pipeline: null })
/** Every family has a hook that works, but for those named. */
export const hooks = (missing: readonly Family[] = []): EvidenceBody =>
  ({ type: 'coverage', enforcers: [], hooks: FAMILIES.map(family => ({ name: `hook of ${family}`, family, state: missing.includes(family) ? 'missing' as const : 'attached' as const })) })
export const ended: EvidenceBody = { type: 'cell.ended', code: 0, signal: null, reason: 'exited', wallMs: 1, userMs: 1, systemMs: 1, maxRssKiB: 1 }
