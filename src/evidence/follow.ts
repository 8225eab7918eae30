import { open } from 'node:fs/promises'
import { readLines } from './lines.ts'
import type { EvidenceStore } from './store.ts'

/** How a followed log ended: signed; never signed; taken back with its cell; or shorter than where the reader wanted to begin. */
export type FollowEnd = 'sealed' | 'unsealed' | 'gone' | 'beyond'

/**
 * A cursor on a log on disk, from record `from` to its end, waiting for more while it is written. Nothing is kept in memory for a reader
 * that is slow. Ends early, with `gone`, when `stop` is aborted.
 */
export async function* follow(store: EvidenceStore, id: string, from: number, stop: AbortSignal): AsyncGenerator<string, FollowEnd> {
  let wake: (() => void) | null = null
  let stale = false
  const changed = (): void => {
    stale = true
    wake?.()
  }
  const unwatch = store.watch(which => { if (which === id) changed() })
  stop.addEventListener('abort', changed)
  try {
    const first = store.view(id)
    if (first === null) return 'gone'
    const file = await open(first.file, 'r').catch(() => null)
    if (file === null) return 'gone'
    try {
      let offset = 0
      let seq = 0
      while (!stop.aborted) {
        stale = false
        const view = store.view(id)
        if (view === null) return 'gone'
        for await (const line of readLines(file, offset, view.bytes)) {
          if (!line.complete) break
          offset = line.end
          if (seq++ >= from) yield line.bytes.toString('utf8')
          if (stop.aborted) return 'gone'
        }
        if (view.state !== 'open') return seq < from ? 'beyond' : view.state
        if (!stale) await new Promise<void>(resolve => { wake = resolve })
        wake = null
      }
      return 'gone'
    } finally {
      await file.close()
    }
  } finally {
    unwatch()
    stop.removeEventListener('abort', changed)
  }
}
