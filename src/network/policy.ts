import { blockHolds, parseBlock, type Address, type Block } from '../authority/addresses.ts'
import type { HostGrant } from '../authority/destination.ts'
import { barOf, ownAddresses } from './addresses.ts'

export type Policy = {
  /** Why any public destination may be reached at this port, as a clause; null if only declared ones may. */
  open(port: number): string | null
  /** The name is declared at this port; null: at any. */
  name(name: string, port: number | null): boolean
  /** What a name is declared by where that is only "*.NAME"; null: it is declared itself, or any name is, or it is not declared. */
  wildcard(name: string): string | null
  /** Clients may hide the name that they mean behind this one, at this port. */
  hiddenName(name: string, port: number): boolean
  /** What is there is declared as a proxy, by its name or its address. */
  proxy(of: string | Address, port: number): boolean
  /** The address is declared, as itself or in a block. */
  address(address: Address, port: number | null): boolean
  /** Why the address is out of bounds for a cell whatever its name is; null if it is not, or the contract names it. */
  barred(address: Address, port: number | null): string | null
}

/** Lower case without the root's dot: how names are compared. */
export function canonicalName(name: string): string {
  return name.toLowerCase().replace(/\.$/, '')
}

/** `*.example.com` stands for every name below example.com, at any depth, and not for example.com itself. */
export function nameMatches(pattern: string, name: string): boolean {
  return pattern === '*' || pattern === name || (pattern.startsWith('*.') && name.length > pattern.length - 1 && name.endsWith(pattern.slice(1)))
}

/**
 * A block opens a range that is barred (private, link-local, metadata, the host itself) only if it is no wider than that range:
 * 10.0.0.0/8 names the private network, 0.0.0.0/0 does not, and the metadata service must be named by its very address.
 */
export function policyOf(grants: readonly HostGrant[], mode: 'observe' | 'enforce', own: () => ReadonlySet<string> = ownAddresses): Policy {
  const names: { pattern: string; port: number | '*'; hidden: boolean; proxy: boolean }[] = []
  const blocks: { block: Block; port: number | '*'; proxy: boolean }[] = []
  for (const { host, port, encryptedClientHello, proxy = false } of grants) {
    const block = parseBlock(host)
    if (block === null) names.push({ pattern: canonicalName(host), port, hidden: encryptedClientHello === true, proxy })
    else blocks.push({ block, port, proxy })
  }
  const at = (granted: number | '*', port: number | null): boolean => granted === '*' || port === null || granted === port
  return {
    open: port => (names.some(grant => grant.pattern === '*' && at(grant.port, port)) ? 'any destination is declared' : mode === 'observe' ? 'not declared, only observed' : null),
    name: (name, port) => names.some(grant => at(grant.port, port) && nameMatches(grant.pattern, name)),
    wildcard(name) {
      const by = names.filter(grant => nameMatches(grant.pattern, name)).map(grant => grant.pattern)
      return by.some(pattern => pattern === name || pattern === '*') ? null : by[0] ?? null
    },
    hiddenName: (name, port) => names.some(grant => grant.hidden && at(grant.port, port) && nameMatches(grant.pattern, name)),
    proxy: (of, port) => (typeof of === 'string'
      ? names.some(grant => grant.proxy && at(grant.port, port) && nameMatches(grant.pattern, of))
      : blocks.some(grant => grant.proxy && at(grant.port, port) && blockHolds(grant.block, of))),
    address: (address, port) => blocks.some(grant => at(grant.port, port) && blockHolds(grant.block, address)),
    barred(address, port) {
      const bar = barOf(address, own())
      if (bar === null) return null
      const named = blocks.some(grant => at(grant.port, port) && grant.block.bits >= bar.bits && blockHolds(grant.block, address))
      return named ? null : `${address.toString()} is ${bar.why}, which a contract must name`
    },
  }
}
