import { networkInterfaces } from 'node:os'
import ipaddr from 'ipaddr.js'
import { blockHolds, parseAddress, parseBlock, type Address, type Block } from '../authority/addresses.ts'

export type Bar = {
  /** What the address is, as a clause: "private (RFC 1918)". */
  why: string
  /** How narrow a declared block must be to mean this address: no wider than the range that bars it. */
  bits: number
}

const table = (rows: [string, string][]): (Block & { why: string })[] => rows.map(([cidr, why]) => ({ ...parseBlock(cidr)!, why }))

/** IANA's special-purpose registry (RFC 6890 and its updates), and the metadata services of clouds. The narrowest match counts. */
const BARRED4 = table([
  ['0.0.0.0/8', 'this network (RFC 1122)'],
  ['10.0.0.0/8', 'private (RFC 1918)'],
  ['172.16.0.0/12', 'private (RFC 1918)'],
  ['192.168.0.0/16', 'private (RFC 1918)'],
  ['100.64.0.0/10', 'shared carrier space (RFC 6598)'],
  ['127.0.0.0/8', 'loopback'],
  ['169.254.0.0/16', 'link-local (RFC 3927)'],
  ['192.0.0.0/24', 'set aside for protocols (RFC 6890)'],
  ['192.0.2.0/24', 'documentation (RFC 5737)'],
  ['192.31.196.0/24', 'AS112 (RFC 7535)'],
  ['192.52.193.0/24', 'AMT (RFC 7450)'],
  ['192.88.99.0/24', '6to4 relay (RFC 7526)'],
  ['192.175.48.0/24', 'AS112 (RFC 7534)'],
  ['198.18.0.0/15', 'benchmarking (RFC 2544), in a cell the resolver\'s own'],
  ['198.51.100.0/24', 'documentation (RFC 5737)'],
  ['203.0.113.0/24', 'documentation (RFC 5737)'],
  ['224.0.0.0/4', 'multicast'],
  ['240.0.0.0/4', 'reserved (RFC 1112)'],
  ['255.255.255.255/32', 'broadcast'],
  ['169.254.169.254/32', 'a cloud\'s metadata service'],
  ['169.254.170.2/32', 'a cloud\'s container credentials'],
  ['168.63.129.16/32', 'a cloud\'s metadata service (Azure)'],
  ['100.100.100.200/32', 'a cloud\'s metadata service (Alibaba)'],
  ['192.0.0.192/32', 'a cloud\'s metadata service (Oracle)'],
])

const BARRED6 = table([
  ['::/96', 'IPv4-compatible (RFC 4291)'],
  ['::/128', 'unspecified'],
  ['::1/128', 'loopback'],
  ['::ffff:0:0:0/96', 'IPv4-translated (RFC 2765)'],
  ['64:ff9b:1::/48', 'local NAT64 (RFC 8215)'],
  ['100::/64', 'discard (RFC 6666)'],
  ['2001::/23', 'set aside for protocols, Teredo among them (RFC 2928)'],
  ['2001:db8::/32', 'documentation (RFC 3849)'],
  ['2002::/16', '6to4 (RFC 7526)'],
  ['2620:4f:8000::/48', 'AS112 (RFC 7534)'],
  ['3fff::/20', 'documentation (RFC 9637)'],
  ['fc00::/7', 'private (RFC 4193)'],
  ['fe80::/10', 'link-local'],
  ['fec0::/10', 'site-local (RFC 3879)'],
  ['ff00::/8', 'multicast'],
  ['fd00:ec2::254/128', 'a cloud\'s metadata service (AWS)'],
  ['fd20:ce::254/128', 'a cloud\'s metadata service (Google)'],
])
const GLOBAL6 = parseBlock('2000::/3')!

/** Where an IPv6 address carries the IPv4 address that its packets reach: RFC 6052, 3056, 4291, 2765. */
const EMBEDDING: (Block & { at: number; name: string })[] = [
  { ...parseBlock('64:ff9b::/96')!, at: 12, name: 'NAT64' },
  { ...parseBlock('2002::/16')!, at: 2, name: '6to4' },
  { ...parseBlock('::/96')!, at: 12, name: 'IPv4-compatible' },
  { ...parseBlock('::ffff:0:0:0/96')!, at: 12, name: 'IPv4-translated' },
]

/**
 * Why a cell may not reach this address unless its contract names it; null for a public one. `own` are the host's own addresses.
 */
export function barOf(address: Address, own: ReadonlySet<string>): Bar | null {
  const v4 = address.kind() === 'ipv4'
  let bar: Bar | null = null
  const consider = (why: string, bits: number): void => {
    if (bar === null || bits > bar.bits) bar = { why, bits }
  }
  if (!v4 && !blockHolds(GLOBAL6, address) && !blockHolds(EMBEDDING[0]!, address)) consider('not global unicast (RFC 4291)', 0)
  for (const row of v4 ? BARRED4 : BARRED6) if (blockHolds(row, address)) consider(row.why, row.bits)
  for (const form of v4 ? [] : EMBEDDING) {
    if (!blockHolds(form, address)) continue
    const inner = barOf(new ipaddr.IPv4(address.toByteArray().slice(form.at, form.at + 4)), own)
    if (inner !== null) consider(`the ${form.name} form of one that is ${inner.why}`, form.at * 8 + inner.bits)
  }
  if (own.has(address.toString())) consider('one of this host\'s own addresses', v4 ? 32 : 128)
  return bar
}

/** What `ownAddresses` saw stays good for this long; an interface that comes up later is seen then. */
const OWN_FOR_MS = 1000
let seen: { at: number; addresses: ReadonlySet<string> } | undefined

/** Every address of every interface of the host, normalised. */
export function ownAddresses(): ReadonlySet<string> {
  if (seen === undefined || performance.now() - seen.at > OWN_FOR_MS) {
    const all = Object.values(networkInterfaces()).flatMap(list => list ?? []).map(one => parseAddress(one.address)?.toString())
    seen = { at: performance.now(), addresses: new Set(all.filter(one => one !== undefined)) }
  }
  return seen.addresses
}
