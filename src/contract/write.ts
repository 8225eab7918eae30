import { createHash } from 'node:crypto'
import { stringify } from 'yaml'
import type { Contract } from './schema.ts'

/** YAML that reads back to the same contract, with nothing left to a default. */
export function writeContract(contract: Contract): string {
  const { apiVersion, kind, metadata, spec } = contract
  return stringify({ apiVersion, kind, metadata, spec }, { lineWidth: 0, aliasDuplicateObjects: false })
}

/** SHA-256, hex, of the contract in canonical JSON: the same for every way of writing it. */
export function contractDigest(contract: Contract): string {
  return createHash('sha256').update(canonicalJson(contract)).digest('hex')
}

/** JSON without spaces, keys in order of their UTF-16 code units (RFC 8785); contracts hold no numbers but whole ones. */
function canonicalJson(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const entries = Object.entries(value).filter(([, item]) => item !== undefined).sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${canonicalJson(item)}`).join(',')}}`
}
