import { createHash } from 'node:crypto'
import type { Job, PipelineFile } from '../pipeline/graph.ts'
import type { LedgerEntry } from './ledger-entry.ts'
import { ALL_SECRETS, DEFAULT_PERMISSIONS, EVERYWHERE, grantsOf, RULES, type Grant, type Severity } from './rules.ts'

/** The worst first. */
export const STATES = ['regressed', 'confirmed', 'open', 'unmeasured', 'closed'] as const
export type State = (typeof STATES)[number]

/** A run that a finding's state rests on. `digest` is that of its evidence, `runs` how many runs say the same. */
export type FindingEvidence = { cell: string; digest: string; time: string; runs: number }

/** What is said of one grant of one job. */
export type Finding = {
  /** The same from audit to audit for the same grant of the same job, wherever in the file it stands. */
  id: string
  rule: string
  kind: string
  job: string
  file: string
  line: number
  column: number
  grant: string
  state: State
  severity: Severity
  message: string
  remedy: string
  evidence: FindingEvidence | null
}

export type AuditReport = {
  files: { file: string; digest: string; jobs: number }[]
  /** Ledger entries that speak of these files' jobs. */
  runs: number
  /** Grants without a finding, because a run used them. */
  needed: number
  findings: Finding[]
}

type Row = LedgerEntry['rows'][number]
type Judged = { state: State | 'needed'; why: string; evidence: FindingEvidence | null }

/**
 * Sets what pipeline files grant against what the ledger's runs used. Pure: the same input gives the same report.
 *
 * open: no run says anything. confirmed: runs could have shown a use, and none did. unmeasured: runs there are, but none
 * could see. closed: measured as unused, gone from the file, and a run of the file as it is now ended well with that
 * withheld. regressed: was closed, and the file holds it again. Used grants are counted, not found.
 * A run that failed shows what it used, but not what it would not have used.
 */
export function audit(files: readonly PipelineFile[], ledger: readonly LedgerEntry[]): AuditReport {
  const report: AuditReport = { files: files.map(({ file, digest, jobs }) => ({ file, digest, jobs: jobs.length })), runs: 0, needed: 0, findings: [] }
  for (const file of files) {
    for (const job of file.jobs) {
      const history = ledger.filter(entry => entry.pipeline.file === file.file && entry.pipeline.job === job.id).sort((a, b) => Date.parse(a.time) - Date.parse(b.time))
      report.runs += history.length
      const held = grantsOf(job, file)
      for (const grant of held) {
        const judged = judge(grant, file.digest, history)
        if (judged.state === 'needed') report.needed++
        else if (grant.rule !== RULES.read || judged.state !== 'open') report.findings.push(finding(grant, judged.state, judged, job, file))
      }
      for (const { grant, judged } of gone(job, file, held, history)) report.findings.push(finding(grant, 'closed', judged, job, file))
    }
  }
  const order = new Map(STATES.map((state, index) => [state, index]))
  report.findings.sort((a, b) => order.get(a.state)! - order.get(b.state)!)
  return report
}

const SEVERER: Record<Severity, Severity> = { info: 'low', low: 'medium', medium: 'high', high: 'high' }

function finding(grant: Grant, state: State, { why, evidence }: Judged, job: Job, file: PipelineFile): Finding {
  const { rule, kind, line, column, remedy } = grant
  const severity = state === 'closed' ? 'info' : state === 'confirmed' || state === 'regressed' ? SEVERER[rule.severity] : rule.severity
  return {
    id: createHash('sha256').update(JSON.stringify([file.file, job.id, kind, grant.grant])).digest('hex').slice(0, 32),
    rule: rule.id, kind, job: job.id, file: file.file, line, column, grant: grant.grant, state, severity,
    message: `job "${job.id}": ${grant.what}; ${why}`,
    remedy: state === 'closed' ? 'nothing is left to do' : state === 'unmeasured' ? `${remedy} if you know that it is not needed; no run could tell` : state === 'open' ? `measure it (ambit loop, ambit run), or ${remedy}` : remedy,
    evidence,
  }
}

/** A failed or killed run proves no absence. */
const green = (entry: LedgerEntry): boolean => entry.outcome.code === 0

/** A verdict names a secret with how it was delivered: "NPM_TOKEN (file)". */
function speaksOf(row: Row, { kind, grant }: Pick<Grant, 'kind' | 'grant'>): boolean {
  if (!row.declared || row.kind !== kind) return false
  return row.grant === grant || (kind === 'secret' && row.grant.startsWith(`${grant} (`))
}

const declares = (entry: LedgerEntry, grant: Pick<Grant, 'kind' | 'grant'>): boolean => entry.rows.some(row => speaksOf(row, grant))

/** A grant that was tried and refused was needed as much as one that worked. */
const usedBy = (row: Row): boolean => row.outcome === 'used' || row.outcome === 'denied'

function by(entry: LedgerEntry, runs: number): FindingEvidence {
  return { cell: entry.cell, digest: entry.evidenceDigest, time: entry.time, runs }
}

type Measured = { used: LedgerEntry[]; unused: LedgerEntry[]; blind: { entry: LedgerEntry; proof: string }[]; proof: string }

function measure(grant: Pick<Grant, 'kind' | 'grant'>, history: readonly LedgerEntry[]): Measured {
  const measured: Measured = { used: [], unused: [], blind: [], proof: '' }
  for (const entry of history) {
    const rows = entry.rows.filter(row => speaksOf(row, grant))
    const blind = rows.find(row => row.outcome === 'unobservable')
    if (rows.some(usedBy)) measured.used.push(entry)
    else if (blind !== undefined) measured.blind.push({ entry, proof: blind.proof })
    else if (rows.some(row => row.outcome === 'unused') && green(entry)) {
      measured.unused.push(entry)
      measured.proof = rows.find(row => row.outcome === 'unused')!.proof
    }
  }
  return measured
}

/** The latest run that went well without the grant, after one that had it and did not use it. */
function withheld(grant: Pick<Grant, 'kind' | 'grant'>, history: readonly LedgerEntry[], of: (entry: LedgerEntry) => boolean): LedgerEntry | undefined {
  const firstUnused = measure(grant, history).unused[0]
  if (firstUnused === undefined) return undefined
  return history.slice(history.indexOf(firstUnused) + 1).filter(entry => entry.mode === 'enforce' && green(entry) && of(entry) && !declares(entry, grant)).at(-1)
}

function judge(grant: Grant, digest: string, history: readonly LedgerEntry[]): Judged {
  if (grant.grant === DEFAULT_PERMISSIONS) return judgeDefault(grant, digest, history)
  if (grant.grant === ALL_SECRETS) return { state: 'open', why: 'which ones that are is not in the file', evidence: null }
  if (grant.grant === EVERYWHERE) {
    // No pipeline file can say less; the contract can, and a run of this very file shows that it is enough.
    const bound = history.filter(entry => entry.mode === 'enforce' && green(entry) && entry.pipeline.digest === digest && !declares(entry, grant)).at(-1)
    if (bound !== undefined) return { state: 'closed', why: `the file cannot limit that, the contract of cell ${bound.cell} did, and the job ended well`, evidence: by(bound, 1) }
  }
  const { used, unused, blind, proof } = measure(grant, history)
  if (used.length > 0) return { state: 'needed', why: '', evidence: by(used.at(-1)!, used.length) }
  const last = unused.at(-1)
  if (last === undefined) {
    const unseen = blind.at(-1)
    if (unseen !== undefined) return { state: 'unmeasured', why: `${runs(blind.length)} could not see whether it is used: ${unseen.proof}`, evidence: by(unseen.entry, blind.length) }
    return { state: 'open', why: history.length === 0 ? 'no run was measured' : 'no run that ended well tells whether it is used', evidence: null }
  }
  const closing = withheld(grant, history, entry => entry.pipeline.digest !== digest)
  if (closing !== undefined && grant.grant !== EVERYWHERE) {
    return { state: 'regressed', why: `it had been taken away, cell ${closing.cell} went well without it, and it is back`, evidence: by(closing, 1) }
  }
  const older = last.pipeline.digest === digest ? '' : ', on an earlier version of the file'
  const unsure = blind.length === 0 ? '' : `; ${runs(blind.length)} more could not see`
  return { state: 'confirmed', why: `declared, not used in ${runs(unused.length)}, the last in cell ${last.cell}${older} (${proof})${unsure}`, evidence: by(last, unused.length) }
}

/** What the default grants is in the verdicts of runs that had it: it is as bad as the worst of its parts. */
function judgeDefault(grant: Grant, digest: string, history: readonly LedgerEntry[]): Judged {
  // A run of this text of the file: whatever permissions it declared came from the default.
  const own = history.filter(entry => entry.pipeline.digest === digest)
  const parts = [...new Set(own.flatMap(entry => entry.rows.filter(row => row.declared && row.kind === grant.kind && row.grant !== 'id_token: write').map(row => row.grant)))]
  const judged = parts.map(part => ({ part, ...judge({ ...grant, grant: part }, digest, history) }))
  const pick = (state: State): (Judged & { part: string })[] => judged.filter(one => one.state === state)
  for (const state of ['regressed', 'confirmed', 'unmeasured'] as const) {
    const worst = pick(state)[0]
    if (worst === undefined) continue
    const names = pick(state).map(one => one.part).join(', ')
    const why = { regressed: `permissions had been written down, and are not any more: ${names}`, confirmed: `if it gives everything, that is not needed: ${names}`, unmeasured: `no run could see whether these are used: ${names}` }[state]
    return { state, why, evidence: worst.evidence }
  }
  return judged.length > 0
    ? { state: 'needed', why: '', evidence: judged[0]!.evidence }
    : { state: 'open', why: history.length === 0 ? 'no run was measured' : 'no run of this version of the file was measured', evidence: null }
}

/** Grants that the file no longer holds, though runs had them and did not use them, with the run that proves it does without. */
function gone(job: Job, file: PipelineFile, held: readonly Grant[], history: readonly LedgerEntry[]): { grant: Grant; judged: Judged }[] {
  // What a default gives is not written down: nothing can be seen to be gone from it.
  const open = new Set(job.grant.tokenPermissions === null ? ['github', 'network'] : ['network'])
  if (job.grant.secrets.includes('*')) open.add('secret')
  const found = new Map<string, { grant: Grant; judged: Judged }>()
  for (const entry of history) {
    for (const row of entry.rows) {
      const name = row.kind === 'secret' ? row.grant.replace(/ \((environment|file)\)$/, '') : row.grant
      const key = `${row.kind} ${name}`
      if (!row.declared || !isPipelineKind(row.kind) || open.has(row.kind) || found.has(key) || held.some(one => one.kind === row.kind && one.grant === name)) continue
      const asked = { kind: row.kind, grant: name }
      const { used, unused, proof } = measure(asked, history)
      const closing = withheld(asked, history, one => one.pipeline.digest === file.digest)
      if (closing === undefined || used.length > 0) continue
      found.set(key, {
        grant: {
          ...asked, rule: row.kind === 'secret' ? RULES.secret : name === 'id_token: write' ? RULES.identity : name.endsWith(': read') ? RULES.read : RULES.permission,
          line: job.line, column: job.column, what: `it no longer holds ${name}`, remedy: '',
        },
        judged: { state: 'closed', why: `not used in ${runs(unused.length)} (${proof}); cell ${closing.cell} went well without it`, evidence: by(closing, unused.length) },
      })
    }
  }
  return [...found.values()]
}

/** The kinds whose grants stand in a pipeline file and can go from it. */
function isPipelineKind(kind: string): boolean {
  return kind === 'github' || kind === 'secret'
}

function runs(count: number): string {
  return count === 1 ? '1 run' : `${count} runs`
}
