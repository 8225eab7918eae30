import type { Socket } from 'node:net'
import { constants } from 'node:os'
import { getSystemErrorName } from 'node:util'
import { native, type NativeRelay, type RelayCulprit } from '../native.ts'
import type { Answer } from './http-guard.ts'

export type FlowEnd = {
  bytesOut: number
  bytesIn: number
  brokenBy: 'client' | 'server' | null
  /** ECONNRESET and the like; null unless somebody broke it off, or it could not be carried. */
  code: string | null
}

/** One connection, carried natively: from server to client at once, from client to server once it is let. */
export type Flow = {
  /** Carries the client's bytes natively from here on, after these. The sockets may then be destroyed, which closes nothing. */
  send(first: Buffer): void
  /** The client's bytes were written to the server's socket by the caller, and are over; `error`: the server broke it off. */
  sent(error: { errno?: number } | null): void
  /** Lets the caller hear the server. `before`: bytes that came before that. */
  watch(): Promise<{ before: number; answer: Answer }>
  /** Resets both sides, unless it has ended. */
  cut(): void
  ended: Promise<FlowEnd>
}

export type Carrier = {
  /** Both connected, and nothing read of the server. Throws if it cannot be taken on. */
  carry(client: Socket, server: Socket): Flow
  /** Idempotent. Flows that have not ended are not told any more. */
  close(): void
}

type Handlers = { ended(end: FlowEnd): void; heard(bytesIn: number, bytes: Buffer | null): void }

/** The one thread of the process that carries, from its first user to its last. */
let shared: { relay: NativeRelay; flows: Map<number, Handlers>; users: number } | undefined
let groups = 0

function share(): NonNullable<typeof shared> {
  if (shared === undefined) {
    const flows = new Map<number, Handlers>()
    const relay = new (native().Relay)((flow, bytesOut, bytesIn, culprit, errno) => {
      const handlers = flows.get(flow)
      flows.delete(flow)
      handlers?.ended({ bytesOut, bytesIn, brokenBy: broken(culprit), code: errno === 0 ? null : getSystemErrorName(-errno) })
    }, (flow, bytesIn, bytes) => flows.get(flow)?.heard(bytesIn, bytes))
    shared = { relay, flows, users: 0 }
  }
  return shared
}

function broken(culprit: RelayCulprit): 'client' | 'server' | null {
  return culprit === 'cut' ? null : culprit
}

/** For one cell: cells share the thread, and each has a fair part of what it can hold. Throws if the thread cannot be started. */
export function openCarrier(): Carrier {
  const { relay, flows } = share()
  shared!.users += 1
  const group = groups++
  let closed = false
  return {
    carry(client, server) {
      const flow = relay.open(descriptorOf(client), descriptorOf(server), group)
      const handlers: Handlers = { ended: () => {}, heard: () => {} }
      flows.set(flow, handlers)
      /** Whoever still holds a flow after its end, or its carrier's, asks in vain and does no harm. */
      const ask = (what: (relay: NativeRelay) => void): void => { if (flows.has(flow)) what(relay) }
      return {
        send: first => ask(relay => { relay.send(flow, first) }),
        sent: error => ask(relay => { relay.sent(flow, error === null ? 0 : Math.abs(error.errno ?? constants.errno.ECONNRESET)) }),
        watch: () => new Promise(resolve => {
          const parts: (Buffer | null)[] = []
          let listener = (bytes: Buffer | null): void => void parts.push(bytes)
          const answer: Answer = {
            hear: heard => {
              listener = heard
              for (const part of parts) heard(part)
            },
            enough: () => ask(relay => { relay.unwatch(flow) }),
          }
          handlers.heard = before => {
            handlers.heard = (_, bytes) => { listener(bytes) }
            resolve({ before, answer })
          }
          ask(relay => { relay.watch(flow) })
        }),
        cut: () => ask(relay => { relay.cut(flow) }),
        ended: new Promise(resolve => { handlers.ended = resolve }),
      }
    },
    close() {
      if (closed) return
      closed = true
      shared!.users -= 1
      if (shared!.users > 0) return
      relay.close()
      flows.clear()
      shared = undefined
    },
  }
}

/** Node offers no public way to the descriptor of a connected socket; its handle has had this one since 0.11. */
function descriptorOf(socket: Socket): number {
  const fd = (socket as Socket & { _handle?: { fd?: number } | null })._handle?.fd
  if (fd === undefined || fd < 0) throw new Error('its socket is closed')
  return fd
}
