import ipaddr from 'ipaddr.js'
import { canonicalName } from './policy.ts'
import type { Address } from '../authority/addresses.ts'

/** Bounds what a job can make the daemon remember; the oldest is forgotten first, and then no longer trusted. */
const MAX_ADDRESSES = 8192
const MAX_NAMES_OF_ONE = 64

const SYNTHETIC_BASE = [198, 18, 0, 0] as const
const SYNTHETIC_BITS = 15

/** A name that the contract maps to a fixed address, and the address that stands for it in the cell. */
export type Mapped = { name: string; synthetic: string; target: string }

export type Names = {
  /** The cell's resolver gave these addresses for the name, now. */
  give(name: string, addresses: readonly Address[]): void
  /** Names for which this cell's resolver gave the address, the latest first. */
  of(address: Address): string[]
  mapped(name: string): Mapped | undefined
  mappedAt(address: Address): Mapped | undefined
}

/** The address is from the range that stands for the contract's `hosts`. */
export function isSynthetic(address: Address): boolean {
  return address.kind() === 'ipv4' && (address as ipaddr.IPv4).match(new ipaddr.IPv4([...SYNTHETIC_BASE]), SYNTHETIC_BITS)
}

/**
 * What one cell's resolver has answered. Names in `hosts` get an address each from 198.18.0.0/15, since the mapped one may
 * be loopback, which in the cell is the cell's own.
 */
export function cellNames(hosts: Readonly<Record<string, string>>): Names {
  const given = new Map<string, Set<string>>()
  const mapped = Object.entries(hosts).map(([name, target], index): Mapped => {
    const number = index + 1
    return { name: canonicalName(name), target, synthetic: [198, 18 + (number >> 16), (number >> 8) & 255, number & 255].join('.') }
  })
  const byName = new Map(mapped.map(one => [one.name, one]))
  const bySynthetic = new Map(mapped.map(one => [one.synthetic, one]))
  return {
    give(name, addresses) {
      for (const address of addresses) {
        const key = address.toString()
        const names = given.get(key) ?? new Set<string>()
        given.delete(key)
        given.set(key, names)
        names.delete(name)
        names.add(name)
        if (names.size > MAX_NAMES_OF_ONE) names.delete(names.values().next().value!)
        if (given.size > MAX_ADDRESSES) given.delete(given.keys().next().value!)
      }
    },
    of: address => [...(given.get(address.toString())?? [])].reverse(),
    mapped: name => byName.get(name),
    mappedAt: address => bySynthetic.get(address.toString()),
  }
}
