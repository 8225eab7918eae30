import type { ProcessRef } from '../evidence/records.ts'

/** "1 file", "3 files". */
export function counted(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`
}

/** How a proof names a process. The name is the job's own choice: forms show it with care. */
export function who(process: ProcessRef): string {
  return `${process.comm} (pid ${process.pid})`
}

/** The first few of a list, and how many more. */
export function some(items: readonly string[], shown: number): string {
  return items.length <= shown ? items.join(', ') : `${items.slice(0, shown).join(', ')} and ${items.length - shown} more`
}

/** By code unit, the same on every machine: what is written from it has one form only. */
export function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}

/** The known word that a mistyped one is closest to; undefined if none is close. */
export function closest(word: string, known: Iterable<string>, mostEdits = Math.max(2, Math.floor(word.length / 3))): string | undefined {
  let best: string | undefined
  let least = mostEdits + 1
  if (word.length > 64) return undefined
  for (const candidate of known) {
    const distance = edits(word.toLowerCase(), candidate.toLowerCase())
    if (distance < least) [best, least] = [candidate, distance]
  }
  return best
}

/** Insertions, deletions, substitutions and swaps of neighbours (optimal string alignment). */
function edits(a: string, b: string): number {
  let before: number[] = []
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      let cost = Math.min(row[j]! + 1, next[j - 1]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1))
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) cost = Math.min(cost, before[j - 2]! + 1)
      next.push(cost)
    }
    before = row
    row = next
  }
  return row[b.length]!
}

/** The first item that is in the list twice. */
export function repeated(items: readonly string[]): string | undefined {
  return items.find((item, index) => items.indexOf(item) !== index)
}

/** In order of first appearance. */
export function grouped<T>(items: readonly T[], keyOf: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>()
  for (const item of items) {
    const key = keyOf(item)
    const group = groups.get(key)
    if (group === undefined) groups.set(key, [item])
    else group.push(item)
  }
  return groups
}
