import { AmbitError } from './errors.ts'

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Runs `work`; a signal that asks for the end ends the wait for it, so that the caller tidies up as after any failure. */
export async function untilInterrupted<T>(attempted: string, work: Promise<T>): Promise<T> {
  let stop: ((signal: NodeJS.Signals) => void) | undefined
  const interrupted = new Promise<never>((_, reject) => {
    stop = signal => reject(new AmbitError('INTERRUPTED', { attempted, why: `${signal} came`, remedy: 'what was running has been ended; start it again' }))
  })
  for (const signal of SIGNALS) process.on(signal, stop!)
  try {
    return await Promise.race([work, interrupted])
  } finally {
    for (const signal of SIGNALS) process.off(signal, stop!)
  }
}
