import { createHash } from 'node:crypto'
import { closeSync, fstatSync, readdirSync, readFileSync, readSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import type { CgroupPlace } from '../cell/cgroup.ts'
import type { CellHost, Reserved } from '../cell/reserve.ts'
import { culprit } from '../evidence/records.ts'
import type { Progress } from '../evidence/probes.ts'

/**
 * What a cell that outlives its daemon takes along. All of it is memory and descriptors that the spawner holds: nothing of it is
 * in a file, so nothing is left when the spawner is gone.
 */
export const cellRecord = z.object({
  id: z.string(), slot: z.number().int().nonnegative(), contract: z.string().describe('its text'), profiles: z.record(z.string(), z.string()).default({}).describe('what the files hold that it names'),
  uid: z.number().int(), gid: z.number().int(),
  cgroup: z.object({ id: z.string(), v2: z.string(), v1: z.array(z.string()) }),
  started: z.number().describe('milliseconds since the epoch'),
  deadline: z.number().describe('milliseconds since boot'),
  apis: z.boolean().describe('calls of APIs were read'),
  tokens: z.array(z.string()).describe('to be taken back at its end'),
})
export type CellRecord = z.output<typeof cellRecord>

export const cellProgress = z.object({ delivered: z.record(z.string(), z.number()), hits: z.object({ oom: z.array(culprit), forks: z.array(culprit) }) })

/** What all of them share. `objects`: digest of the eBPF objects, since maps are handed on only to the very same programs. */
export const sharedRecord = z.object({ place: z.object({ name: z.string(), parentV2: z.string(), v1: z.record(z.string(), z.string()) }), objects: z.string() })
export type SharedRecord = { place: CgroupPlace; objects: string }

/** Milliseconds since boot, with the time that the machine slept (CLOCK_BOOTTIME). */
export function bootMs(): number {
  return Math.round(Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]) * 1000)
}

export function objectsDigest(dir: string): string {
  const hash = createHash('sha256')
  for (const name of readdirSync(dir).filter(one => one.endsWith('.bpf.o')).sort()) hash.update(name).update(readFileSync(join(dir, name)))
  return hash.digest('hex')
}

/** Writes a value into kept memory, whole: what a reader finds is this or the one before. */
function put(fd: number, value: unknown): void {
  const bytes = Buffer.from(JSON.stringify(value))
  const before = fstatSync(fd).size
  // A longer one was there: blanks are no part of JSON, and one write is never seen half.
  writeSync(fd, bytes.length >= before ? bytes : Buffer.concat([bytes, Buffer.alloc(before - bytes.length, ' ')]), 0, undefined, 0)
}

/** Reads what `put` wrote. Throws if it is none of that. */
export function get<T>(fd: number, schema: z.ZodType<T>): T {
  const bytes = Buffer.alloc(fstatSync(fd).size)
  readSync(fd, bytes, 0, bytes.length, 0)
  return schema.parse(JSON.parse(bytes.toString('utf8')))
}

/**
 * Lets a cell outlive this process, from now on: to be called before its command is let go. The memory for its progress is
 * closed with the returned function, once the cell is gone. `workspace`: the caller's directory, if what is written to it is kept apart.
 */
export function holdCell(host: CellHost, reserved: Reserved, record: CellRecord, shared: SharedRecord, workspace: number | null): () => void {
  const { id } = record
  const keep = (owner: string, name: string, value: unknown): number => {
    const fd = host.native.makeMemory(`ambit ${name}`)
    put(fd, value)
    host.spawner.keep(owner, name, fd)
    return fd
  }
  const nothing: Progress = { delivered: {}, hits: { oom: [], forks: [] } }
  for (const [name, fd] of Object.entries(host.probes.keepable())) if (!name.startsWith('relay ')) host.spawner.keep('', name, fd)
  closeSync(keep('', 'shared', shared))
  closeSync(keep(id, 'record', record))
  const link = reserved.relay === null ? undefined : host.probes.relayLink(reserved.relay)
  if (link !== undefined && reserved.relay !== null) {
    host.spawner.keep(id, 'relay', link)
    const answers = host.probes.relayAnswers(reserved.relay)
    host.spawner.keep(id, 'answers', answers)
    closeSync(answers)
  }
  if (workspace !== null) host.spawner.keep(id, 'workspace', workspace)
  const progress = keep(id, 'progress', nothing)
  let open = true
  host.probes.onProgress(reserved.cgroup.id, now => { if (open) put(progress, now) })
  host.spawner.hold(id, record.deadline)
  return () => {
    open = false
    closeSync(progress)
  }
}

/** Profiles of other engines are what the client sent of them: the daemon opens no path of a caller's. */
export function handedProfile({ profiles = {} }: { profiles?: Readonly<Record<string, string>> | undefined }): (name: string) => string | undefined {
  return name => (Object.hasOwn(profiles, name) ? profiles[name] : undefined)
}
