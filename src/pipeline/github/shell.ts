import type { Segment } from './expressions.ts'

/** A value as one word of a POSIX shell, whatever it holds. The shell has no NUL: callers refuse it before. */
export function quote(value: string): string {
  return `'${value.replaceAll('\'', '\'\\\'\'')}'`
}

export type Shell = {
  /** The command, word by word; `{0}` stands for the script's path. */
  words: string[]
  extension: string
  /** Expands `${NAME}` in a script as a POSIX shell does. */
  posix: boolean
}

/**
 * What `shell:` stands for, as in the runner (actions/runner, ScriptHandlerHelpers.cs): `bash -e {0}` where none is
 * given. `python` is python3, for Debian has no other. `foreign` says why a cell cannot offer it.
 */
export function shellOf(given: string | null): Shell | { foreign: string } {
  switch (given) {
    case null: return { words: ['bash', '-e', '{0}'], extension: '.sh', posix: true }
    case 'bash': return { words: ['bash', '--noprofile', '--norc', '-e', '-o', 'pipefail', '{0}'], extension: '.sh', posix: true }
    case 'sh': return { words: ['sh', '-e', '{0}'], extension: '.sh', posix: true }
    case 'python': return { words: ['python3', '{0}'], extension: '.py', posix: false }
    case 'pwsh': return { foreign: 'PowerShell runs on a runner only' }
    case 'powershell':
    case 'cmd': return { foreign: 'it is a shell of Windows' }
  }
  const words = [...given.matchAll(/(?:"[^"]*"|[^\s"])+/g)].map(match => match[0].replaceAll('"', ''))
  if (words.length < 2 || !words.some(word => word.includes('{0}'))) return { foreign: 'a shell of one\'s own needs {0} where the script\'s path goes' }
  return { words, extension: '', posix: ['bash', 'sh', 'dash'].includes(words[0]!.split('/').at(-1)!) }
}

/**
 * The first expression of a script that a variable cannot stand for, because the shell would not expand one there: in
 * single quotes, or in a here-document whose delimiter is quoted. null: there is none.
 */
export function unexpandable(script: readonly Segment[], isVariable: (segment: Segment) => boolean): Segment | null {
  const scanner = quoting()
  for (const segment of script) {
    if ('literal' in segment) scanner.feed(segment.literal)
    else if (isVariable(segment) && !scanner.expands()) return segment
    // Whatever it is replaced by, to the scanner it is a word.
    else scanner.feed('x')
  }
  return null
}

type State =
  | { in: 'plain' | 'double' | 'single' | 'ansi' | 'backtick' | 'brace' | 'comment' }
  | { in: 'substitution'; parens: number }
  | { in: 'document'; delimiter: string; quoted: boolean; tabs: boolean }

/** `<<` shifts between `((` and `))`. */
function inArithmetic(text: string, at: number): boolean {
  const before = text.slice(text.lastIndexOf('\n', at) + 1, at)
  return before.split('((').length > before.split('))').length
}

/** Follows a script's quoting, as far as it decides whether `$` is expanded (POSIX.1-2017, XCU 2.2 and 2.7.4). */
function quoting(): { feed(text: string): void; expands(): boolean } {
  const stack: State[] = [{ in: 'plain' }]
  const documents: Extract<State, { in: 'document' }>[] = []
  let escaped = false
  let dollar = false
  let wordStart = true
  let pending = ''
  let line = ''

  const top = (): State => stack.at(-1)!
  const push = (state: State): void => { stack.push(state) }

  const step = (char: string): void => {
    const state = top()
    if (state.in === 'document') {
      if (char !== '\n') { line += char; return }
      if ((state.tabs ? line.replace(/^\t+/, '') : line) === state.delimiter) {
        stack.pop()
        const next = documents.shift()
        if (next !== undefined) push(next)
      }
      line = ''
      return
    }
    if (state.in === 'comment' && char !== '\n') return
    if (state.in === 'comment') stack.pop()
    if (escaped) { escaped = false; wordStart = false; return }
    const now = top()
    if (now.in === 'single') { if (char === '\'') stack.pop(); return }
    if (char === '\\') { escaped = true; dollar = false; return }
    if (now.in === 'ansi') { if (char === '\'') stack.pop(); return }
    if (now.in === 'double' && char === '"') { stack.pop(); return }
    if (dollar && char === '(') { dollar = false; push({ in: 'substitution', parens: 0 }); wordStart = true; return }
    if (dollar && char === '{') { dollar = false; push({ in: 'brace' }); return }
    if (now.in === 'brace' && char === '}') { stack.pop(); return }
    if (char === '`') { if (now.in === 'backtick') stack.pop(); else push({ in: 'backtick' }); return }
    if (now.in !== 'double') {
      if (char === '\'') { push({ in: dollar ? 'ansi' : 'single' }); dollar = false; return }
      if (char === '"') { push({ in: 'double' }); dollar = false; return }
      if (char === '#' && wordStart && now.in !== 'brace') { push({ in: 'comment' }); return }
      if (now.in === 'substitution' && char === '(') now.parens++
      if (now.in === 'substitution' && char === ')') { if (now.parens-- === 0) { stack.pop(); return } }
      if (char === '\n' && documents.length > 0) { push(documents.shift()!); line = '' }
      wordStart = /[\s;&|()]/.test(char)
    }
    dollar = char === '$'
  }

  return {
    feed(text) {
      for (let i = 0; i < text.length; i++) {
        const state = top()
        const opens = !escaped && (state.in === 'plain' || state.in === 'substitution' || state.in === 'backtick')
        const match = opens && text[i] === '<' ? /^<<(-?)[ \t]*(\\?[^\s'"\\;&|()<>]+|'[^'\n]*'|"[^"\n]*")/.exec(text.slice(i, i + 256)) : null
        if (match !== null && text[i - 1] !== '<' && pending !== '<' && !inArithmetic(text, i)) {
          documents.push({ in: 'document', delimiter: match[2]!.replace(/^\\|^['"]|['"]$/g, ''), quoted: /^[\\'"]/.test(match[2]!), tabs: match[1] === '-' })
          i += match[0].length - 1
          wordStart = false
        } else {
          step(text[i]!)
        }
      }
      pending = text.at(-1) ?? ''
    },
    expands() {
      const state = top()
      return state.in === 'document' ? !state.quoted : state.in !== 'single' && state.in !== 'ansi'
    },
  }
}
