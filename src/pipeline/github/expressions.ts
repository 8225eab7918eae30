import { Lexer, Parser } from '@actions/expressions'
import { Binary, ContextAccess, FunctionCall, Grouping, IndexAccess, Literal, Logical, Unary, type Expr } from '@actions/expressions/ast'
import type { FunctionInfo } from '@actions/expressions/funcs/info'

const CONTEXTS = ['github', 'env', 'vars', 'job', 'jobs', 'steps', 'runner', 'secrets', 'strategy', 'matrix', 'needs', 'inputs']
const FUNCTIONS: FunctionInfo[] = [
  ...['success', 'failure', 'always', 'cancelled'].map(name => ({ name, minArgs: 0, maxArgs: 0 })),
  { name: 'hashFiles', minArgs: 1, maxArgs: 255 },
]
export const STATUS_FUNCTIONS: ReadonlySet<string> = new Set(['success', 'failure', 'always', 'cancelled'])

/** A template is text with `${{ }}` in it; `offset` is where an expression's `${{` begins in the text. */
export type Segment = { literal: string } | { expression: string; offset: number }

/**
 * Cuts a scalar's text as the runner does (actions/runner, TemplateReader.ParseScalar): an expression ends at the
 * first `}}` outside single quotes. Throws a plain Error if one does not end.
 */
export function segments(text: string): Segment[] {
  const found: Segment[] = []
  let done = 0
  for (let start = text.indexOf('${{'); start >= 0; start = text.indexOf('${{', done)) {
    if (start > done) found.push({ literal: text.slice(done, start) })
    let quoted = false
    let end = -1
    for (let i = start + 3; i < text.length; i++) {
      if (text[i] === '\'') quoted = !quoted
      else if (!quoted && text[i] === '}' && text[i + 1] === '}') {
        end = i
        break
      }
    }
    if (end < 0) throw new Error('an expression begins with ${{ and does not end')
    found.push({ expression: text.slice(start + 3, end).trim(), offset: start })
    done = end + 2
  }
  if (done < text.length) found.push({ literal: text.slice(done) })
  return found
}

/** Throws GitHub's own ExpressionError, or an Error if there is nothing to parse. */
export function parseExpression(source: string): Expr {
  const expr: Expr | undefined = new Parser(new Lexer(source).lex().tokens, CONTEXTS, FUNCTIONS).parse()
  if (expr === undefined) throw new Error('an expression was expected')
  return expr
}

/** A use of a context: `secrets.A` is context "secrets", path ["A"]; a computed or starred step is null. */
export type Reference = { context: string; path: (string | null)[] }

/** The context and path that a chain of `.` and `[]` stands for; null if it does not begin with a context. */
export function referenceOf(expr: Expr): Reference | null {
  if (expr instanceof ContextAccess) return { context: expr.name.lexeme.toLowerCase(), path: [] }
  if (!(expr instanceof IndexAccess)) return null
  const base = referenceOf(expr.expr)
  return base && { context: base.context, path: [...base.path, expr.index instanceof Literal ? expr.index.literal.coerceString() : null] }
}

/** Every use of a context in an expression, the longest chain of each. */
export function* references(expr: Expr): Generator<Reference> {
  const reference = referenceOf(expr)
  if (reference !== null) yield reference
  let inner = expr
  while (inner instanceof IndexAccess) {
    if (!(inner.index instanceof Literal)) yield* references(inner.index)
    inner = inner.expr
  }
  if (reference === null && inner !== expr) yield* references(inner)
  else for (const child of children(inner)) yield* references(child)
}

export function children(expr: Expr): Expr[] {
  if (expr instanceof Unary) return [expr.expr]
  if (expr instanceof Binary) return [expr.left, expr.right]
  if (expr instanceof Logical) return expr.args
  if (expr instanceof Grouping) return [expr.group]
  if (expr instanceof FunctionCall) return expr.args
  return []
}

export type Authority = { secrets: string[]; token: boolean; computed: boolean }

/** What of the job's authority the expressions of a text reach. GitHub keeps secret names in upper case and finds them in any. */
export function authorityIn(text: string): Authority {
  const secrets = new Set<string>()
  let token = false
  let computed = false
  for (const segment of segments(text)) {
    if (!('expression' in segment)) continue
    for (const { context, path } of references(parseExpression(segment.expression))) {
      const name = path[0]?.toUpperCase()
      if (context === 'secrets') {
        if (name === undefined) computed = true
        else if (name === 'GITHUB_TOKEN') token = true
        else secrets.add(name)
      }
      if (context === 'github' && (name === undefined || name === 'TOKEN')) token = true
    }
  }
  return { secrets: [...secrets], token, computed }
}

/** The secret that a text hands over as it is and with nothing else; null if it is anything else. */
export function soleSecret(text: string): string | null {
  const parts = segments(text.trim())
  const only = parts[0]
  if (parts.length !== 1 || only === undefined || !('expression' in only)) return null
  const reference = referenceOf(parseExpression(only.expression))
  if (reference?.context !== 'secrets' || reference.path.length !== 1) return null
  return reference.path[0]?.toUpperCase() ?? null
}
