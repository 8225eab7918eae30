import { parseAddress, type Address } from '../authority/addresses.ts'
import type { DatagramEnd, NativeDatagrams } from '../native.ts'
import { native } from '../native.ts'
import type { Journal } from './journal.ts'
import type { Names } from './names.ts'
import type { Policy } from './policy.ts'
import { ruleOnAddress, type Route } from './relay.ts'

/** As long as RFC 4787 wants a mapping to be kept at least. */
const IDLE_MS = 120_000
/** Of one cell at once; each takes two descriptors of the daemon. */
const FLOWS = 256
const QUIC_PORT = 443

export type DatagramPolicies = {
  /** By the contract's grants over UDP. */
  policy: Policy
  /** The same grants as enforced, whatever the mode. */
  declared: Policy
  names: Names
}

/**
 * Rules on a pair of client and destination by the address that the datagrams are sent to. Names come from the cell's resolver,
 * as for TCP, and nothing in a datagram can confirm one. QUIC is refused where UDP 443 is not declared, in both modes: it hides the names that TCP
 * shows, and its clients fall back to TCP at once.
 */
export function ruleOnDatagram({ policy, declared, names }: DatagramPolicies, address: Address, port: number): Route {
  const route = ruleOnAddress({ policy, names }, address, port)
  const quic = port === QUIC_PORT && ruleOnAddress({ policy: declared, names }, address, port).decision === 'refused'
  if (quic && (route.decision === 'allowed' || policy.barred(address, port) === null)) {
    return { ...route, decision: 'refused', reason: 'QUIC (UDP 443) is not declared: it would hide which name is meant, and clients fall back to TCP' }
  }
  if (route.decision === 'refused') return { ...route, reason: `${route.reason} over UDP` }
  if (route.byAddress || route.candidates.length < 2) return route
  return { ...route, reason: `${route.reason}; no name can be confirmed in a datagram, and the address was given for ${route.candidates.length} names: ${route.candidates.slice(0, 3).join(', ')}` }
}

type CellFlows = { flow(number: number, address: string, port: number): void; end(number: number, end: DatagramEnd): void; removed(unheard: number): void }
type Service = { native: NativeDatagrams; cells: Map<number, CellFlows> }
let shared: Service | undefined

/** One for all cells of this process, begun with the first. */
function service(): Service {
  if (shared !== undefined) return shared
  const cells = new Map<number, CellFlows>()
  const { Datagrams } = native()
  return shared = {
    cells,
    native: new Datagrams(IDLE_MS, FLOWS,
      (cell, flow, address, port) => cells.get(cell)?.flow(flow, address, port),
      (cell, flow, end) => cells.get(cell)?.end(flow, end),
      (cell, unheard) => cells.get(cell)?.removed(unheard)),
  }
}

export type DatagramRelayOptions = DatagramPolicies & {
  /** The cell's network namespace, and the map that lets answers through in it; both stay the caller's. */
  netns: number
  answers: number
  /** Sockets in it that get every datagram; -1: there is none. Owned from the call on. */
  udp4: number
  udp6: number
  journal: Journal
  /** Numbers of flows, in one sequence with those of connections. */
  nextNumber(): number
}

/** Takes every datagram of one cell. `close` resolves when every flow is told. Throws what the addon throws; the sockets are then the caller's. */
export function openDatagramRelay(options: DatagramRelayOptions): { close(): Promise<void> } {
  const { journal } = options
  const { native: relay, cells } = service()
  const open = new Map<number, { route: Route; address: string; port: number; began: number; number: number }>()
  const cell = relay.add(options.netns, options.udp4, options.udp6, options.answers)
  let removed = (): void => {}
  const gone = new Promise<void>(resolve => { removed = resolve })
  cells.set(cell, {
    flow(flow, text, port) {
      const address = parseAddress(text)!
      const route = ruleOnDatagram(options, address, port)
      open.set(flow, { route, address: address.toString(), port, began: performance.now(), number: options.nextNumber() })
      relay.rule(flow, route.decision === 'allowed' ? route.target : null, port)
    },
    end(flow, { bytesOut, bytesIn, why, errno }) {
      const { route, address, port, began, number } = open.get(flow)!
      open.delete(flow)
      const note = why === '' ? '' : `; ${why}${errno === 0 ? '' : ` (errno ${errno})`}`
      journal.flow({
        type: 'flow', flow: number, name: route.name, nameSource: route.nameSource, address, port, protocol: 'udp',
        decision: route.decision, reason: route.reason + note, bytesOut, bytesIn, durationMs: performance.now() - began,
      })
    },
    removed(unheard) {
      cells.delete(cell)
      journal.unheard(unheard)
      removed()
    },
  })
  return {
    close() {
      relay.remove(cell)
      return gone
    },
  }
}
