import { AmbitError } from '../errors.ts'
import { memoryBytes } from '../contract/schema.ts'
import type { EvidenceStore } from './store.ts'

/** How much evidence stays: null is no limit. */
export type Retention = { ageMs: number | null; bytes: number | null }

export type Removed = { cell: string; sealed: string; bytes: number; why: 'age' | 'size' }

/** Whoever ran the cell may still be fetching it, and a client of a former daemon may still come back for it. */
const SETTLED_MS = 15 * 60_000
const HOUR_MS = 3_600_000

/**
 * Removes sealed bundles that are older than the age, and then the oldest ones until all sealed bundles together take no more than
 * the bytes. An open log, one that was never sealed, and what was sealed a quarter of an hour ago or later stay.
 * `failed` is told of a bundle that could not be removed; the others are removed all the same.
 */
export async function removeOld(store: EvidenceStore, { ageMs, bytes }: Retention, now: number, failed: (cell: string, error: unknown) => void): Promise<Removed[]> {
  const sealed = store.ids().flatMap(id => {
    const bundle = store.sealed(id)
    return bundle === null ? [] : [{ id, ...bundle }]
  }).sort((a, b) => a.sealedMs - b.sealedMs)
  let kept = sealed.reduce((sum, bundle) => sum + bundle.bytes, 0)
  const removed: Removed[] = []
  for (const bundle of sealed) {
    const age = now - bundle.sealedMs
    if (age < SETTLED_MS) continue
    const why = ageMs !== null && age > ageMs ? 'age' : bytes !== null && kept > bytes ? 'size' : null
    if (why === null) continue
    try {
      await store.remove(bundle.id)
      kept -= bundle.bytes
      removed.push({ cell: bundle.id, sealed: new Date(bundle.sealedMs).toISOString(), bytes: bundle.bytes, why })
    } catch (error) {
      failed(bundle.id, error)
    }
  }
  return removed
}

/** "30d" or "12h", in milliseconds. Throws USAGE. */
export function keepAge(text: string): number {
  const match = /^(\d{1,5})(h|d)$/.exec(text)
  const age = match === null ? 0 : Number(match[1]) * (match[2] === 'd' ? 24 : 1) * HOUR_MS
  if (age > 0) return age
  throw new AmbitError('USAGE', { attempted: 'read --keep-evidence', why: `"${text}" is not a time such as 12h or 30d, of at least an hour`, remedy: 'say for how long evidence is kept, or leave the option out to keep all of it' })
}

/** "10GiB", in bytes. Throws USAGE. */
export function keepBytes(text: string): number {
  const bytes = memoryBytes(text)
  if (bytes > 0) return bytes
  throw new AmbitError('USAGE', { attempted: 'read --max-evidence', why: `"${text}" is not a size such as 500MiB or 10GiB`, remedy: 'say how much evidence is kept, or leave the option out to keep all of it' })
}
