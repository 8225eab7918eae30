import ipaddr from 'ipaddr.js'
import { z } from 'zod'
import { blockHolds, parseAddress, parseBlock } from './addresses.ts'

/** Lower case, without the root's dot: how names are compared. */
export function canonicalName(name: string): string {
  return name.toLowerCase().replace(/\.$/, '')
}

/** RFC 1123 labels, and underscores, which many names in use have. What ends in a number is an old spelling of an address (WHATWG URL). */
export function isName(name: string): boolean {
  return name.length <= 253 && !/(^|\.)(\d+|0x[0-9a-f]*)$/.test(name) && name.split('.').every(label => /^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$/.test(label))
}

/** One form for each address: lower case, shortest. Null: no address. */
export function canonicalAddress(text: string): string | null {
  return parseAddress(text)?.toString() ?? null
}

function canonicalHost(text: string): string | null {
  if (text === '*') return text
  const block = parseBlock(text.startsWith('[') && text.endsWith(']') ? text.slice(1, -1) : text)
  if (block !== null) {
    const network = block.base.kind() === 'ipv4' ? ipaddr.IPv4.networkAddressFromCIDR(`${block.base.toString()}/${block.bits}`) : ipaddr.IPv6.networkAddressFromCIDR(`${block.base.toString()}/${block.bits}`)
    // A base with bits beyond the mask is more often a slip than a wish.
    if (network.toString() !== block.base.toString()) return null
    return text.includes('/') ? `${block.base.toString()}/${block.bits}` : block.base.toString()
  }
  const name = canonicalName(text)
  return isName(name.startsWith('*.') ? name.slice(2) : name) ? name : null
}

export const host = z.string().transform((text, context) => {
  const canonical = canonicalHost(text)
  if (canonical === null) {
    context.addIssue({ code: 'custom', message: 'must be a host name, "*.NAME" (every name below it), an IP address, a CIDR block without bits beyond its mask, or "*"', input: text })
    return z.NEVER
  }
  return canonical
})

export const port = z.union([z.literal('*'), z.number().int().min(1).max(65535)], { error: 'must be a port from 1 to 65535, or "*"' })

/** A destination by name or address; `protocol` absent: TCP. */
export type HostGrant = {
  host: string
  port: number | '*'
  protocol?: 'udp' | undefined
  /** The connection may hide the name that it means behind the one that it shows (RFC 9849): the shown one is held to the grant. */
  encryptedClientHello?: true | undefined
  /** It is a proxy: it may be asked for other servers, of which each is held to the contract in its turn. */
  proxy?: true | undefined
}
/** A Unix socket of the host, by its path. */
export type SocketGrant = { unix: string }
export type Grant = HostGrant | SocketGrant
export type Protocol = 'tcp' | 'udp'
/** Where a connection went, name and address in their canonical forms; null: none was told, or it was none that a grant could hold. */
export type Destination = { name: string | null; address: string | null; port: number; protocol: Protocol; hidden?: boolean; proxy?: boolean }

export function isHostGrant(grant: Grant): grant is HostGrant {
  return 'host' in grant
}

export function protocolOf(grant: HostGrant): Protocol {
  return grant.protocol ?? 'tcp'
}

/** `*.example.com` is every name below example.com, at any depth, and not example.com itself. */
function nameMatches(pattern: string, name: string): boolean {
  return pattern === name || (pattern.startsWith('*.') && name.length >= pattern.length && name.endsWith(pattern.slice(1)))
}

export type Matcher = (destination: Destination) => boolean

/** Whether a grant stands for a destination: the part of the rule that the relay applies to its own view (src/network/policy.ts). */
export function matcherOf(grant: Grant): Matcher {
  if (!isHostGrant(grant)) return () => false
  const protocol = protocolOf(grant)
  const fits = (destination: Destination): boolean => protocol === destination.protocol && (grant.port === '*' || grant.port === destination.port)
    && (destination.hidden !== true || grant.encryptedClientHello === true || grant.host === '*')
    && (destination.proxy !== true || grant.proxy === true || grant.host === '*')
  if (grant.host === '*') return fits
  const block = parseBlock(grant.host)
  if (block === null) return destination => fits(destination) && destination.name !== null && nameMatches(grant.host, destination.name)
  const holds = isBroad(grant)
    ? (text: string | null): boolean => {
        const address = text === null ? null : parseAddress(text)
        return address !== null && blockHolds(block, address)
      }
    : (text: string | null): boolean => text === grant.host
  // What an address is declared for is not asked for its name: nothing is hidden from the grant.
  return destination => fits({ ...destination, hidden: false }) && holds(destination.address)
}

/** Stands for more than one host. */
export function isBroad(grant: Grant): boolean {
  return isHostGrant(grant) && (grant.host.startsWith('*') || grant.host.includes('/'))
}

/** Every destination that `inner` stands for, `outer` stands for too. */
export function grantWithin(inner: Grant, outer: Grant): boolean {
  if (!isHostGrant(inner) || !isHostGrant(outer)) return !isHostGrant(inner) && !isHostGrant(outer) && inner.unix === outer.unix
  if (protocolOf(inner) !== protocolOf(outer)) return false
  if (inner.encryptedClientHello === true && outer.encryptedClientHello !== true && outer.host !== '*') return false
  if (inner.proxy === true && outer.proxy !== true && outer.host !== '*') return false
  if (outer.port !== '*' && outer.port !== inner.port) return false
  if (outer.host === '*' || outer.host === inner.host) return true
  if (inner.host === '*') return false
  const [small, large] = [parseBlock(inner.host), parseBlock(outer.host)]
  if (small !== null || large !== null) return small !== null && large !== null && small.bits >= large.bits && blockHolds(large, small.base)
  return outer.host.startsWith('*.') && (inner.host.startsWith('*.') ? nameMatches(outer.host, inner.host.slice(2)) : nameMatches(outer.host, inner.host))
}

/** "api.example.com:443", "ntp.example.com:123/udp", "unix:/run/x.sock". */
export function grantText(grant: Grant): string {
  if (!isHostGrant(grant)) return `unix:${grant.unix}`
  const { host: where, port: at } = grant
  return `${where.includes(':') ? `[${where}]` : where}:${at}${protocolOf(grant) === 'udp' ? '/udp' : ''}${grant.encryptedClientHello === true ? ' with encrypted ClientHello' : ''}${grant.proxy === true ? ' as a proxy' : ''}`
}

export function isLoopback(address: string): boolean {
  return parseAddress(address)?.range() === 'loopback'
}
