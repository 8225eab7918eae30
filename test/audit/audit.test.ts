import { Ajv } from 'ajv'
import fc from 'fast-check'
import t from 'tap'
import { audit, STATES, type AuditReport, type Finding } from '../../src/audit/audit.ts'
import { renderJson, renderSarif, renderText, reportSchema } from '../../src/audit/forms.ts'
import type { LedgerEntry } from '../../src/audit/ledger-entry.ts'
import { RULES } from '../../src/audit/rules.ts'
import { readWorkflow } from '../../src/pipeline/github/workflow.ts'
import type { PipelineFile } from '../../src/pipeline/graph.ts'
import { narrowWorkflow } from '../../src/pipeline/narrow.ts'

const WIDE = `on: push
permissions:
  contents: write
  packages: write
  id-token: write
jobs:
  build:
    runs-on: ubuntu-latest
    env: { NPM: "\${{ secrets.NPM_TOKEN }}" }
    steps:
      - run: make
`
const wide = file(WIDE, 'd1')
const NARROW = narrowWorkflow(WIDE, 'build', { tokenPermissions: { contents: 'read' }, oidc: false, secrets: [] }, 'measured').text
const narrowed = file(NARROW, 'd2')

function file(text: string, digest: string, name = 'ci.yml'): PipelineFile {
  return { ...readWorkflow(text, name), digest }
}

let cells = 0
type Outcome = LedgerEntry['rows'][number]['outcome']
/** "kind grant" → outcome; a leading "!" marks what was not declared. */
function entry(rows: Record<string, Outcome>, more: Partial<LedgerEntry> & { digest?: string; job?: string } = {}): LedgerEntry {
  const { digest = 'd1', job = 'build', ...rest } = more
  const number = cells++
  return {
    time: new Date(Date.UTC(2026, 0, 1, 0, 0, number)).toISOString(), cell: `c${number}`, pipeline: { file: 'ci.yml', job, digest },
    evidenceDigest: number.toString(16).padStart(64, '0'), contractDigest: 'f'.repeat(64), mode: 'observe', outcome: { code: 0 },
    rows: Object.entries(rows).map(([name, outcome]) => {
      const [kind, ...grant] = name.replace('!', '').split(' ')
      return { kind: kind!, grant: grant.join(' '), outcome, declared: !name.startsWith('!'), count: null, proof: `proof of ${name}` }
    }),
    ...rest,
  }
}
const of = (report: AuditReport, grant: string): Finding | undefined => report.findings.find(finding => finding.grant === grant)
const states = (report: AuditReport): Record<string, string> => Object.fromEntries(report.findings.map(finding => [finding.grant, finding.state]))

const OBSERVED = { 'github contents: write': 'unused', 'github contents: read': 'used', 'github packages: write': 'unused', 'github id_token: write': 'unused', 'secret NPM_TOKEN (environment)': 'unobservable', 'network *:*': 'used', 'filesystem /usr': 'unused' } as const
const ENFORCED = { 'github contents: read': 'used', 'network api.github.com:443': 'used' } as const

t.test('without evidence each grant is open, one finding each, where it stands', async t => {
  const report = audit([wide], [])
  t.same(states(report), { 'contents: write': 'open', 'packages: write': 'open', 'id_token: write': 'open', NPM_TOKEN: 'open', '*:*': 'open' })
  t.match(of(report, 'packages: write'), { rule: 'inherited-permission', kind: 'github', job: 'build', file: 'ci.yml', line: 4, column: 3, severity: 'medium', evidence: null })
  t.match(of(report, 'NPM_TOKEN'), { line: 9, kind: 'secret' })
  t.match(of(report, '*:*'), { kind: 'network', severity: 'info', line: 7 })
  t.equal(new Set(report.findings.map(finding => finding.id)).size, 5)

  const none = audit([file('on: push\npermissions: {}\njobs:\n  a:\n    runs-on: x\n    steps: [{ run: make }]\n', 'd')], [])
  t.same(states(none), { '*:*': 'open' }, 'a job that holds nothing has too much of nothing')
  const unspecified = audit([file('on: push\njobs:\n  a:\n    runs-on: x\n    steps: [{ run: make }]\n', 'd')], [])
  t.match(of(unspecified, 'default permissions'), { rule: 'unspecified-permissions', state: 'open' })
  const inherit = audit([file('on: push\npermissions: read-all\njobs:\n  a:\n    uses: o/r/.github/workflows/x.yml@v1\n    secrets: inherit\n', 'd')], [])
  t.same(states(inherit), { 'all secrets': 'open', '*:*': 'open' }, 'a read permission alone is no finding')
  t.equal(of(inherit, 'all secrets')!.severity, 'high')

  const own = audit([file(WIDE.replace('permissions:\n  contents: write\n  packages: write\n  id-token: write\n', '').replace('    env:', '    permissions: { packages: write }\n    env:'), 'd9')], [])
  t.match(of(own, 'packages: write'), { rule: 'write-permission', id: of(report, 'packages: write')!.id }, 'the fingerprint does not depend on the place')
})

t.test('the whole loop: open, confirmed, closed, regressed', async t => {
  const observed = entry(OBSERVED)
  const second = audit([wide], [observed])
  t.same(states(second), { 'contents: write': 'confirmed', 'packages: write': 'confirmed', 'id_token: write': 'confirmed', NPM_TOKEN: 'unmeasured' })
  t.equal(second.needed, 1, 'egress was used')
  t.match(of(second, 'contents: write'), { severity: 'high', evidence: { cell: observed.cell, digest: observed.evidenceDigest, time: observed.time, runs: 1 } })
  t.match(of(second, 'contents: write')!.message, /declared, not used in 1 run.*proof of github contents: write/)

  const before = audit([narrowed], [observed])
  t.notOk(before.findings.some(finding => finding.state === 'closed'), 'gone from the file is not yet proven')

  const enforced = entry(ENFORCED, { digest: 'd2', mode: 'enforce' })
  const last = audit([narrowed], [observed, enforced])
  t.same(states(last), { 'contents: write': 'closed', 'packages: write': 'closed', 'id_token: write': 'closed', '*:*': 'closed' })
  for (const finding of last.findings) t.match(finding, { evidence: { cell: enforced.cell, digest: enforced.evidenceDigest }, severity: 'info' })
  t.equal(of(last, 'packages: write')!.id, of(second, 'packages: write')!.id)
  t.equal(last.needed, 1, 'contents: read is held and used')

  const again = audit([wide], [observed, enforced])
  t.match(states(again), { 'contents: write': 'regressed', 'packages: write': 'regressed', 'id_token: write': 'regressed' })
  t.equal(of(again, 'packages: write')!.evidence!.cell, enforced.cell)
  t.equal(again.findings[0]!.state, 'regressed', 'the worst is first')
  t.same(audit([wide], [enforced, observed]), again, 'the order in the ledger does not matter, its times do')
})

t.test('evidence is believed for what it can say and no further', async t => {
  const state = (ledger: LedgerEntry[], grant = 'packages: write', which = wide): string | undefined => of(audit([which], ledger), grant)?.state
  const unused = { 'github packages: write': 'unused' } as const
  t.equal(state([entry(unused, { outcome: { code: 1 } })]), 'open', 'a failed run proves no absence')
  t.equal(state([entry(unused, { outcome: { code: null } })]), 'open', 'nor does a killed one')
  t.equal(state([entry({ 'github packages: write': 'used' }, { outcome: { code: 1 } })]), undefined, 'but what it used, it used')
  t.equal(state([entry(unused), entry({ 'github packages: write': 'used' }), entry(unused)]), undefined, 'one use is enough')
  t.equal(state([entry({ 'github packages: write': 'denied' })]), undefined, 'a refused attempt is a use')
  t.equal(state([entry({ 'github packages: write': 'unobservable' })]), 'unmeasured')
  t.equal(state([entry({ '!github packages: write': 'unused' })]), 'open', 'a row that was not declared is no measurement')
  t.equal(state([entry(unused, { job: 'other' })]), 'open', 'another job\'s run')
  t.equal(state([entry({ 'github packages: read': 'unused' })]), 'open', 'another grant')
  t.equal(state([entry({ 'network packages: write': 'unused' })]), 'open', 'another kind')
  t.equal(state([entry({ 'secret NPM_TOKEN (file)': 'unused' })], 'NPM_TOKEN'), 'confirmed')
  t.equal(state([entry({ 'secret NPM_TOKEN_2 (file)': 'unused' })], 'NPM_TOKEN'), 'open', 'another secret')
  const mixed = audit([wide], [entry(unused), entry({ 'github packages: write': 'unobservable' }), entry(unused)])
  t.match(of(mixed, 'packages: write'), { state: 'confirmed', message: /2 runs.*1 run more could not see/, evidence: { runs: 2 } })
  t.match(of(audit([wide], [entry(unused, { digest: 'older' })]), 'packages: write'), { state: 'confirmed', message: /earlier version/ })

  const closed = (rows: Record<string, Outcome>, more: object): string | undefined => state([entry(unused), entry(rows, { digest: 'd2', mode: 'enforce', ...more })], 'packages: write', narrowed)
  t.equal(closed({}, {}), 'closed')
  t.equal(closed({}, { mode: 'observe' }), undefined, 'nothing was withheld')
  t.equal(closed({}, { outcome: { code: 1 } }), undefined, 'the job failed without it')
  t.equal(closed({}, { digest: 'd3' }), undefined, 'it was another version of the file')
  t.equal(closed({ 'github packages: write': 'unused' }, {}), undefined, 'the contract still had it')
  t.equal(closed({ '!github packages: write': 'denied' }, {}), 'closed', 'tried, refused, and the job went well')
  t.equal(state([entry({}, { digest: 'd2', mode: 'enforce' })], 'packages: write', narrowed), undefined, 'nothing was ever measured')
  t.equal(state([entry({ 'github packages: write': 'used' }), entry(unused), entry({}, { digest: 'd2', mode: 'enforce' })], 'packages: write', narrowed), undefined, 'it had been used')
  t.equal(state([entry({}, { digest: 'd0', mode: 'enforce' }), entry(unused)]), 'confirmed', 'a run before the measurement closed nothing')
  t.equal(state([entry({}, { mode: 'enforce' })], '*:*'), 'closed', 'egress is closed by a contract')
  t.equal(state([entry({ 'network *:*': 'unused' }, { mode: 'enforce' })], '*:*'), 'confirmed')
})

t.test('a default is judged by what runs had of it', async t => {
  const bare = file('on: push\njobs:\n  build:\n    runs-on: x\n    steps: [{ run: make }]\n', 'd0')
  const observed = entry({ 'github contents: write': 'unused', 'github contents: read': 'used', 'github issues: write': 'unused' }, { digest: 'd0' })
  const confirmed = audit([bare], [observed])
  t.match(of(confirmed, 'default permissions'), { state: 'confirmed', message: /contents: write, issues: write/, evidence: { cell: observed.cell } })
  t.equal(of(audit([bare], [entry({ 'github contents: write': 'used' }, { digest: 'd0' })]), 'default permissions'), undefined)
  t.equal(of(audit([bare], [entry({ 'github contents: write': 'unobservable' }, { digest: 'd0' })]), 'default permissions')!.state, 'unmeasured')
  const written = file(narrowWorkflow('on: push\njobs:\n  build:\n    runs-on: x\n    steps: [{ run: make }]\n', 'build', { tokenPermissions: { contents: 'read' } }, 'm').text, 'd5')
  const enforced = entry({ 'github contents: read': 'used' }, { digest: 'd5', mode: 'enforce' })
  t.match(states(audit([written], [observed, enforced])), { 'contents: write': 'closed', 'issues: write': 'closed' })
  t.equal(of(audit([bare], [observed, enforced]), 'default permissions')!.state, 'regressed')
})

t.test('laws: one finding for a grant, every proof is in the ledger, nothing closed that is held', async () => {
  const outcome = fc.constantFrom('used', 'unused', 'denied', 'unobservable', 'undeclared') as fc.Arbitrary<Outcome>
  const rows = fc.dictionary(fc.constantFrom(...Object.keys(OBSERVED), '!github packages: write', 'github issues: write'), outcome)
  const any = fc.array(fc.tuple(rows, fc.constantFrom('d1', 'd2', 'd3'), fc.constantFrom('observe', 'enforce'), fc.constantFrom(0, 1, null)).map(([held, digest, mode, code]) => entry(held, { digest, mode: mode as 'observe', outcome: { code } })), { maxLength: 6 })
  fc.assert(fc.property(any, fc.constantFrom(wide, narrowed), (ledger, which) => {
    const report = audit([which], ledger)
    if (new Set(report.findings.map(finding => finding.id)).size !== report.findings.length) throw new Error('a grant has two findings')
    const { tokenPermissions, oidc } = which.jobs[0]!.grant
    for (const { state, kind, grant, evidence } of report.findings) {
      if (evidence !== null && !ledger.some(one => one.cell === evidence.cell && one.evidenceDigest === evidence.digest)) throw new Error('a proof that nobody has')
      if ((state === 'closed' || state === 'confirmed' || state === 'regressed') && evidence === null) throw new Error(`${state} without proof`)
      if (state === 'confirmed' && ledger.find(one => one.cell === evidence!.cell)!.outcome.code !== 0) throw new Error('confirmed by a failed run')
      const [name, access] = grant.split(': ')
      const held = kind === 'github' && (name === 'id_token' ? oidc : tokenPermissions?.[name!] === access)
      if (state === 'closed' && held) throw new Error(`${grant} is held`)
      if ((state === 'confirmed' || state === 'closed') && ledger.some(one => one.rows.some(row => row.declared && row.kind === kind && row.grant === grant && row.outcome === 'used')) && grant !== '*:*') throw new Error(`${grant} was used`)
    }
    reportSchema.parse(renderJson(report))
  }), { numRuns: 400 })
})

t.test('the text is aligned, safe for a terminal, and says what the states mean', async t => {
  const report = audit([wide], [entry(OBSERVED)])
  const text = renderText(report, { color: false })
  t.match(text, /^confirmed {3}contents: write {2}ci\.yml:3\n {12}job "build"/)
  t.match(text, /\n1 job in 1 file; 3 confirmed, 1 unmeasured; 1 grant used and needed; 1 run in the ledger\nconfirmed: measured, and not used/)
  t.notMatch(text, /\u001b/)
  t.match(renderText(report, { color: true }), /\u001b\[31mconfirmed/)
  t.equal(renderText(audit([], []), { color: false }), '0 jobs in 0 files; no findings; no run in the ledger\n')
  const evil = entry({ 'github packages: write': 'unused' })
  evil.rows[0]!.proof = '\u001b[2J\u0007\n\u009b'
  t.notMatch(renderText(audit([wide], [evil]), { color: false }), /[\u0007\u001b\u009b]/)
})

t.test('SARIF holds what the standard asks for', async t => {
  const observed = entry(OBSERVED)
  observed.rows[0]!.proof = 'see {0} [link](https://x.test)'
  const log = renderSarif(audit([wide, file(NARROW, 'd2', 'a dir/é.yml')], [observed, { ...entry(ENFORCED, { digest: 'd2', mode: 'enforce' }), pipeline: { file: 'a dir/é.yml', job: 'build', digest: 'd2' } }, { ...observed, pipeline: { ...observed.pipeline, file: 'a dir/é.yml' } }]))
  // The parts of the 2.1.0 schema that this log uses; the schema itself is not among the packages.
  const text = { type: 'object', required: ['text'], properties: { text: { type: 'string', minLength: 1 }, markdown: { type: 'string' } }, additionalProperties: false }
  const location = { type: 'object', additionalProperties: false, properties: { uri: { type: 'string', format: 'uri-reference', pattern: '^[A-Za-z0-9%._~/-]+$' }, index: { type: 'integer', minimum: -1 } } }
  const level = { enum: ['none', 'note', 'warning', 'error'] }
  const schema = {
    type: 'object', required: ['version', 'runs'], additionalProperties: false,
    properties: {
      $schema: { type: 'string' }, version: { const: '2.1.0' },
      runs: {
        type: 'array', minItems: 1,
        items: {
          type: 'object', required: ['tool', 'results'], additionalProperties: false,
          properties: {
            columnKind: { enum: ['utf16CodeUnits', 'unicodeCodePoints'] },
            artifacts: { type: 'array', items: { type: 'object', properties: { sourceLanguage: { type: 'string' }, location }, additionalProperties: false } },
            tool: {
              type: 'object', required: ['driver'], additionalProperties: false,
              properties: {
                driver: {
                  type: 'object', required: ['name'], additionalProperties: false,
                  properties: {
                    name: { type: 'string' }, version: { type: 'string' }, semanticVersion: { type: 'string', pattern: '^\\d+\\.\\d+\\.\\d+' },
                    rules: {
                      type: 'array', uniqueItems: true,
                      items: { type: 'object', required: ['id'], additionalProperties: false, properties: { id: { type: 'string' }, name: { type: 'string' }, shortDescription: text, fullDescription: text, help: text, defaultConfiguration: { type: 'object', properties: { level }, additionalProperties: false } } },
                    },
                  },
                },
              },
            },
            results: {
              type: 'array',
              items: {
                type: 'object', required: ['message', 'ruleId', 'level', 'locations', 'partialFingerprints'], additionalProperties: false,
                properties: {
                  kind: { enum: ['pass', 'fail'] }, level, message: text, ruleId: { type: 'string' }, ruleIndex: { type: 'integer', minimum: 0 },
                  partialFingerprints: { type: 'object', additionalProperties: { type: 'string' } }, properties: { type: 'object' },
                  locations: {
                    type: 'array', minItems: 1,
                    items: {
                      type: 'object', additionalProperties: false,
                      properties: { physicalLocation: { type: 'object', required: ['artifactLocation'], additionalProperties: false, properties: { artifactLocation: location, region: { type: 'object', additionalProperties: false, properties: Object.fromEntries(['startLine', 'startColumn', 'endLine', 'endColumn'].map(name => [name, { type: 'integer', minimum: 1 }])) } } } },
                    },
                  },
                },
                if: { properties: { kind: { const: 'pass' } } }, then: { properties: { level: { const: 'none' } } },
              },
            },
          },
        },
      },
    },
  }
  const ajv = new Ajv({ strict: false, formats: { 'uri-reference': true } })
  const validate = ajv.compile(schema)
  t.ok(validate(JSON.parse(JSON.stringify(log))), ajv.errorsText(validate.errors))
  const { runs } = log as { runs: { tool: { driver: { rules: { id: string }[] } }; results: { ruleId: string; ruleIndex: number; kind: string; message: { text: string }; properties: { state: string }; partialFingerprints: Record<string, string>; locations: { physicalLocation: { artifactLocation: { uri: string } } }[] }[] }[] }
  const { tool, results } = runs[0]!
  t.same(tool.driver.rules.map(rule => rule.id), Object.values(RULES).map(rule => rule.id))
  for (const result of results) t.equal(tool.driver.rules[result.ruleIndex]!.id, result.ruleId)
  t.same([...new Set(results.map(result => result.properties.state))], STATES.filter(state => state === 'confirmed' || state === 'unmeasured' || state === 'closed'))
  t.ok(results.filter(result => result.properties.state === 'closed').every(result => result.kind === 'pass'))
  t.equal(new Set(results.map(result => result.partialFingerprints['ambitGrant/v1'])).size, results.length)
  t.ok(results.some(result => result.locations[0]!.physicalLocation.artifactLocation.uri === 'a%20dir/%C3%A9.yml'))
  t.match(results[0]!.message.text, 'see {{0}} \\[link\\](https://x.test)')
})
