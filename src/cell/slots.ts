import { AmbitError } from '../errors.ts'

/** Host id ranges for cells, one each. Only root may take them all. */
export type Slots = {
  take(uid: number): number
  /** Hands a slot that was taken over to another user; throws, and leaves it, where that one has too many. */
  move(slot: number, uid: number): void
  give(slot: number): void
}

/** `count`: how many there are; a user who is not root gets a quarter of them at the most. */
export function openSlots(count: number): Slots {
  const holders = new Map<number, number>()
  const share = Math.floor(count / 4)
  const refuse = (why: string): AmbitError => new AmbitError('CELL_FAILED', { attempted: 'build the cell', why, remedy: 'try again later' })
  const hold = (slot: number, uid: number): void => {
    const held = [...holders.values()].filter(holder => holder === uid).length
    if (uid !== 0 && held >= share) throw refuse(`you have ${held} cells running already`)
    holders.set(slot, uid)
  }
  return {
    take(uid) {
      const slot = [...Array(count).keys()].find(one => !holders.has(one))
      if (slot === undefined) throw refuse(`${count} cells are running already`)
      hold(slot, uid)
      return slot
    },
    move: hold,
    give: slot => { holders.delete(slot) },
  }
}
