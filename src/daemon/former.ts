import { closeSync, existsSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import type { Logger } from 'pino'
import type { CellExit, NativeAddon, NativeSpawner, ReservedCell } from '../native.ts'
import type { Progress } from '../evidence/probes.ts'
import { cellProgress, cellRecord, get, sharedRecord, type CellRecord, type SharedRecord } from './hold.ts'

/** A cell that a daemon left behind when it died. */
export type FormerCell = {
  record: CellRecord
  progress: Progress
  spawner: NativeSpawner
  /** Null: it ended meanwhile, and `exit` says how. */
  native: ReservedCell | null
  exit: CellExit | null
  /** Link of the program that hands connections to the relay, and the map of answers to datagrams. */
  relay: { link: number; answers: number } | null
  /** The caller's directory, if what is written to it is kept apart. */
  workspace: number | null
}

export type Former = {
  cells: FormerCell[]
  shared: SharedRecord | null
  /** Maps and links of its probes, by name. */
  kept: Record<string, number>
  spawners: { spawner: NativeSpawner; path: string }[]
}

const SPAWNERS = 'spawners'

/** Where the spawner of this process waits for the next daemon. Root alone gets into the folder. */
export function nextSocket(stateDir: string): string {
  const folder = join(stateDir, SPAWNERS)
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  return join(folder, `${process.pid}.sock`)
}

/**
 * Takes over every spawner that waits in the state directory. One that cannot be understood is let go of with a word in the log:
 * its cells end with their time.
 */
export async function takeFormer(native: NativeAddon, stateDir: string, onExit: (exit: CellExit) => void, log: Logger): Promise<Former> {
  const former: Former = { cells: [], shared: null, kept: {}, spawners: [] }
  const folder = join(stateDir, SPAWNERS)
  if (!existsSync(folder)) return former
  for (const name of readdirSync(folder).filter(one => one.endsWith('.sock'))) {
    const path = join(folder, name)
    let spawner: NativeSpawner
    try {
      spawner = new native.Spawner(null, path, onExit)
    } catch (error) {
      // Refused: its spawner is gone, and this is only its name.
      if ((error as { errno?: number }).errno === constants.errno.ECONNREFUSED) rmSync(path, { force: true })
      else log.warn({ err: error }, 'a former daemon\'s spawner cannot be reached')
      continue
    }
    try {
      const { cells, ended, kept } = await spawner.taken()
      former.spawners.push({ spawner, path })
      const named = (id: string, what: string): number | undefined => kept.find(one => one.id === id && one.name === what)?.fd
      const shared = named('', 'shared')
      if (shared !== undefined && former.shared === null) former.shared = get(shared, sharedRecord)
      for (const one of [...cells, ...ended]) {
        const record = named(one.id, 'record')
        const progress = named(one.id, 'progress')
        if (record === undefined || progress === undefined) continue
        const live = 'pidfd' in one
        const [link, answers] = [named(one.id, 'relay'), named(one.id, 'answers')]
        former.cells.push({
          record: get(record, cellRecord), progress: get(progress, cellProgress), spawner,
          native: live ? one : null, exit: live ? null : one, relay: link === undefined || answers === undefined ? null : { link, answers }, workspace: named(one.id, 'workspace') ?? null,
        })
      }
      for (const { id, name: what, fd } of kept) {
        if (id === '' && /^(map|link) /.test(what) && !(what in former.kept)) former.kept[what] = fd
        else if (what !== 'relay' && what !== 'answers' && what !== 'workspace') closeSync(fd)
      }
    } catch (error) {
      log.warn({ err: error }, 'a former daemon\'s cells cannot be taken over')
      spawner.close()
    }
  }
  return former
}
