import { z } from 'zod'

/**
 * The lines of a cell's evidence log. Each is one JSON object; `seq` counts from 0 without a gap and
 * `prev` is the SHA-256 (hex) of the previous line's bytes without its newline, 64 zeros for the first.
 */

/** A process, named so that a reused pid is not the same process: `start` is nanoseconds since boot. */
export const processRef = z.object({
  pid: z.number().int().describe('thread group id on the host'),
  start: z.string().describe('start time, nanoseconds since boot, decimal'),
  comm: z.string(),
})
export type ProcessRef = z.infer<typeof processRef>

/** A process as people know it: what it is called and its number on the host. */
export const culprit = z.object({ pid: z.number().int(), comm: z.string() })
export type Culprit = z.infer<typeof culprit>

/** Families of evidence: what a hook feeds and a verdict rests on. */
export const FAMILIES = ['process', 'exec', 'file', 'syscall', 'network', 'dns', 'api', 'credential'] as const
export type Family = (typeof FAMILIES)[number]

export const hookReport = z.object({
  name: z.string().describe('for instance tp_btf/sys_enter'),
  family: z.enum(FAMILIES),
  state: z.enum(['attached', 'fallback', 'missing', 'canary-failed']),
  detail: z.string().optional().describe('why not attached, or what it fell back to'),
})
export type HookReport = z.infer<typeof hookReport>

const process = processRef
const decision = z.enum(['allowed', 'refused'])
export const access = z.enum(['read', 'write', 'readwrite'])
export type Access = z.infer<typeof access>

export const syscallCount = z.object({
  arch: z.enum(['x86_64', 'i386', 'x32', 'aarch64', 'arm']),
  nr: z.number().int(),
  name: z.string().nullable().describe('null: the number has no name here'),
  succeeded: z.number().int(),
  failed: z.number().int().describe('reached the kernel and returned an error'),
  refused: z.number().int().describe('stopped by seccomp before it reached the kernel'),
  unfinished: z.number().int().describe('entered and never returned: exit, exit_group, or killed inside'),
})
export type SyscallCount = z.infer<typeof syscallCount>

/** What happened, without the place in the chain. */
export const evidenceBody = z.discriminatedUnion('type', [
  z.object({
    type: z.literal('cell.started'), cell: z.string(), mode: z.enum(['observe', 'enforce']), contract: z.unknown(),
    contractDigest: z.string().describe('sha256 of the contract in canonical JSON, hex'),
    argv: z.array(z.string()), host: z.string(), boot: z.string(), kernel: z.string(),
    pipeline: z.object({ file: z.string(), job: z.string(), digest: z.string() }).nullable(),
    rootfs: z.string().optional().describe('the image that the cell ran from: what is on the host says nothing of its paths'),
    programs: z.array(z.object({ path: z.string(), sha256: z.string(), dev: z.string(), ino: z.string() })).optional().describe('programs whose content the contract names, and the content that they had: in enforce the cell shows that very file'),
    loaders: z.array(z.string()).optional().describe('granted programs that need no loader, so that another program can name one as its own'),
    links: z.record(z.string(), z.string()).optional().describe('granted paths that are or hold links on this host, and where they lead: acts are told by the latter'),
  }),
  z.object({ type: z.literal('coverage'), hooks: z.array(hookReport), enforcers: z.array(z.object({ name: z.string(), state: z.string() })) }),
  z.object({ type: z.literal('exec'), process, parent: z.number().int(), path: z.string(), argv: z.array(z.string()), argvTruncated: z.boolean(), dev: z.string(), ino: z.string(), unlinked: z.boolean().describe('memfd or deleted file') }),
  z.object({ type: z.literal('exec.failed'), process, path: z.string(), errno: z.string(), onHost: z.boolean().describe('the path exists on the host: the cell withheld it'), by: z.literal('lsm').optional().describe('which fence refused it, where that is known') }),
  z.object({ type: z.literal('fork'), process, child: z.number().int() }),
  z.object({ type: z.literal('fork.failed'), process, errno: z.string() }),
  z.object({ type: z.literal('exit'), process, code: z.number().int().nullable(), signal: z.number().int().nullable(), oom: z.literal(true).optional().describe('chosen by the out-of-memory killer') }),
  z.object({ type: z.literal('file'), process, path: z.string().describe('as resolved in the cell'), access, created: z.boolean().describe('the file came into being, or its name was made or removed'), dev: z.string(), ino: z.string(), source: z.enum(['lsm', 'descriptor', 'argument', 'name']).describe('argument: the path is only what the process said; name: the same, of something looked at and not opened'), socket: z.literal(true).optional().describe('it is a Unix socket that was spoken to, by connect or with a message'), owner: z.enum(['cell', 'host']).optional().describe('of that socket: bound in the cell, or outside of it; absent: not known') }),
  z.object({ type: z.literal('file.failed'), process, path: z.string(), access, errno: z.string(), onHost: z.boolean(), socket: z.literal(true).optional() }),
  z.object({ type: z.literal('connect'), process, address: z.string(), port: z.number().int(), protocol: z.enum(['tcp', 'udp', 'other']) }),
  z.object({ type: z.literal('dns'), name: z.string(), rrtype: z.string(), decision, answers: z.array(z.string()), reason: z.string() }),
  z.object({ type: z.literal('flow'), flow: z.number().int(), name: z.string().nullable(), nameSource: z.enum(['sni', 'host', 'resolver', 'none']), address: z.string(), port: z.number().int(), decision, reason: z.string(), bytesOut: z.number().int(), bytesIn: z.number().int(), durationMs: z.number(), protocol: z.literal('udp').optional().describe('absent: tcp'), encryptedClientHello: z.literal(true).optional().describe('the client may have meant another name than the one told'), proxy: z.literal(true).optional().describe('it was asked to reach other servers, each told as a flow of the same number') }),
  z.object({ type: z.literal('api.request'), process, library: z.string(), connection: z.string(), method: z.string(), path: z.string(), host: z.string() }),
  z.object({ type: z.literal('api.response'), process, library: z.string(), connection: z.string(), status: z.number().int() }),
  z.object({ type: z.literal('api.unreadable'), process, library: z.string(), connection: z.string(), reason: z.string() }),
  z.object({ type: z.literal('credential'), kind: z.string(), name: z.string(), outcome: z.enum(['issued', 'delivered', 'refused', 'revoked', 'revoke-failed']), grants: z.record(z.string(), z.string()), expires: z.string().nullable(), delivery: z.enum(['environment', 'file', 'none']), detail: z.string() }),
  z.object({ type: z.literal('syscall.refused'), process, arch: z.string(), nr: z.number().int(), name: z.string().nullable(), errno: z.string() }),
  z.object({ type: z.literal('syscalls'), calls: z.array(syscallCount), outOfRange: z.number().int() }),
  z.object({ type: z.literal('limit'), limit: z.enum(['ttl', 'memory', 'pids', 'cpu']), detail: z.string().describe('one clause that names the limit and who ran into it'), by: z.array(culprit).max(64).optional() }),
  z.object({ type: z.literal('loss'), event: z.string().describe('event kind as in bpf/events.h'), family: z.enum(FAMILIES), produced: z.number().int(), delivered: z.number().int(), dropped: z.number().int() }),
  z.object({ type: z.literal('gap'), since: z.string().describe('time of the last record before it'), unobserved: z.array(z.enum(FAMILIES)).describe('families that the evidence cannot speak of meanwhile'), detail: z.string().describe('why, and who saw what') }),
  z.object({ type: z.literal('cell.ended'), code: z.number().int().nullable(), signal: z.string().nullable(), reason: z.enum(['exited', 'ttl', 'client-gone', 'memory', 'daemon-stopped', 'launch-failed']), wallMs: z.number(), userMs: z.number(), systemMs: z.number(), maxRssKiB: z.number() }),
])
export type EvidenceBody = z.infer<typeof evidenceBody>
export type EvidenceType = EvidenceBody['type']

/** A line's place in the chain. `time` is RFC 3339 UTC with microseconds. */
export const chainPlace = z.object({ seq: z.number().int().nonnegative(), prev: z.string().length(64), time: z.string() })
export const evidenceRecord = z.intersection(chainPlace, evidenceBody)
export type EvidenceRecord = z.infer<typeof chainPlace> & EvidenceBody

/** What an authority kind observes: a record, wherever it stands in a chain. */
export type EvidenceEvent = EvidenceBody
