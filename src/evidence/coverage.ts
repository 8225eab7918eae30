import type { EvidenceBody, Family, HookReport } from './records.ts'
import { FAMILIES } from './records.ts'

/** What the evidence can and cannot speak of, family by family. */
export type Coverage = {
  /** Why the family is not complete; empty means that it is. */
  gaps(family: Family): readonly string[]
  readonly hooks: readonly HookReport[]
}

/**
 * Coverage as the evidence itself tells it. A family without a single working hook, with a lost event,
 * or in a log that never closed is incomplete: nothing of it may be called unused.
 */
export function coverageOf(events: Iterable<EvidenceBody>): Coverage {
  const hooks: HookReport[] = []
  const gaps = new Map<Family, string[]>(FAMILIES.map(family => [family, []]))
  let ended = false
  for (const event of events) {
    if (event.type === 'coverage') hooks.push(...event.hooks)
    if (event.type === 'loss' && event.dropped > 0) gaps.get(event.family)!.push(`${event.dropped} of ${event.produced} ${event.event} events were dropped`)
    if (event.type === 'syscalls' && event.outOfRange > 0) gaps.get('syscall')!.push(`${event.outOfRange} calls had numbers out of range`)
    if (event.type === 'gap') for (const family of event.unobserved) gaps.get(family)!.push(`nobody was there to see it for a time: ${event.detail}`)
    if (event.type === 'cell.ended') ended = true
  }
  for (const family of FAMILIES) {
    const own = hooks.filter(hook => hook.family === family)
    if (own.length === 0) gaps.get(family)!.push('no hook reported')
    for (const hook of own) {
      if (hook.state === 'missing' || hook.state === 'canary-failed') gaps.get(family)!.push(`${hook.name}: ${hook.state}${hook.detail === undefined ? '' : ` (${hook.detail})`}`)
    }
    if (!ended) gaps.get(family)!.push('the evidence has no closing record')
  }
  return { hooks, gaps: family => gaps.get(family)! }
}
