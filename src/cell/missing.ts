import { closeSync, constants as open } from 'node:fs'
import { constants } from 'node:os'
import { execPaths } from '../authority/exec.ts'
import { cellsOwn, inside } from '../authority/paths.ts'
import { placeIn } from '../contract/read.ts'
import type { Contract } from '../contract/schema.ts'
import { AmbitError } from '../errors.ts'
import type { NativeAddon } from '../native.ts'
import { WORKSPACE } from './plan.ts'
import { leadsTo, O_PATH, type Ids } from './see.ts'

/** The cell makes them, and the job what lies in them: there is nothing to look for before it runs. */
const OF_CELL = ['/tmp', '/run']

export type ContractSource = {
  native: NativeAddon
  /** The caller's directory, as a descriptor. */
  workspace: number
  /** The contract as written, and what errors call it. */
  text: string
  file: string
}

/**
 * Refuses a contract that grants what does not exist, with the line: a misspelt path would be a grant that nobody notices is
 * missing. What the caller may not see is to them as if it were not there. With `missingPaths: skip` only the image is looked for.
 * Throws CONTRACT_INVALID.
 */
export function refuseMissing({ spec }: Contract, caller: Ids, source: ContractSource): void {
  const { exec, filesystem: { read, write } } = spec.authority
  const refuse = (path: PropertyKey[], why: string, remedy: string): never => {
    throw new AmbitError('CONTRACT_INVALID', { attempted: 'build the cell', why, remedy, where: { file: source.file, ...placeIn(source.text, path) } })
  }
  if (spec.rootfs !== undefined && leadsTo(spec.rootfs, caller) !== spec.rootfs) {
    refuse(['spec', 'rootfs'], `rootfs: ${spec.rootfs} does not exist, leads through a link, or is not yours to see`, 'name the directory of an unpacked image where it really is')
  }
  if (spec.missingPaths === 'skip') return
  const there = (path: string): boolean => path === '*' || cellsOwn(path) || OF_CELL.some(own => inside(path, own)) || inside(path, WORKSPACE) || leadsTo(path, caller, spec.rootfs) !== null
  // What is mounted writable by itself must be there; the job may make what it reads and executes.
  const parts = spec.mode === 'enforce' && spec.workspace === 'shared' ? write.filter(path => inside(path, WORKSPACE) && !write.some(other => other !== path && inside(path, other))) : []
  const where = spec.rootfs === undefined ? 'on this host' : `in the image ${spec.rootfs}`
  for (const [name, list] of [['filesystem.read', read], ['filesystem.write', write], ['exec', execPaths(exec)]] as const) {
    for (const [index, path] of list.entries()) {
      const missing = !there(path) || (list === write && parts.includes(path) && !liesIn(source, path))
      if (missing) refuse(['spec', 'authority', ...name.split('.'), index], `${name}: ${path} does not exist ${where}, or is not yours to see`, 'mend it or take it out; "missingPaths: skip" in spec leaves out whatever is not there')
    }
  }
}

/** A link on the way is another fault than a missing file, and is told where it is found. */
function liesIn({ native, workspace }: ContractSource, path: string): boolean {
  if (path === WORKSPACE) return true
  try {
    closeSync(native.openBeneath(workspace, path.slice(WORKSPACE.length + 1), O_PATH | open.O_NOFOLLOW, 0))
    return true
  } catch (error) {
    return ![constants.errno.ENOENT, constants.errno.ENOTDIR].includes((error as { errno?: number }).errno ?? 0)
  }
}
