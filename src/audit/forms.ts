import { SarifBuilder, SarifResultBuilder, SarifRuleBuilder, SarifRunBuilder } from 'node-sarif-builder'
import { z } from 'zod'
import { VERSION } from '../package.ts'
import { STATES, type AuditReport, type Finding, type State } from './audit.ts'
import { RULES, type Severity } from './rules.ts'

const SHOWN: Record<State, { color: number; about: string }> = {
  regressed: { color: 31, about: 'was closed and is back' },
  confirmed: { color: 31, about: 'measured, and not used' },
  open: { color: 33, about: 'nobody has measured it' },
  unmeasured: { color: 33, about: 'measured, but it could not be seen' },
  closed: { color: 32, about: 'measured, taken away, and proven' },
}

/** For a terminal: the worst state first, two lines for each finding and one for what to do. */
export function renderText(report: AuditReport, { color }: { color: boolean }): string {
  const paint = (code: number, text: string): string => (color ? `\u001b[${code}m${text}\u001b[0m` : text)
  const width = (of: (finding: Finding) => string): number => Math.max(0, ...report.findings.map(finding => of(finding).length))
  const states = width(finding => finding.state)
  const grants = Math.min(40, width(finding => printable(finding.grant)))
  const indent = ' '.repeat(states + 2)
  const lines = report.findings.flatMap(finding => [
    `${paint(SHOWN[finding.state].color, finding.state.padEnd(states))}  ${paint(1, printable(finding.grant).padEnd(grants))}  ${printable(finding.file)}:${finding.line}`,
    `${indent}${printable(finding.message)}`,
    ...(finding.state === 'closed' ? [] : [paint(2, `${indent}→ ${printable(finding.remedy)}`)]),
  ])
  const counts = STATES.map(state => ({ state, count: report.findings.filter(finding => finding.state === state).length })).filter(({ count }) => count > 0)
  const jobs = report.files.reduce((sum, file) => sum + file.jobs, 0)
  const summary = [
    `${jobs} ${jobs === 1 ? 'job' : 'jobs'} in ${report.files.length} ${report.files.length === 1 ? 'file' : 'files'}`,
    counts.length === 0 ? 'no findings' : counts.map(({ state, count }) => `${count} ${state}`).join(', '),
    ...(report.needed === 0 ? [] : [`${report.needed} ${report.needed === 1 ? 'grant' : 'grants'} used and needed`]),
    report.runs === 0 ? 'no run in the ledger' : `${report.runs} ${report.runs === 1 ? 'run' : 'runs'} in the ledger`,
  ]
  const key = counts.map(({ state }) => `${state}: ${SHOWN[state].about}`)
  return `${[...lines, ...(lines.length > 0 ? [''] : []), summary.join('; '), ...(key.length > 0 ? [paint(2, key.join('; '))] : [])].join('\n')}\n`
}

export const findingSchema = z.strictObject({
  id: z.string().regex(/^[0-9a-f]{32}$/).describe('stays the same while the grant of the job does'),
  rule: z.string(),
  kind: z.string().describe('name of the authority kind, as in a verdict'),
  job: z.string(),
  file: z.string(),
  line: z.number().int().positive(),
  column: z.number().int().positive(),
  grant: z.string().describe('in the kind\'s own words: "packages: write"'),
  state: z.enum(STATES),
  severity: z.enum(['high', 'medium', 'low', 'info']),
  message: z.string(),
  remedy: z.string(),
  evidence: z.strictObject({
    cell: z.string(), digest: z.string().describe('of the evidence\'s last record'), time: z.string(), runs: z.number().int().positive(),
  }).nullable().describe('the run that the state rests on; null: none'),
})

export const reportSchema = z.strictObject({
  apiVersion: z.literal('ambit/v1'),
  kind: z.literal('Audit'),
  files: z.array(z.strictObject({ file: z.string(), digest: z.string(), jobs: z.number().int().nonnegative() })),
  runs: z.number().int().nonnegative().describe('ledger entries that speak of these jobs'),
  needed: z.number().int().nonnegative().describe('grants that a run used'),
  findings: z.array(findingSchema),
})

export function renderJson(report: AuditReport): z.infer<typeof reportSchema> {
  return reportSchema.parse({ apiVersion: 'ambit/v1', kind: 'Audit', ...report })
}

const LEVELS: Record<Severity, 'error' | 'warning' | 'note'> = { high: 'error', medium: 'warning', low: 'note', info: 'note' }

/** SARIF 2.1.0. A closed finding is a result of kind "pass"; the state of each is in its properties. */
export function renderSarif(report: AuditReport): object {
  const run = new SarifRunBuilder({ columnKind: 'utf16CodeUnits', results: [] }).initSimple({ toolDriverName: 'ambit', toolDriverVersion: VERSION })
  run.run.tool.driver.semanticVersion = VERSION
  for (const { id, title, help, severity } of Object.values(RULES)) {
    run.addRule(new SarifRuleBuilder({ name: id, defaultConfiguration: { level: LEVELS[severity] }, help: { text: help, markdown: help } })
      .initSimple({ ruleId: id, shortDescriptionText: title, fullDescriptionText: help }))
  }
  for (const finding of report.findings) {
    const closed = finding.state === 'closed'
    const result = new SarifResultBuilder({
      kind: closed ? 'pass' : 'fail',
      partialFingerprints: { 'ambitGrant/v1': finding.id },
      properties: { state: finding.state, kind: finding.kind, job: finding.job, grant: finding.grant, severity: finding.severity, remedy: finding.remedy, ...(finding.evidence ? { evidence: finding.evidence } : {}) },
    }).initSimple({
      // A result that passes has no level (SARIF 2.1.0, 3.27.10).
      level: closed ? 'none' : LEVELS[finding.severity], ruleId: finding.rule, messageText: plain(`${finding.message}. ${finding.remedy}`),
      fileUri: finding.file.split('/').map(encodeURIComponent).join('/'), startLine: finding.line, startColumn: finding.column,
    })
    run.addResult(result)
  }
  const log = new SarifBuilder({ $schema: 'https://json.schemastore.org/sarif-2.1.0.json' })
  log.addRun(run)
  return log.buildSarifOutput()
}

/** Braces are placeholders and brackets are links in a SARIF message (3.11.5, 3.11.6). */
function plain(text: string): string {
  return text.replace(/[{}]/g, brace => brace + brace).replace(/[\\[\]]/g, char => `\\${char}`)
}

/** What a workflow or a job named itself, safe for a terminal. */
function printable(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, char => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`)
}
