import { Transform } from 'node:stream'
import { MAX_HEAD_BYTES, readRequests, type Objection, type RequestHead } from './http-requests.ts'

export type GuardOptions = {
  /** Why a request may not go on; null: it may. */
  admit(head: RequestHead): Objection | null
  /** The protocols that a request may leave HTTP for include those that hide their names. */
  hidden: boolean
  /** Told once. `cut`: nothing more goes on. */
  objected(objection: Objection): 'cut' | 'pass'
  /** Where the server's answer to the first request is heard; null: its wish to leave HTTP, if it has one, is not heeded. */
  answer: Answer | null
}

/** What a server sends, beside its way to the client, until it was heard enough. */
export type Answer = {
  /** Null: no more comes. */
  hear(heard: (bytes: Buffer | null) => void): void
  enough(): void
}

/**
 * Stands between a client that speaks HTTP/1 and its server: passes the bytes as they are, each request's head only once it was
 * read whole. What follows a request to leave HTTP waits for the server's answer: a server that ignores the wish goes on
 * reading requests.
 */
export function httpGuard({ admit, hidden, objected, answer }: GuardOptions): Transform {
  const requests = readRequests(head => {
    const objection = admit(head)
    const leave = objection === null && (head.upgrade === 'open' || (head.upgrade === 'hidden' && hidden))
    if (leave && !asked && answer !== null) {
      asked = true
      hearSwitch(answer, left => {
        requests.answered(left)
        waiting?.()
      })
    }
    return { objection, leave: leave && asked }
  })
  let asked = false
  let waiting: (() => void) | undefined

  const guard = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      take(chunk, done)
    },
    flush(done) {
      const objection = requests.ended()
      if (objection === null || objected(objection) === 'pass') {
        requests.letBy()
        take(Buffer.alloc(0), done)
      }
    },
  })
  const take = (bytes: Buffer, done: () => void): void => {
    const { pass, objection } = requests.take(bytes)
    if (pass.length > 0) guard.push(pass)
    if (objection !== null) {
      if (objected(objection) === 'cut') return
      requests.letBy()
      take(Buffer.alloc(0), done)
    } else if (requests.waits()) {
      waiting = () => {
        waiting = undefined
        take(Buffer.alloc(0), done)
      }
    } else done()
  }
  return guard
}

/** Says once whether the server's first final answer is "101 Switching Protocols", read off the bytes that go by. */
function hearSwitch(answer: Answer, tell: (left: boolean) => void): void {
  let text = ''
  let settled = false
  const settle = (left: boolean): void => {
    settled = true
    answer.enough()
    tell(left)
  }
  answer.hear(bytes => {
    if (settled) return
    if (bytes === null) return settle(false)
    text += bytes.toString('latin1', 0, MAX_HEAD_BYTES)
    for (;;) {
      const status = /^HTTP\/1\.1 (\d\d\d)[ \r]/.exec(text)?.[1]
      if (status === '101') return settle(true)
      if (status === undefined ? text.length >= 13 : !status.startsWith('1')) return settle(false)
      // An answer that is not the last one has a head and nothing else (RFC 9110, 15.2).
      const end = text.indexOf('\r\n\r\n')
      if (status === undefined || end < 0) break
      text = text.slice(end + 4)
    }
    if (text.length > MAX_HEAD_BYTES) settle(false)
  })
}
