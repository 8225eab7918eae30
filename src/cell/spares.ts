import { randomBytes } from 'node:crypto'
import type { CellLimits } from './cgroup.ts'
import { reserveCell, type CellHost, type Reserved } from './reserve.ts'
import type { Slots } from './slots.ts'

/**
 * Cells made ahead: what takes no contract takes more than half of a launch. A spare holds a slot of root's and is of no
 * user; nothing runs in it but its process 1.
 */
export type Spares = {
  /** A cell for this user, made ahead if there is one. Throws CELL_FAILED where the user has too many. */
  take(uid: number, limits: CellLimits): Promise<Reserved>
  /** Gives back a cell's slot once nothing of it is left. */
  give(slot: number): void
  /** Makes up for what was taken, `afterMs` from now. */
  refill(afterMs: number): void
  /** How many wait. */
  waiting(): number
  close(): Promise<void>
}

/** `most`: how many wait at one time; 0: none is made ahead. `failed`: a spare could not be made, or ended by itself. */
export function openSpares(host: CellHost, slots: Slots, most: number, failed: (error: unknown) => void): Spares {
  const waiting: Reserved[] = []
  let making: Promise<void> | null = null
  /** Of cells that somebody waits for: a spare would hold them up. */
  let asked = 0
  let timer: NodeJS.Timeout | null = null
  let closed = false

  const make = async (uid: number, limits: CellLimits | null): Promise<Reserved> => {
    const slot = slots.take(uid)
    try {
      return await reserveCell(host, `c${randomBytes(6).toString('hex')}`, slot, limits)
    } catch (error) {
      slots.give(slot)
      throw error
    }
  }
  const drop = async (spare: Reserved): Promise<void> => {
    await spare.release()
    slots.give(spare.slot)
  }
  const fill = async (): Promise<void> => {
    while (!closed && asked === 0 && waiting.length < most) {
      const spare = await make(0, null)
      waiting.push(spare)
      void spare.exit.then(async () => {
        const at = waiting.indexOf(spare)
        if (at < 0) return
        waiting.splice(at, 1)
        failed(new Error(`the spare cell ${spare.id} ended by itself`))
        await drop(spare)
      })
    }
  }
  const refill = (): void => {
    timer = null
    if (closed || making !== null) return
    making = fill().catch(failed).finally(() => { making = null })
  }

  return {
    async take(uid, limits) {
      const spare = waiting[0]
      // On v1 these are groups of their own, which a process enters while it is made.
      if (spare !== undefined && limits.cpus === undefined && limits.io === undefined) {
        slots.move(spare.slot, uid)
        host.cgroups.setLimits(spare.id, limits)
        waiting.shift()
        return spare
      }
      asked++
      try {
        return await make(uid, limits)
      } finally {
        asked--
      }
    },
    give: slot => slots.give(slot),
    refill(afterMs) {
      if (timer !== null) clearTimeout(timer)
      timer = setTimeout(refill, afterMs)
    },
    waiting: () => waiting.length,
    async close() {
      closed = true
      if (timer !== null) clearTimeout(timer)
      await making
      for (const spare of waiting.splice(0)) await drop(spare)
    },
  }
}
