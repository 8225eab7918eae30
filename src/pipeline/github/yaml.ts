import { isAlias, isCollection, isMap, isPair, isScalar, isSeq, LineCounter, parseDocument, visit, type Alias, type Document, type Node, type Pair, type YAMLMap } from 'yaml'
import { AmbitError } from '../../errors.ts'

/** Limits on what a stranger's file may cost. The largest workflows that people write are a tenth of this. */
export const LIMITS = { bytes: 512 * 1024, aliases: 500, nodes: 50_000, depth: 100 } as const

export type Place = { line: number; column: number }
export type Entry = { key: string; at: Place; pair: Pair; value: Node | null }

/** A YAML file that is safe to walk: its aliases end, and its size once they are followed is limited. */
export type Yaml = {
  root: Node | null
  at(offset: number): Place
  place(node: Node | null): Place
  /** The node that an alias stands for; any other node is itself. */
  follow(node: unknown): Node | null
  /** The entries of a mapping; nothing for any other node. */
  entries(node: unknown): Entry[]
  get(node: unknown, key: string): Node | null
  items(node: unknown): Node[]
  isMap(node: unknown): boolean
  /** A scalar as GitHub's runner turns it into text; null for anything else. */
  text(node: unknown): string | null
}

/** `file` is only for messages. Throws PIPELINE_INVALID with the place. */
export function openYaml(text: string, file: string): Yaml {
  const lines = new LineCounter()
  const at = (offset: number): Place => {
    const { line, col } = lines.linePos(offset)
    return { line, column: col }
  }
  const refuse = (why: string, remedy: string, place?: Place): AmbitError => new AmbitError('PIPELINE_INVALID', { attempted: 'read the workflow', why, remedy, where: { file, ...place } })

  let doc: Document.Parsed
  try {
    // Keys are checked by GitHub's own parser; here the check is quadratic in the number of keys.
    doc = parseDocument(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: false, keepSourceTokens: true })
  } catch (error) {
    if (error instanceof RangeError) throw refuse('it is nested too deeply', `no workflow needs more than ${LIMITS.depth} levels`)
    throw error
  }
  const broken = doc.errors[0]
  if (broken !== undefined) {
    const tab = broken.code === 'TAB_AS_INDENT'
    throw refuse(tab ? 'a tab is used for indentation' : `it is not YAML: ${broken.message}`, tab ? 'YAML indents with spaces only' : 'mend the YAML at this place', at(broken.pos[0]))
  }

  const targets = resolveAliases(doc, alias => refuse(`the alias *${alias.source} has no anchor before it`, 'name an anchor that stands earlier in the file', at(alias.range![0])))
  if (targets.size > LIMITS.aliases) throw refuse(`it has ${targets.size} aliases`, `write them out; at most ${LIMITS.aliases} are followed`)
  measure(doc.contents, targets, (why, node) => refuse(why, 'write the parts out instead of nesting aliases', node.range ? at(node.range[0]) : undefined))

  const follow = (node: unknown): Node | null => (isAlias(node) ? targets.get(node)! : (node as Node | null) ?? null)
  const entries = (node: unknown): Entry[] => {
    const map = follow(node)
    if (!isMap(map)) return []
    return (map as YAMLMap).items.map(pair => ({ key: textOf(follow(pair.key)) ?? '', at: at((pair.key as Node).range![0]), pair, value: follow(pair.value) }))
  }
  return {
    root: follow(doc.contents), at, follow, entries,
    place: node => (node?.range ? at(node.range[0]) : { line: 1, column: 1 }),
    get: (node, key) => entries(node).find(entry => entry.key === key)?.value ?? null,
    items: node => {
      const seq = follow(node)
      return isSeq(seq) ? seq.items.map(item => follow(item)).filter(item => item !== null) : []
    },
    isMap: node => isMap(follow(node)),
    text: node => textOf(follow(node)),
  }
}

function textOf(node: Node | null): string | null {
  if (!isScalar(node)) return null
  return node.value === null || node.value === undefined ? '' : String(node.value)
}

/** Aliases by what stood before them; yaml's own `resolve` walks the whole document for each. */
function resolveAliases(doc: Document.Parsed, missing: (alias: Alias) => AmbitError): Map<Alias, Node> {
  const anchors = new Map<string, Node>()
  const targets = new Map<Alias, Node>()
  visit(doc, {
    Node(_, node) {
      if (isAlias(node)) {
        const target = anchors.get(node.source)
        if (target === undefined) throw missing(node)
        targets.set(node, target)
      } else if ('anchor' in node && node.anchor !== undefined) {
        anchors.set(node.anchor, node)
      }
    },
  })
  return targets
}

/** Counts nodes as if every alias were written out, without writing them out. */
function measure(root: Node | null, targets: ReadonlyMap<Alias, Node>, refuse: (why: string, node: Node) => AmbitError): void {
  const known = new Map<Node, number>()
  const open = new Set<Node>()
  const size = (node: unknown, depth: number): number => {
    if (isPair(node)) return size(node.key, depth) + size(node.value, depth)
    const one = isAlias(node) ? targets.get(node)! : (node as Node | null)
    if (one === null || one === undefined) return 1
    if (open.has(one)) throw refuse('an alias stands inside what it stands for', node as Node)
    if (depth > LIMITS.depth) throw refuse(`it is nested more than ${LIMITS.depth} levels deep`, one)
    const before = known.get(one)
    if (before !== undefined) return before
    open.add(one)
    let total = 1
    if (isCollection(one)) {
      for (const item of one.items) {
        total += size(item, depth + 1)
        if (total > LIMITS.nodes) throw refuse(`it grows to more than ${LIMITS.nodes} nodes once its aliases are followed`, one)
      }
    }
    open.delete(one)
    known.set(one, total)
    return total
  }
  size(root, 0)
}
