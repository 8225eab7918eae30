import { data, Evaluator } from '@actions/expressions'
import { Binary, FunctionCall, Grouping, IndexAccess, Logical, Unary, ContextAccess, type Expr } from '@actions/expressions/ast'
import { AmbitError } from '../../errors.ts'
import type { Text } from '../graph.ts'
import { children, parseExpression, referenceOf, segments, STATUS_FUNCTIONS, type Reference, type Segment } from './expressions.ts'
import { quote } from './shell.ts'

/**
 * An expression is either known now, or is bash that leaves its value in V and its type in T: s (string), b (boolean,
 * "true" or "false"), n (number), z (null). The bash calls the functions of runtime.ts. It never holds a value that
 * is not quoted.
 */
export type Compiled = { value: data.ExpressionData } | { code: string }
/** A template's text: known now, or bash that leaves it in V. */
export type CompiledText = { text: string } | { code: string }

export type Scope = {
  job: string
  file: string
  /** Known now, by context and lower-case name: `github.repository`. */
  known: ReadonlyMap<string, string>
  /** Which environment `env.X` means: a step's own entries are not seen by each other. */
  env: 'job' | 'step'
  /** Variables of the cell that must be there, with the line that asks for each. The driver looks before anything runs. */
  needs: Map<string, { line: number; expression: string }>
}

/** Contexts whose properties the runner also puts in variables: GITHUB_SHA is `github.sha`. */
const GITHUB_VARIABLES = new Set([
  'action', 'actor', 'actor_id', 'api_url', 'base_ref', 'event_name', 'graphql_url', 'head_ref', 'ref', 'ref_name', 'ref_protected', 'ref_type',
  'repository_id', 'repository_owner_id', 'retention_days', 'run_attempt', 'run_id', 'run_number', 'server_url', 'sha', 'triggering_actor', 'workflow_ref', 'workflow_sha', 'workspace',
])
const RUNNER_VARIABLES = new Set(['os', 'arch', 'name', 'temp', 'tool_cache'])

const UNKNOWN: Record<string, string> = {
  vars: 'configuration variables are kept by GitHub',
  inputs: 'inputs are given when GitHub starts the workflow',
  needs: 'it comes from another job, and only this one runs here',
  matrix: 'a matrix stands for several jobs',
  strategy: 'a matrix stands for several jobs',
  github: 'the event that starts a workflow is known to GitHub only',
  runner: 'only a runner knows it',
  secrets: 'a secret\'s name must stand in the expression',
  steps: 'of a step, `outputs.NAME`, `outcome` and `conclusion` are known',
  env: 'a variable\'s name must stand in the expression',
  job: 'of a job, `status` is known',
  jobs: 'only this job runs here',
}

/** A whole text with its `${{ }}`. Throws PIPELINE_INVALID for what cannot be evaluated here. */
export function compileText(text: Text, scope: Scope): CompiledText {
  return joined(segments(text.value).map(segment => ('literal' in segment ? { text: segment.literal } : asText(compileSegment(segment, text, scope)))))
}

/** One expression of a text. The line is right for block scalars, which is where texts have many lines. */
export function compileSegment(segment: Extract<Segment, { expression: string }>, text: Text, scope: Scope): Compiled {
  const before = text.value.slice(0, segment.offset).split('\n').length - 1
  return compile(segment.expression, before === 0 ? text.line : text.line + 1 + before, scope)
}

/** What an `if:` says: an expression, with or without `${{ }}` around it. `success() &&` is implied where it asks for no status. */
export function compileCondition(condition: Text | null, scope: Scope): Compiled {
  const source = condition?.value.trim() ?? ''
  if (condition === null || source === '') return compile('success()', 0, scope)
  const parts = segments(source)
  const whole = parts.length === 1 && 'expression' in parts[0]! ? parts[0].expression : source
  if (parts.length === 1) return compile(asksStatus(parseExpression(whole)) ? whole : `success() && (${whole})`, condition.line, scope)
  // Text around an expression makes a string, and a string that is not empty is true; GitHub does the same.
  const asked = parts.some(part => 'expression' in part && asksStatus(parseExpression(part.expression)))
  const text = compileText({ ...condition, value: source }, scope)
  const value = 'text' in text ? `V=${quote(text.text)} T=s` : `${text.code}\nT=s`
  return { code: asked ? value : `ambit_status success\nif ambit_true; then\n${value}\nfi` }
}

export function compile(source: string, line: number, scope: Scope): Compiled {
  let expr: Expr
  try {
    expr = parseExpression(source)
  } catch (error) {
    throw cannot(source, line, scope, (error as Error).message)
  }
  let temporaries = 0
  const at = { source, line, scope, temporary: () => `t${temporaries++}` }
  const code = emit(expr, at)
  if (code === null) return { value: evaluate(expr, at) }
  return { code: temporaries === 0 ? code : `local ${Array.from({ length: temporaries }, (_, i) => `t${i}`).join(' ')}\n${code}` }
}

export function asText(compiled: Compiled): CompiledText {
  return 'value' in compiled ? { text: compiled.value.coerceString() } : { code: `${compiled.code}\nambit_string` }
}

function joined(parts: CompiledText[]): CompiledText {
  if (parts.every(part => 'text' in part)) return { text: parts.map(part => (part as { text: string }).text).join('') }
  if (parts.length === 1) return parts[0]!
  const lines = parts.map(part => ('text' in part ? `o+=${quote(part.text)}` : `${part.code}\no+=$V`))
  return { code: `local o=\n${lines.join('\n')}\nV=$o` }
}

function asksStatus(expr: Expr): boolean {
  if (expr instanceof FunctionCall && STATUS_FUNCTIONS.has(expr.functionName.lexeme.toLowerCase())) return true
  if (expr instanceof IndexAccess) return asksStatus(expr.expr) || asksStatus(expr.index)
  return children(expr).some(asksStatus)
}

type At = { source: string; line: number; scope: Scope; temporary(): string }

function cannot(source: string, line: number, scope: Scope, why: string): AmbitError {
  return new AmbitError('PIPELINE_INVALID', {
    attempted: `run job "${scope.job}" on this host`, why: `\${{ ${source} }} cannot be evaluated here: ${why}`,
    remedy: 'hand the value over as an environment variable, or run this job on a runner', where: { file: scope.file, ...(line > 0 ? { line } : {}) },
  })
}

/** Bash for an expression, or null if all of it is known now. */
function emit(expr: Expr, at: At): string | null {
  if (isKnown(expr, at)) return null
  const fail = (why: string): AmbitError => cannot(at.source, at.line, at.scope, why)
  const part = (one: Expr): string => emit(one, at) ?? constant(evaluate(one, at), fail)

  if (expr instanceof Grouping) return part(expr.group)
  if (expr instanceof Unary) return `${part(expr.expr)}\nambit_not`
  if (expr instanceof Logical) {
    // The value of the last operand that was looked at, as in GitHub: it need not be a boolean.
    const test = expr.operator.lexeme === '&&' ? 'ambit_true' : '! ambit_true'
    return logical(expr.args.map(part), test)
  }
  if (expr instanceof Binary) {
    const value = at.temporary()
    const type = at.temporary()
    return `${part(expr.left)}\n${value}=$V ${type}=$T\n${part(expr.right)}\nambit_compare ${quote(expr.operator.lexeme)} "$${value}" "$${type}"`
  }
  if (expr instanceof FunctionCall) return call(expr, at, part, fail)
  const reference = referenceOf(expr)
  if (reference !== null) return lookUp(reference, at, fail)
  throw fail('what it looks into is not known')
}

function logical(parts: string[], test: string): string {
  const [first, ...rest] = parts
  return rest.length === 0 ? first! : `${first}\nif ${test}; then\n${logical(rest, test)}\nfi`
}

function constant(value: data.ExpressionData, fail: (why: string) => AmbitError): string {
  switch (value.kind) {
    case data.Kind.Null: return 'V= T=z'
    case data.Kind.Boolean: return `V=${value.coerceString()} T=b`
    case data.Kind.String: return `V=${quote(noNul(value.coerceString(), fail))} T=s`
    case data.Kind.Number: {
      const text = value.coerceString()
      if (!/^-?\d+(\.\d+)?$/.test(text)) throw fail(`the number ${text} is not a plain decimal`)
      return `V=${text} T=n`
    }
    default: throw fail('a list or an object cannot be compared with what is known only while the job runs')
  }
}

function noNul(value: string, fail: (why: string) => AmbitError): string {
  if (value.includes('\0')) throw fail('it holds a NUL byte, which no variable can')
  return value
}

function call(expr: FunctionCall, at: At, part: (one: Expr) => string, fail: (why: string) => AmbitError): string {
  const name = expr.functionName.lexeme.toLowerCase()
  const [first, second] = expr.args
  if (STATUS_FUNCTIONS.has(name)) return `ambit_status ${name}`
  if (name === 'contains' && isKnown(first!, at)) {
    const list = evaluate(first!, at)
    if (list instanceof data.Array) {
      const value = at.temporary()
      const type = at.temporary()
      const found = at.temporary()
      const tries = list.values().filter(item => item.primitive).map(item => `${constant(item, fail)}\nambit_compare '==' "$${value}" "$${type}"\n[[ $V == true ]] && ${found}=true`)
      return `${part(second!)}\n${value}=$V ${type}=$T ${found}=false\n${tries.join('\n')}\nV=$${found} T=b`
    }
  }
  if (name === 'contains' || name === 'startswith' || name === 'endswith') {
    const value = at.temporary()
    return `${part(first!)}\nambit_string; ${value}=$V\n${part(second!)}\nambit_string\nambit_search ${name} "$${value}"`
  }
  if (name === 'format' && isKnown(first!, at)) {
    const values = expr.args.slice(1).map(one => {
      const value = at.temporary()
      return { value, code: `${part(one)}\nambit_string; ${value}=$V` }
    })
    const pieces = formatPieces(evaluate(first!, at).coerceString(), fail).map(piece => {
      if (typeof piece === 'string') return quote(noNul(piece, fail))
      const value = values[piece]
      if (value === undefined) throw fail(`format has no argument ${piece}`)
      return `"$${value.value}"`
    })
    return `${values.map(one => one.code).join('\n')}\nV=${pieces.join('')} T=s`
  }
  throw fail(name === 'hashfiles' ? 'hashFiles is computed by a runner' : `${expr.functionName.lexeme} of what is known only while the job runs is not offered here`)
}

/** `{0}` is an argument's number, `{{` and `}}` are braces. */
function formatPieces(format: string, fail: (why: string) => AmbitError): (string | number)[] {
  const pieces: (string | number)[] = []
  for (const match of format.matchAll(/\{\{|\}\}|\{(\d+)\}|[^{}]+|[{}]/g)) {
    if (match[1] !== undefined) pieces.push(Number(match[1]))
    else if (match[0] === '{' || match[0] === '}') throw fail('its format has a brace that stands alone')
    else pieces.push(match[0] === '{{' ? '{' : match[0] === '}}' ? '}' : match[0])
  }
  return pieces
}

/** `known` holds the context "github.repository" of a reference, in lower case. */
function knownValue(reference: Reference, scope: Scope): string | undefined {
  return reference.path.length === 1 && reference.path[0] !== null ? scope.known.get(`${reference.context}.${reference.path[0]!.toLowerCase()}`) : undefined
}

function isKnown(expr: Expr, at: At): boolean {
  if (expr instanceof ContextAccess) return false
  if (expr instanceof IndexAccess) {
    const reference = referenceOf(expr)
    if (reference !== null) return knownValue(reference, at.scope) !== undefined
    return isKnown(expr.expr, at) && (!hasContext(expr.index) || isKnown(expr.index, at))
  }
  if (expr instanceof FunctionCall) {
    const name = expr.functionName.lexeme.toLowerCase()
    if (STATUS_FUNCTIONS.has(name) || name === 'hashfiles') return false
  }
  return children(expr).every(child => isKnown(child, at))
}

function hasContext(expr: Expr): boolean {
  return referenceOf(expr) !== null || children(expr).some(hasContext)
}

function evaluate(expr: Expr, at: At): data.ExpressionData {
  const contexts = new data.Dictionary()
  for (const [key, value] of at.scope.known) {
    const [context, name] = key.split('.') as [string, string]
    contexts.add(context, new data.Dictionary());
    (contexts.get(context) as data.Dictionary).add(name, new data.StringData(value))
  }
  try {
    return new Evaluator(expr, contexts).evaluate()
  } catch (error) {
    throw cannot(at.source, at.line, at.scope, (error as Error).message)
  }
}

function lookUp(reference: Reference, at: At, fail: (why: string) => AmbitError): string {
  const { context, path } = reference
  const [first, second, third] = path
  const none = (): AmbitError => fail(UNKNOWN[context] ?? 'its context is not known')
  if (path.length === 0 || path.includes(null)) throw none()
  const name = first!
  const variable = (full: string): string => {
    if (!at.scope.needs.has(full)) at.scope.needs.set(full, { line: at.line, expression: at.source })
    return `V=$${full} T=s`
  }
  if (context === 'secrets' && path.length === 1) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) throw fail(`"${name}" is not a name that a secret can have`)
    return `ambit_secret ${quote(name.toUpperCase())}`
  }
  if (context === 'env' && path.length === 1) return `ambit_variable ${at.scope.env} ${quote(noNul(name, fail))}`
  if (context === 'github' && path.length === 1) {
    const lower = name.toLowerCase()
    if (lower === 'token') return 'ambit_secret GITHUB_TOKEN'
    if (GITHUB_VARIABLES.has(lower)) return variable(`GITHUB_${lower.toUpperCase()}`)
  }
  if (context === 'runner' && path.length === 1) {
    if (name.toLowerCase() === 'debug') return 'V= T=z'
    if (RUNNER_VARIABLES.has(name.toLowerCase())) return variable(`RUNNER_${name.toUpperCase()}`)
  }
  if (context === 'job' && path.length === 1 && name.toLowerCase() === 'status') return 'V=$ambit_job T=s'
  if (context === 'steps') {
    const id = quote(noNul(name.toLowerCase(), fail))
    const what = second?.toLowerCase()
    if (path.length === 3 && what === 'outputs') return `ambit_output ${id} ${quote(noNul(third!.toLowerCase(), fail))}`
    if (path.length === 2 && (what === 'outcome' || what === 'conclusion')) return `ambit_result ${what} ${id}`
  }
  throw none()
}
