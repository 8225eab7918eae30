import { AmbitError } from '../errors.ts'

/** Host id ranges for cells, one each. Only root may take them all. */
export type Slots = { take(uid: number): number; give(slot: number): void }

/** `count`: how many there are; a user who is not root gets a quarter of them at the most. */
export function openSlots(count: number): Slots {
  const holders = new Map<number, number>()
  const share = Math.floor(count / 4)
  return {
    take(uid) {
      const held = [...holders.values()].filter(holder => holder === uid).length
      const slot = [...Array(count).keys()].find(one => !holders.has(one))
      if (slot === undefined || (uid !== 0 && held >= share)) {
        throw new AmbitError('CELL_FAILED', { attempted: 'build the cell', why: slot === undefined ? `${count} cells are running already` : `you have ${held} cells running already`, remedy: 'try again later' })
      }
      holders.set(slot, uid)
      return slot
    },
    give: slot => { holders.delete(slot) },
  }
}
