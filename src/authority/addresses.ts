import { isIP } from 'node:net'
import ipaddr from 'ipaddr.js'

export type Address = ipaddr.IPv4 | ipaddr.IPv6
export type Block = { base: Address; bits: number }

/** An address as people write it; an IPv4-mapped one is the IPv4 address that the kernel would dial. Null: not an address. */
export function parseAddress(text: string): Address | null {
  const bare = (text.startsWith('[') && text.endsWith(']') ? text.slice(1, -1) : text).replace(/%.*$/, '')
  // ipaddr.js takes "10" and "0x7f.1" for addresses, as inet_aton did; nobody declares those.
  const family = isIP(bare)
  if (family === 0) return null
  // And it takes "::1.2.3.4" (IPv4-compatible) for "::ffff:1.2.3.4" (mapped); in hex it does not.
  return ipaddr.process(family === 4 ? bare : bare.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_, ...bytes: string[]) => {
    const [a, b, c, d] = bytes.map(Number) as [number, number, number, number]
    return `${(a << 8 | b).toString(16)}:${(c << 8 | d).toString(16)}`
  }))
}

/** An address or CIDR block; null: neither. */
export function parseBlock(text: string): Block | null {
  const [head, tail, more] = text.split('/') as [string, string?, string?]
  const base = parseAddress(head)
  if (base === null || more !== undefined) return null
  const width = base.kind() === 'ipv4' ? 32 : 128
  if (tail === undefined) return { base, bits: width }
  // A mapped base has lost 96 bits on its way to IPv4.
  const bits = /^\d{1,3}$/.test(tail) ? Number(tail) - (head.includes(':') && width === 32 ? 96 : 0) : -1
  return bits >= 0 && bits <= width ? { base, bits } : null
}

export function blockHolds({ base, bits }: Block, address: Address): boolean {
  return base.kind() === address.kind() && address.match(base as ipaddr.IPv4 & ipaddr.IPv6, bits)
}
