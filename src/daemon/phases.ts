/** Where the time of one launch goes, for the daemon's log. */
export type Phases = {
  /** The phase before this ends. */
  mark(name: string): void
  /** Microseconds of each, in their order. */
  told(): Record<string, number>
}

export function phases(): Phases {
  let last = performance.now()
  const told: Record<string, number> = {}
  return {
    mark(name) {
      const now = performance.now()
      told[name] = Math.round((now - last) * 1000)
      last = now
    },
    told: () => told,
  }
}
