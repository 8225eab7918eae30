import { createSocket, type Socket as Datagrams } from 'node:dgram'
import { closeSync, fstatSync } from 'node:fs'
import { createServer, type Server } from 'node:net'
import { AmbitError } from '../errors.ts'
import type { EvidenceBody, HookReport } from '../evidence/records.ts'
import { isHostGrant, protocolOf, type Grant, type HostGrant, type Protocol } from '../authority/destination.ts'
import { parseAddress } from '../authority/addresses.ts'
import { serveDatagrams, serveDnsConnections } from './dns-server.ts'
import { openDatagramRelay } from './datagrams.ts'
import { openJournal } from './journal.ts'
import { cellNames } from './names.ts'
import { policyOf } from './policy.ts'
import { openRelay } from './relay.ts'
import { cellResolver } from './resolver.ts'
import { hostUpstream } from './upstream.ts'

export type EgressSockets = { relay4: number; relay6: number; dnsUdp4: number; dnsUdp6: number; dnsTcp4: number; dnsTcp6: number; udp4: number; udp6: number }

export type EgressOptions = {
  /** The cell's network namespace, and the map that lets answers to datagrams through in it; both stay the caller's. */
  netns: number
  answers: number
  /** Descriptors of sockets in it, the TCP ones listening; those for datagrams may be missing (-1). Owned, and closed, from the call on, even if it throws. */
  sockets: EgressSockets
  grants: readonly Grant[]
  /** Names with a fixed address, which may be loopback or private: it is named by being here. Does not declare the name. */
  hosts: Readonly<Record<string, string>>
  mode: 'observe' | 'enforce'
  emit(body: EvidenceBody): void
  /** What a former daemon's resolver answered in this cell: connections to those addresses are still meant for those names. */
  answered?: readonly { name: string; addresses: readonly string[] }[]
}

export type Egress = {
  /** What the evidence of the families `network` and `dns` rests on. */
  hooks(): HookReport[]
  /** Cuts what is open, tells it and closes every socket. Nothing is emitted after it has resolved. Idempotent. */
  close(): Promise<void>
}

/**
 * A cell's only way out: a relay for TCP and a resolver, serving sockets that live in the cell's network namespace from outside.
 * In `observe` any public destination is reached; private, link-local, metadata and the host's own addresses are refused in both
 * modes unless the contract names them.
 */
export async function openEgress({ netns, answers, sockets, grants, hosts, mode, emit, answered }: EgressOptions): Promise<Egress> {
  const { relay4, relay6, dnsUdp4, dnsUdp6, dnsTcp4, dnsTcp6, udp4, udp6 } = sockets
  // A host without IPv6 has none of its sockets (-1).
  const there = (fds: number[]): number[] => fds.filter(fd => fd >= 0)
  const descriptors = new Set(there([relay4, relay6, dnsUdp4, dnsUdp6, dnsTcp4, dnsTcp6, udp4, udp6]))
  const adopted: (Server | Datagrams)[] = []
  const take = <Held extends Server | Datagrams>(fd: number, held: Held): Held => {
    descriptors.delete(fd)
    adopted.push(held)
    return held
  }
  const hostGrants = grants.filter(isHostGrant)
  const over = (protocol: Protocol): HostGrant[] => hostGrants.filter(grant => protocolOf(grant) === protocol)
  const policy = policyOf(over('tcp'), mode)
  const names = cellNames(hosts)
  for (const { name, addresses } of answered ?? []) names.give(name, addresses.map(parseAddress).filter(address => address !== null))
  const upstream = hostUpstream()
  const journal = openJournal(emit)
  let flows = 0
  const relay = openRelay({ policy, names, journal, nextNumber: () => flows++ })
  const resolver = cellResolver({ policy: policyOf(hostGrants, mode), names, upstream, journal, mode })
  let datagrams: { close(): Promise<void> } | undefined
  const dnsConnections: { close(): void }[] = []
  const closeSockets = async (): Promise<void> => {
    upstream.close()
    await datagrams?.close()
    await Promise.all(adopted.map(held => new Promise<void>(resolve => { held.close(() => resolve()) })))
  }
  try {
    for (const [name, target] of Object.entries(hosts)) {
      if (parseAddress(target) === null) throw new AmbitError('CONTRACT_INVALID', { attempted: `map ${name} to a fixed address`, why: `"${target}" is not an address`, remedy: 'give an IPv4 or IPv6 address in `hosts`' })
    }
    // An adopted number that is not a socket would be another part's file.
    for (const fd of descriptors) if (!fstatSync(fd).isSocket()) throw new Error(`descriptor ${fd} is not a socket`)
    for (const fd of there([relay4, relay6])) relay.serve(take(fd, await listen(fd)))
    for (const fd of there([dnsTcp4, dnsTcp6])) dnsConnections.push(serveDnsConnections(take(fd, await listen(fd)), resolver))
    for (const [fd, family] of [[dnsUdp4, 'udp4'], [dnsUdp6, 'udp6']] as const) if (fd >= 0) serveDatagrams(take(fd, await bind(fd, family)), resolver)
    if (udp4 >= 0 || udp6 >= 0) {
      datagrams = openDatagramRelay({ netns, answers, udp4, udp6, names, journal, policy: policyOf(over('udp'), mode), declared: policyOf(over('udp'), 'enforce'), nextNumber: () => flows++ })
      for (const fd of [udp4, udp6]) descriptors.delete(fd)
    }
  } catch (cause) {
    for (const fd of descriptors) try { closeSync(fd) } catch { /* the one that was not open */ }
    await closeSockets()
    if (cause instanceof AmbitError) throw cause
    throw new AmbitError('CELL_FAILED', { attempted: 'serve the cell\'s network', why: (cause as Error).message, remedy: 'a defect in ambit, or a daemon out of descriptors: see its limits (`ulimit -n`)', cause })
  }
  for (const held of adopted) {
    held.on('error', error => emit({ type: 'coverage', enforcers: [], hooks: [{ name: 'egress socket', family: 'network', state: 'missing', detail: error.message }] }))
  }

  let closing: Promise<void> | undefined
  return {
    hooks: () => [
      { name: 'relay', family: 'network', state: 'attached' },
      ...(datagrams === undefined ? [] : [{ name: 'relay of datagrams', family: 'network', state: 'attached' } as const]),
      { name: 'resolver', family: 'dns', state: 'attached' },
    ],
    close: () => closing ??= (async () => {
      const told = relay.close()
      for (const one of dnsConnections) one.close()
      await Promise.all([told, closeSockets()])
      journal.close()
    })(),
  }
}

function listen(fd: number): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer({ allowHalfOpen: true })
    server.once('error', reject)
    server.listen({ fd }, () => resolve(server.off('error', reject)))
  })
}

function bind(fd: number, type: 'udp4' | 'udp6'): Promise<Datagrams> {
  return new Promise((resolve, reject) => {
    const socket = createSocket(type)
    socket.once('error', reject)
    socket.bind({ fd }, () => resolve(socket.off('error', reject)))
  })
}
