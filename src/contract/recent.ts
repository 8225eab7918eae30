import type { Contract } from './schema.ts'
import { readContract, type ProfileText } from './read.ts'

const KEPT = 64
/** Longer ones are rare, and would take memory that a stranger decides on. */
const TEXT_MAX = 16 * 1024
const recent = new Map<string, Contract>()

/**
 * As readContract, but a text that was read of late gives the same contract again, which nobody may change: jobs come back
 * with theirs. What depends on more than its text, a profile of a file, is read each time.
 */
export function readRecentContract(text: string, file: string, profileText: ProfileText): Contract {
  const known = recent.get(text)
  if (known !== undefined) return known
  let alone = true
  const contract = readContract(text, file, name => {
    alone = false
    return profileText(name)
  })
  if (!alone || text.length > TEXT_MAX) return contract
  if (recent.size >= KEPT) recent.delete(recent.keys().next().value!)
  recent.set(text, freeze(contract))
  return contract
}

function freeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value)
    for (const item of Object.values(value)) freeze(item)
  }
  return value
}
