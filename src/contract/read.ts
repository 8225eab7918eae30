import { readFileSync } from 'node:fs'
import { isAlias, isMap, isNode, isPair, isScalar, LineCounter, parseDocument, visit, type Document, type Node } from 'yaml'
import { z } from 'zod'
import { closest } from '../authority/words.ts'
import { AmbitError } from '../errors.ts'
import { keysAt } from './keys.ts'
import { contractSchema, type Contract } from './schema.ts'

/** As much as one message to the daemon may hold. */
const BYTES_MAX = 256 * 1024

type Place = { line: number; column: number }
type Fault = Place & { why: string; remedy: string; missing?: boolean }

/**
 * Reads a contract from YAML or JSON. `file` is what errors call it. Throws CONTRACT_INVALID with the place of the first
 * fault; nothing of a faulty contract is used.
 */
export function readContract(text: string, file: string): Contract {
  const lines = new LineCounter()
  const placeOf = (offset: number): Place => {
    const { line, col } = lines.linePos(offset)
    return { line: Math.max(line, 1), column: Math.max(col, 1) }
  }
  const refuse = ({ why, remedy, line, column }: Fault): never => {
    throw new AmbitError('CONTRACT_INVALID', { attempted: 'read the contract', why, remedy, where: { file, line, column } })
  }
  const top = { line: 1, column: 1 }
  if (Buffer.byteLength(text) > BYTES_MAX) refuse({ ...top, why: `it is larger than ${BYTES_MAX / 1024} KiB`, remedy: 'a contract names directories, not every file in them' })

  let document: Document.Parsed
  let data: unknown
  try {
    document = parseDocument(text, { lineCounter: lines, prettyErrors: false, stringKeys: true })
    const fault = document.errors[0] ?? document.warnings[0] ?? structureFault(document)
    if (fault !== undefined) {
      const several = 'code' in fault && fault.code === 'MULTIPLE_DOCS'
      refuse({ ...placeOf(fault.pos[0]), why: several ? 'it holds several documents' : /call stack/i.test(fault.message) ? 'it is nested too deeply' : sentence(fault.message), remedy: several ? 'a contract is one document: remove all from "---" on' : 'mend the YAML at that place' })
    }
    data = document.toJS()
  } catch (error) {
    if (error instanceof AmbitError) throw error
    // The parser and the conversion recurse: nesting that no contract has ends in a RangeError.
    return refuse({ ...top, why: error instanceof RangeError ? 'it is nested too deeply' : sentence((error as Error).message), remedy: 'write the contract as plain maps and lists' })
  }
  if (data === null || data === undefined) refuse({ ...top, why: 'it is empty', remedy: 'a contract starts with "apiVersion: ambit/v1" and "kind: Cell"' })

  const parsed = contractSchema.safeParse(data)
  if (parsed.success) return parsed.data as Contract
  const faults = parsed.error.issues.flatMap(issue => faultsOf(issue, document, placeOf))
    // A key is often missing because it is misspelt: the misspelling is told first.
    .sort((a, b) => Number(a.missing ?? false) - Number(b.missing ?? false) || a.line - b.line || a.column - b.column)
  const [first, ...rest] = faults as [Fault, ...Fault[]]
  const more = rest.length === 0 ? '' : `; also ${rest.slice(0, 3).map(fault => `line ${fault.line}: ${fault.why}`).join('; ')}${rest.length > 3 ? `; and ${rest.length - 3} more` : ''}`
  return refuse({ ...first, why: first.why + more })
}

/** Reads a contract file. FILE_UNREADABLE if it cannot be opened, CONTRACT_INVALID if it is not one. */
export function readContractFile(path: string): Contract {
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
  } catch (cause) {
    throw new AmbitError('FILE_UNREADABLE', { attempted: 'read the contract', why: `${path}: ${(cause as NodeJS.ErrnoException).code ?? (cause as Error).message}`, remedy: 'check the path and that you may read it', cause })
  }
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new AmbitError('CONTRACT_INVALID', { attempted: 'read the contract', why: 'it is not UTF-8 text', remedy: 'write the contract as YAML or JSON in UTF-8', where: { file: path, line: 1, column: 1 }, cause })
  }
  return readContract(text, path)
}

/** What YAML has and a contract must not: one part that stands for another makes it other than it looks. */
function structureFault(document: Document.Parsed): { pos: [number, number]; message: string } | undefined {
  let fault: { pos: [number, number]; message: string } | undefined
  visit(document, {
    Node(_, node) {
      const at = node.range?.[0] ?? 0
      if (isAlias(node)) fault = { pos: [at, at], message: `the alias *${node.source} stands for another part: write it out` }
      else if (node.anchor !== undefined) fault = { pos: [at, at], message: `the anchor &${node.anchor} has no use in a contract` }
      else if (node.tag !== undefined && !/^tag:yaml\.org,2002:(map|seq|str|int|float|bool|null)$/.test(node.tag)) fault = { pos: [at, at], message: `the tag ${node.tag} has no meaning in a contract` }
      return fault === undefined ? undefined : visit.BREAK
    },
    Pair(_, pair) {
      const key = isScalar(pair.key) ? pair.key : undefined
      // zod and JavaScript objects both lose this key without a word.
      if (key?.value === '__proto__') fault = { pos: [key.range?.[0] ?? 0, 0], message: 'the key "__proto__" is not known' }
      return fault === undefined ? undefined : visit.BREAK
    },
  })
  return fault
}

function faultsOf(issue: z.core.$ZodIssue, document: Document.Parsed, placeOf: (offset: number) => Place): Fault[] {
  const name = nameOf(issue.path)
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map(key => {
      const known = keysAt(contractSchema, issue.path)
      const near = closest(key, known)
      return {
        ...placeOf(offsetOf(document, [...issue.path, key], true)),
        why: `the key ${JSON.stringify(key)} is not known${issue.path.length === 0 ? '' : ` in ${name}`}`,
        remedy: near === undefined ? `known keys there: ${known.join(', ')}` : `did you mean "${near}"? Known keys there: ${known.join(', ')}`,
      }
    })
  }
  const key = issue.code === 'invalid_key'
  const message = key ? issue.issues[0]?.message ?? issue.message : issue.message
  const missing = document.getIn([...issue.path], true) === undefined
  return [{
    ...placeOf(offsetOf(document, issue.path, key)),
    missing,
    why: missing ? `${name} is missing` : `${name}: ${sentence(message)}`,
    remedy: missing ? `add "${String(issue.path.at(-1))}"; nothing is granted or assumed by omission` : 'change the contract at that place; nothing was run',
  }]
}

function nameOf(path: readonly PropertyKey[]): string {
  return path.length === 0 ? 'the document' : path.map((step, index) => (typeof step === 'number' ? `[${step}]` : `${index === 0 ? '' : '.'}${String(step)}`)).join('')
}

/** Where the node of a path begins (its key, if asked for); of what is not there, where its place would be. */
function offsetOf(document: Document.Parsed, path: readonly PropertyKey[], ofKey: boolean): number {
  let node: unknown = document.contents
  let offset = start(node) ?? 0
  for (const [index, step] of path.entries()) {
    const pair = isMap(node) ? node.items.find(item => isPair(item) && isScalar(item.key) && String(item.key.value) === String(step)) : undefined
    const next = pair === undefined ? (node as { get?: (key: unknown, keep: boolean) => unknown } | null)?.get?.(step, true) : pair.value
    if (pair !== undefined) offset = start(pair.key) ?? offset
    if (next === undefined || next === null) return offset
    if (!(ofKey && index === path.length - 1)) offset = start(next) ?? offset
    node = next
  }
  return offset
}

function start(node: unknown): number | undefined {
  return isNode(node) ? (node as Node).range?.[0] : undefined
}

/** As a clause: the first line, without its full stop, in lower case unless it names something. */
function sentence(message: string): string {
  const line = message.split('\n')[0]!.trim().replace(/[.:]$/, '')
  return /^[A-Z][a-z]/.test(line) ? line[0]!.toLowerCase() + line.slice(1) : line
}
