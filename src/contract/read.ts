import { readFileSync, statSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { Composer, isAlias, isMap, isNode, isPair, isScalar, isSeq, Lexer, LineCounter, Parser, type CST, type Document, type Node } from 'yaml'
import { z } from 'zod'
import { NAMES } from '../authority/syscall-profiles.ts'
import { OCI_PREFIX } from '../authority/syscall.ts'
import { closest } from '../authority/words.ts'
import { AmbitError, type ErrorCode } from '../errors.ts'
import { keysAt } from './keys.ts'
import { contractSchema, ENTRIES_MAX, type Contract } from './schema.ts'

/** As much as one message to the daemon may hold. */
const BYTES_MAX = 256 * 1024
/** Words, marks, spaces and line ends. The most that a contract of 256 KiB can need as JSON is some 90 000. */
const LEXEMES_MAX = 120_000
/** Spaces, line ends, comments and properties in a row: the library looks through all of a row again for each comment in it. */
const ROW_MAX = 2_000
/** Collections in each other; a contract needs 6. The library's recursion is as deep. */
const DEPTH_MAX = 32
/** Keys, values, maps and lists; with all its lists full a contract has some 43 000. */
const NODES_MAX = 50_000
/** PATH_MAX is the longest that any text can be but a variable's value: URLs take time that grows with the square of their length. */
const TEXT_MAX = 4_096
const VARIABLES = ['spec', 'environment', 'set']
const CALLS = ['allow', 'deny'].map(list => ['spec', 'authority', 'syscall', list])
/** Of entries that are no calls or are there twice: the schema compares each entry with all names for the closest, which is slow. */
const BAD_CALLS_MAX = 8
/** Each is looked up in the document; four are told. */
const FAULTS_MAX = 64

type Place = { line: number; column: number }
type Fault = Place & { why: string; remedy: string; missing?: boolean }
type TextFault = { at: number; why: string; remedy?: string }

/** Text of a seccomp profile by the name that the contract gives it; undefined: there is none. Whoever asks for a cell reads it, with their own rights. */
export type ProfileText = (name: string) => string | undefined

const PROFILE = ['spec', 'authority', 'syscall', 'profile']

/**
 * Reads a contract from YAML or JSON. `file` is what errors call it. Throws CONTRACT_INVALID with the place of the first
 * fault; nothing of a faulty contract is used. The daemon reads what a stranger sends: the work stays near to linear in the
 * length of the text, whatever it holds. Nothing is opened: what `oci:FILE` names comes from `profileText`, and stands in the
 * contract from then on.
 */
export function readContract(text: string, file: string, profileText: ProfileText = () => undefined): Contract {
  return readForm(text, file, {
    what: 'contract', code: 'CONTRACT_INVALID', schema: contractSchema, begin: 'a contract starts with "apiVersion: ambit/v1" and "kind: Cell"',
    prepare(data) {
      const why = withProfile(data, profileText)
      return why === undefined ? undefined : { path: PROFILE, why, remedy: 'name a seccomp profile of Docker or Podman beside the contract, unquoted and on one line' }
    },
  }) as Contract
}

/** What is read: how errors call it and with what code, and what is done with the data before the schema sees it. */
export type Form = {
  what: 'contract' | 'policy'
  code: ErrorCode
  schema: z.ZodType
  /** How such a document starts. */
  begin: string
  prepare?(data: unknown): { path: readonly PropertyKey[]; why: string; remedy: string } | undefined
}

/** Reads one YAML or JSON document by a schema, with what YAML has and such files must not refused. */
export function readForm(text: string, file: string, { what, code, schema, begin, prepare }: Form): unknown {
  const lines = new LineCounter()
  const placeOf = (offset: number): Place => {
    const { line, col } = lines.linePos(offset)
    return { line: Math.max(line, 1), column: Math.max(col, 1) }
  }
  const refuse = ({ why, remedy, line, column }: Fault): never => {
    throw new AmbitError(code, { attempted: `read the ${what}`, why, remedy, where: { file, line, column } })
  }
  const refuseText = ({ at, why, remedy }: TextFault): never => refuse({ ...placeOf(at), why, remedy: remedy ?? 'mend the YAML at that place' })
  const top = { line: 1, column: 1 }
  if (Buffer.byteLength(text) > BYTES_MAX) refuse({ ...top, why: `it is larger than ${BYTES_MAX / 1024} KiB`, remedy: 'a contract names directories, not every file in them' })

  let document: Document.Parsed
  let data: unknown
  try {
    const composed = composedOf(text, lines)
    if ('why' in composed) return refuseText(composed)
    document = composed.document
    const fault = structureFault(document)
    if (fault !== undefined) refuseText(fault)
    data = document.toJS()
  } catch (error) {
    if (error instanceof AmbitError) throw error
    return refuse({ ...top, why: sentence((error as Error).message), remedy: `write the ${what} as plain maps and lists` })
  }
  if (data === null || data === undefined) refuse({ ...top, why: 'it is empty', remedy: begin })

  const fault = prepare?.(data)
  if (fault !== undefined) refuse({ ...placeOf(offsetOf(document, fault.path, false)), why: `${nameOf(fault.path)}: ${fault.why}`, remedy: fault.remedy })

  const parsed = schema.safeParse(data)
  if (parsed.success) return parsed.data
  const faults: Fault[] = []
  let count = 0
  for (const issue of parsed.error.issues) {
    count += issue.code === 'unrecognized_keys' ? issue.keys.length : 1
    faults.push(...faultsOf(issue, { document, schema, what, placeOf }, FAULTS_MAX - faults.length))
  }
  // A key is often missing because it is misspelt: the misspelling is told first.
  faults.sort((a, b) => Number(a.missing ?? false) - Number(b.missing ?? false) || a.line - b.line || a.column - b.column)
  const [first, ...rest] = faults as [Fault, ...Fault[]]
  const more = rest.length === 0 ? '' : `; also ${rest.slice(0, 3).map(fault => `line ${fault.line}: ${fault.why}`).join('; ')}${count > 4 ? `; and ${count - 4} more` : ''}`
  return refuse({ ...first, why: first.why + more })
}

/** The line and column of a part of a contract that was read without a fault. */
export function placeIn(text: string, path: readonly PropertyKey[]): { line: number; column: number } {
  const lines = new LineCounter()
  const composed = composedOf(text, lines)
  if ('why' in composed) return { line: 1, column: 1 }
  const { line, col } = lines.linePos(offsetOf(composed.document, path, false))
  return { line: Math.max(line, 1), column: Math.max(col, 1) }
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
  return readContract(text, path, name => readRegular(resolve(dirname(path), name)))
}

/** Text of a file; undefined of what is none. Never waits for a writer, as a named pipe would. */
function readRegular(path: string): string | undefined {
  try {
    return statSync(path).isFile() ? readFileSync(path, 'utf8') : undefined
  } catch {
    return undefined
  }
}

/** Puts another engine's profile where the contract names its file. Returns why it cannot. */
function withProfile(data: unknown, profileText: ProfileText): string | undefined {
  const holder = PROFILE.slice(0, -1).reduce<unknown>((at, step) => (typeof at === 'object' && at !== null && Object.hasOwn(at, step) ? (at as Record<string, unknown>)[step] : undefined), data) as { profile?: unknown } | undefined
  if (typeof holder?.profile !== 'string' || !holder.profile.startsWith(OCI_PREFIX)) return undefined
  const name = holder.profile.slice(OCI_PREFIX.length)
  const text = profileText(name)
  if (text === undefined) return `the file ${JSON.stringify(name)} could not be read, seen from the contract's folder`
  if (text.length > BYTES_MAX) return `${JSON.stringify(name)} is larger than ${BYTES_MAX / 1024} KiB`
  try {
    holder.profile = { oci: JSON.parse(text) as unknown }
  } catch (error) {
    return `${JSON.stringify(name)} is not JSON: ${sentence((error as Error).message)}`
  }
  return undefined
}

/** The text as the one YAML document that it holds, or its first fault. Keys may be there twice yet. */
function composedOf(text: string, lines: LineCounter): { document: Document.Parsed } | TextFault {
  // The library makes an Error of each fault and a hostile text has one in each character: their traces would be most of the work.
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  try {
    const tokens = tokensOf(text, lines)
    if ('why' in tokens) return tokens
    let document: Document.Parsed | undefined
    let second: Document.Parsed | undefined
    for (const each of new Composer({ prettyErrors: false, stringKeys: true, uniqueKeys: false }).compose(tokens, true, text.length)) {
      if (document === undefined) document = each
      else {
        second = each
        break
      }
    }
    const fault = document!.errors[0] ?? (second === undefined ? document!.warnings[0] : undefined)
    if (fault !== undefined) return { at: fault.pos[0], why: sentence(fault.message) }
    if (second !== undefined) return { at: second.range[0], why: 'it holds several documents', remedy: 'a contract is one document: remove all from "---" on' }
    return { document: document! }
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

/** The syntax tree, which grows no larger or deeper than contracts are: what comes after it recurses. */
function tokensOf(text: string, lines: LineCounter): CST.Token[] | TextFault {
  const parser = new Parser(lines.addNewLine)
  const tokens: CST.Token[] = []
  let lexemes = 0
  let row = 0
  lines.addNewLine(0)
  for (const lexeme of new Lexer().lex(text)) {
    const at = parser.offset
    row = /^[\s#&!]/.test(lexeme) ? row + 1 : 0
    if (++lexemes > LEXEMES_MAX) return { at, why: `it has more than ${LEXEMES_MAX} words and marks`, remedy: 'a contract names directories, not every file in them' }
    if (row > ROW_MAX) return { at, why: 'too many empty lines or comments are in a row', remedy: 'remove those that are not needed' }
    for (const token of parser.next(lexeme)) tokens.push(token)
    // The document itself and a scalar are on it, too.
    if (parser.stack.length > DEPTH_MAX + 2) return { at, why: `it is nested too deeply: more than ${DEPTH_MAX} maps and lists in each other`, remedy: 'write the contract as plain maps and lists' }
  }
  for (const token of parser.end()) tokens.push(token)
  return tokens
}

/** What YAML has and a contract must not: one part that stands for another makes it other than it looks. */
function structureFault(document: Document.Parsed): TextFault | undefined {
  let nodes = 0
  const path: PropertyKey[] = []
  const below = (step: PropertyKey, node: unknown): TextFault | undefined => {
    path.push(step)
    const fault = faultIn(node)
    path.pop()
    return fault
  }
  const faultIn = (node: unknown): TextFault | undefined => {
    if (!isNode(node)) return undefined
    const at = start(node) ?? 0
    if (++nodes > NODES_MAX) return { at, why: `it has more than ${NODES_MAX} keys and values`, remedy: 'a contract names directories, not every file in them' }
    if (isAlias(node)) return { at, why: `the alias *${node.source} stands for another part: write it out` }
    if (node.anchor !== undefined) return { at, why: `the anchor &${node.anchor} has no use in a contract` }
    if (node.tag !== undefined && !/^tag:yaml\.org,2002:(map|seq|str|int|float|bool|null)$/.test(node.tag)) return { at, why: `the tag ${node.tag} has no meaning in a contract` }
    if (isScalar(node) && typeof node.value === 'string' && node.value.length > TEXT_MAX && !(path.length === 4 && beginsWith(path, VARIABLES))) {
      return { at, why: `a text of ${node.value.length} characters is in it: only the value of a variable in ${VARIABLES.join('.')} may have more than ${TEXT_MAX}`, remedy: 'write less there' }
    }
    if (isMap(node)) {
      const seen = new Set<unknown>()
      for (const { key, value } of node.items) {
        const name = isScalar(key) ? key.value : key
        if (seen.has(name)) return { at: start(key) ?? at, why: 'map keys must be unique' }
        // zod and JavaScript objects both lose this key without a word.
        if (name === '__proto__') return { at: start(key) ?? at, why: 'the key "__proto__" is not known' }
        if (seen.add(name).size > ENTRIES_MAX) return tooMany(path, node.items.length, start(key) ?? at)
        const fault = faultIn(key) ?? below(String(name), value)
        if (fault !== undefined) return fault
      }
    }
    if (isSeq(node)) {
      if (node.items.length > ENTRIES_MAX) return tooMany(path, node.items.length, start(node.items[ENTRIES_MAX]) ?? at)
      if (CALLS.some(list => path.length === list.length && beginsWith(path, list))) {
        const names = new Set(NAMES)
        const bad = node.items.filter(item => (isMap(item) ? !NAMES.has(String(item.get('name'))) : !(isScalar(item) && names.delete(String(item.value)))))
        if (bad.length > BAD_CALLS_MAX) return { at: start(bad[0]) ?? at, why: `${nameOf(path)}: ${bad.length} entries, from this one on, can be granted by no contract or are listed twice`, remedy: 'name each call once, as the kernel names it' }
      }
      for (const [index, item] of node.items.entries()) {
        const fault = below(index, item)
        if (fault !== undefined) return fault
      }
    }
    return undefined
  }
  return faultIn(document.contents)
}

function beginsWith(path: readonly PropertyKey[], steps: readonly string[]): boolean {
  return steps.every((step, index) => path[index] === step)
}

function tooMany(path: readonly PropertyKey[], count: number, at: number): TextFault {
  return { at, why: `${nameOf(path)} holds ${count} entries: ${ENTRIES_MAX} is the most`, remedy: 'a contract names directories, not every file in them' }
}

/** At most `most` faults of one issue, which may be of many keys. */
function faultsOf(issue: z.core.$ZodIssue, source: { document: Document.Parsed; schema: z.ZodType; what: string; placeOf: (offset: number) => Place }, most: number): Fault[] {
  const { document, schema, what, placeOf } = source
  if (most <= 0) return []
  // What is in a file of another engine's has its place told in words, and the contract's line is that of the file's name.
  if (issue.path.length > PROFILE.length && beginsWith(issue.path, PROFILE) && isScalar(document.getIn(PROFILE, true))) return faultsOf({ ...issue, path: PROFILE }, source, most)
  const name = nameOf(issue.path)
  if (issue.code === 'unrecognized_keys') {
    const known = keysAt(schema, issue.path)
    return issue.keys.slice(0, most).map(key => {
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
    remedy: missing ? `add "${String(issue.path.at(-1))}"; nothing is granted or assumed by omission` : `change the ${what} at that place; nothing was run`,
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
