import { OUTCOMES, type Outcome } from '../authority/kind.ts'
import { counted, grouped } from '../authority/words.ts'
import { printable } from '../text.ts'
import type { Verdict, VerdictRow } from './verdict.ts'

export type VerdictForm = {
  color: boolean
  /** Every row and every proof whole; otherwise long groups are folded. */
  all: boolean
}

/** What wants attention comes first. */
const ORDER: readonly Outcome[] = ['denied', 'undeclared', 'unused', 'unobservable', 'used']
const COLOUR: Record<Outcome, number> = { used: 32, unused: 33, denied: 31, undeclared: 35, unobservable: 36 }
/** A group with more rows is folded to `SHOWN` of them. */
const FOLD_ABOVE = 6
const SHOWN = 4
const GRANT_WIDTH = 44
const PROOF_WIDTH = 96

/** The verdict for a terminal: a table for each kind. What a job chose is shown with its control characters spelt out. */
export function renderVerdict(verdict: Verdict, { color, all }: VerdictForm): string {
  const paint = (code: number, text: string): string => (color ? `\u001b[${code}m${text}\u001b[0m` : text)
  const lines = [headLine(verdict, paint)]
  if (verdict.limits.length > 0) lines.push('', paint(1, 'limits'), ...verdict.limits.map(({ limit, detail }) => `  ${limit.padEnd(12)}  ${printable(detail)}`))
  for (const [kind, rows] of grouped(verdict.rows, row => row.kind)) {
    lines.push('', `${paint(1, kind)}  ${summary(rows, paint)}`)
    const width = Math.min(GRANT_WIDTH, Math.max(...rows.map(row => printable(row.grant).length)))
    for (const outcome of ORDER) {
      const group = rows.filter(row => row.outcome === outcome)
      const fold = !all && group.length > FOLD_ABOVE
      for (const row of fold ? group.slice(0, SHOWN) : group) lines.push(rowLine(row, width, all, paint))
      if (fold) lines.push(`  ${paint(COLOUR[outcome], outcome.padEnd(12))}  ${paint(2, foldText(group.slice(SHOWN)))}`)
    }
  }
  if (verdict.rows.length === 0) lines.push('', 'nothing was declared, and nothing that a contract could declare was done')
  if (verdict.coverage.length > 0) {
    lines.push('', `${paint(1, 'coverage')}  what the evidence cannot speak of`)
    for (const { family, gaps } of verdict.coverage) {
      const shown = all ? gaps : gaps.slice(0, 3)
      for (const gap of shown) lines.push(`  ${family.padEnd(12)}  ${printable(gap)}`)
      if (gaps.length > shown.length) lines.push(`  ${family.padEnd(12)}  ${paint(2, `and ${counted(gaps.length - shown.length, 'more gap')}`)}`)
    }
  }
  return `${lines.join('\n')}\n`
}

/** The verdict as data: the same rows, with how many there are of each outcome. */
export function verdictJson(verdict: Verdict): object {
  return { ...verdict, totals: Object.fromEntries(OUTCOMES.map(outcome => [outcome, verdict.rows.filter(row => row.outcome === outcome).length])) }
}

type Paint = (code: number, text: string) => string

function headLine({ cell, mode, outcome, limits, contractDigest, rows }: Verdict, paint: Paint): string {
  // A number such as 137 says nothing: what ended the command does.
  const cause = limits.filter(({ limit }) => limit !== 'cpu').map(({ detail }) => detail).join('; ') || outcome.reason
  const end = outcome.reason === 'unfinished' ? 'no end in the evidence'
    : `${outcome.signal !== null ? `ended by ${outcome.signal}` : `exit status ${outcome.code ?? 'unknown'}`}${cause === 'exited' ? '' : ` (${cause})`}`
  return `${paint(1, `cell ${printable(cell) || 'unknown'}`)}  ${mode}, ${printable(end)}, contract ${contractDigest.slice(0, 12)}: ${summary(rows, paint) || 'no grants'}`
}

function summary(rows: readonly VerdictRow[], paint: Paint): string {
  return ORDER.map(outcome => ({ outcome, count: rows.filter(row => row.outcome === outcome).length }))
    .filter(({ count }) => count > 0).map(({ outcome, count }) => paint(COLOUR[outcome], `${count} ${outcome}`)).join(', ')
}

function rowLine({ grant, outcome, declared, count, proof }: VerdictRow, width: number, all: boolean, paint: Paint): string {
  const cells = [
    paint(COLOUR[outcome], outcome.padEnd(12)),
    clipped(printable(grant), all ? Infinity : width).padEnd(width),
    declared ? 'declared' : '   -    ',
    (count === null ? '-' : String(count)).padStart(7),
    paint(2, clipped(printable(proof), all ? Infinity : PROOF_WIDTH)),
  ]
  return `  ${cells.join('  ')}`
}

/** Both ends tell more than either alone. */
function clipped(text: string, width: number): string {
  if (text.length <= width) return text
  const tail = Math.floor((width - 1) / 3)
  return `${text.slice(0, width - 1 - tail)}…${text.slice(text.length - tail)}`
}

function foldText(rows: readonly VerdictRow[]): string {
  const names = rows.slice(0, 6).map(row => clipped(printable(row.grant), 32))
  return `… ${rows.length} more: ${names.join(', ')}${rows.length > names.length ? ', …' : ''} (--all shows them)`
}
