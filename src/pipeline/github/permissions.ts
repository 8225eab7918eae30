import { PERMISSION_TYPES } from './parser.ts'

export type Access = 'read' | 'write'

/** Each permission that GitHub's own schema knows, as the file spells it ("pull-requests"), with the accesses it can have. */
export const KNOWN: ReadonlyMap<string, readonly Access[]> = new Map([...PERMISSION_TYPES].map(([name, type]) => [name, accesses(type)]))

function accesses(type: string): readonly Access[] {
  if (type === 'permission-level-read-or-no-access') return ['read']
  if (type === 'permission-level-write-or-no-access') return ['write']
  return ['read', 'write']
}

/** What `read-all` and `write-all` stand for: of each permission the most that is no more than asked. */
export function expand(shorthand: 'read-all' | 'write-all'): Map<string, Access> {
  const held = new Map<string, Access>()
  for (const [name, possible] of KNOWN) {
    if (shorthand === 'write-all') held.set(name, possible.at(-1)!)
    else if (possible.includes('read')) held.set(name, 'read')
  }
  return held
}

export const underscored = (name: string): string => name.replaceAll('-', '_')
export const hyphened = (name: string): string => name.replaceAll('_', '-')
