import { createHash } from 'node:crypto'
import { stringify } from 'yaml'
import type { Contract } from './schema.ts'

/** YAML that reads back to the same contract, with nothing left to a default. */
export const writeContract = once((contract: Contract): string => {
  const { apiVersion, kind, metadata, spec } = contract
  return stringify({ apiVersion, kind, metadata, spec }, { lineWidth: 0, aliasDuplicateObjects: false })
})

/** SHA-256, hex, of the contract in canonical JSON: the same for every way of writing it. */
export const contractDigest = once((contract: Contract): string => createHash('sha256').update(canonicalJson(contract)).digest('hex'))

/** Remembers the text for a contract that nobody can change. */
function once(write: (contract: Contract) => string): (contract: Contract) => string {
  const known = new WeakMap<Contract, string>()
  return contract => {
    if (!Object.isFrozen(contract)) return write(contract)
    const text = known.get(contract) ?? write(contract)
    known.set(contract, text)
    return text
  }
}

/** JSON without spaces, keys in order of their UTF-16 code units (RFC 8785); contracts hold no numbers but whole ones. */
function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const entries = Object.entries(value).filter(([, item]) => item !== undefined).sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${canonicalJson(item)}`).join(',')}}`
}
