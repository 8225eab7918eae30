import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import type { JobGrant } from '../../src/authority/kind.ts'
import { KNOWN } from '../../src/pipeline/github/permissions.ts'
import { firstError } from '../../src/pipeline/github/parser.ts'
import { readWorkflow } from '../../src/pipeline/github/workflow.ts'
import { narrowWorkflow, unifiedDiff } from '../../src/pipeline/narrow.ts'

const dir = mkdtempSync(join(tmpdir(), 'ambit-test-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

const PROOF = 'measured in cell c1'
const grantOf = (text: string, id: string): JobGrant => readWorkflow(text, 'w').jobs.find(job => job.id === id)!.grant
/** Only the lines that differ, as a reviewer sees them. */
const changes = (before: string, after: string): string[] => unifiedDiff('w.yml', before, after).split('\n').slice(2).filter(line => /^[+-]/.test(line))
const narrow = (text: string, grant: Partial<JobGrant>, id = 'build'): string => narrowWorkflow(text, id, grant, PROOF).text

t.test('only the lines that must change do, and the block names its proof', async t => {
  const text = `# top
on: push   # odd   spacing

permissions:   # who asked for this?
  contents: write   # releases
  # nobody knows
  issues: write
  id-token: write

jobs:
  build:
    runs-on: "ubuntu-latest"
    steps:
    - run:   make
`
  t.same(changes(text, narrow(text, { tokenPermissions: { contents: 'read', checks: 'write' }, oidc: false })), [
    '-permissions:   # who asked for this?', '-  contents: write   # releases', `+permissions:   # who asked for this? # ambit: ${PROOF}`, '+  contents: read   # releases', '-  issues: write', '-  id-token: write',
  ])
  t.same(changes(text, narrow(text, { tokenPermissions: {}, oidc: false })).slice(-1), [`+permissions: {} # ambit: ${PROOF}`])
  t.same(narrowWorkflow(text, 'build', {}, PROOF), { text, changed: false })
  t.same(narrowWorkflow(text, 'build', { tokenPermissions: { contents: 'write', issues: 'write' }, oidc: true }, PROOF), { text, changed: false })
  t.same(narrowWorkflow(text, 'build', { tokenPermissions: null }, PROOF), { text, changed: false })
  t.same(grantOf(narrow(text, { oidc: false }), 'build'), { tokenPermissions: { contents: 'write', issues: 'write' }, oidc: false, secrets: [], egress: null })

  const once = narrow(text, { tokenPermissions: { contents: 'write', issues: 'read' } })
  const twice = narrowWorkflow(once, 'build', { tokenPermissions: { contents: 'write' } }, 'measured in cell c2').text
  t.match(twice, /# who asked for this\? # ambit: measured in cell c2\n/)
  t.notMatch(twice, /cell c1/, 'a newer proof takes the older one\'s place')
})

t.test('blocks of every shape are narrowed', async t => {
  const wrap = (top: string, own: string, more = ''): string => `on: push\n${top}jobs:\n  build:\n    runs-on: ubuntu-latest\n${own}    steps:\n      - run: make\n${more}`
  const other = '  other:\n    runs-on: ubuntu-latest\n    steps: [{ run: make }]\n'
  const grant = { tokenPermissions: { contents: 'read' as const }, oidc: false }
  const own = `+    permissions: # ambit: ${PROOF}`
  for (const [name, text, expected] of [
    ['default', wrap('', ''), [own, '+      contents: read']],
    ['inherited, several jobs', wrap('permissions: write-all\n', '', other), [own, '+      contents: read']],
    ['inherited shorthand, one job', wrap('permissions: write-all # why\n', ''), ['-permissions: write-all # why', `+permissions: # ambit: ${PROOF} # why`, '+  contents: read']],
    ['own shorthand', wrap('', '    permissions: read-all\n'), ['-    permissions: read-all', own, '+      contents: read']],
    ['flow', wrap('', '    permissions: { contents: write, packages: write }\n'), ['-    permissions: { contents: write, packages: write }', own, '+      contents: read']],
    ['quoted', wrap('', '    permissions:\n      "contents": \'write\'\n      packages: "write"\n'), ['-    permissions:', '-      "contents": \'write\'', '-      packages: "write"', own, '+      "contents": read']],
    ['own and above, one job', wrap('permissions:\n  contents: write\n  issues: write\n', '    permissions:\n      contents: write\n'), ['-permissions:', '-  contents: write', '-  issues: write', `+permissions: # ambit: ${PROOF}`, '+  contents: read', '-    permissions:', '-      contents: write', own, '+      contents: read']],
    ['own and above, several jobs', wrap('permissions: write-all\n', '    permissions:\n      contents: write\n', other), ['-    permissions:', '-      contents: write', own, '+      contents: read']],
  ] as const) {
    const after = narrow(text, grant)
    t.same(changes(text, after), expected, name)
    t.same(grantOf(after, 'build').tokenPermissions, { contents: 'read' }, name)
    if (text.includes('other:')) t.same(grantOf(after, 'other'), grantOf(text, 'other'))
    t.equal(narrow(after, grant), after)
    const windows = text.replaceAll('\n', '\r\n')
    t.equal(narrow(windows, grant), after.replaceAll('\n', '\r\n'), `${name}, with carriage returns`)
  }
  const flow = 'on: push\njobs: { build: { runs-on: x, steps: [{ run: make }] }, other: { permissions: write-all, runs-on: x, steps: [{ run: make }] } }\n'
  t.equal(narrow(flow, grant), flow.replace('{ runs', '{ permissions: { contents: read }, runs'))
  t.equal(narrow(flow, { tokenPermissions: {}, oidc: false }, 'other'), flow.replace('permissions: write-all', 'permissions: {}'))
  const list = 'on: push\njobs:\n  build:\n    runs-on:\n      - self-hosted\n      - linux\n    steps:\n      - run: make'
  t.same(changes(list, narrow(list, grant)), [own, '+      contents: read'])
})

t.test('secrets go where a line hands over exactly one', async t => {
  const text = `on: push
env:
  KEPT: \${{ secrets.KEPT }}
  GONE: \${{ secrets.gone }}   # why
jobs:
  build:
    runs-on: ubuntu-latest
    env: { A: "\${{ secrets.A }}", B: "\${{ secrets.B }}", C: plain }
    steps:
      - env:
          TOKEN: \${{ secrets.STEP }}
        run: make
      - run: make
        env:
          ONLY: '\${{secrets.STEP}}'
      - run: make
        env: { MIXED: "x-\${{ secrets.MIXED }}", T: "\${{ secrets.GITHUB_TOKEN }}" }
`
  t.same(narrowWorkflow(text, 'build', { tokenPermissions: null }, PROOF), { text, changed: false }, 'secrets that nobody spoke of stay')
  const after = narrow(text, { secrets: ['KEPT', 'A'] })
  t.same(changes(text, after), [
    '-  GONE: ${{ secrets.gone }}   # why', '-    env: { A: "${{ secrets.A }}", B: "${{ secrets.B }}", C: plain }', '+    env: { A: "${{ secrets.A }}", C: plain }',
    '-      - env:', '-          TOKEN: ${{ secrets.STEP }}', '-        run: make', '-        env:', '-          ONLY: \'${{secrets.STEP}}\'', '+      - run: make',
  ])
  t.same(grantOf(after, 'build').secrets, ['KEPT', 'A', 'MIXED'], 'what is part of more stays')
  t.equal(narrow(after, { secrets: ['KEPT', 'A'] }), after)

  const two = text.replace('jobs:\n', 'jobs:\n  other:\n    runs-on: x\n    steps: [{ run: make }]\n')
  t.same(grantOf(narrow(two, { secrets: [] }), 'other'), grantOf(two, 'other'), 'another job keeps what stands above both')
  t.match(narrow(two, { secrets: [] }), /GONE: /)
})

t.test('what jobs share by an anchor is not changed behind a job\'s back', async t => {
  const shared = 'on: push\njobs:\n  build:\n    runs-on: x\n    permissions: &p\n      contents: write\n    env: &e\n      A: ${{ secrets.A }}\n      B: x\n    steps: [{ run: make }]\n  other:\n    runs-on: x\n    permissions: *p\n    env: *e\n    steps: [{ run: make }]\n  whole: &w\n    runs-on: x\n    steps: [{ run: make }]\n  copy: *w\n'
  t.throws(() => narrow(shared, { tokenPermissions: {} }), { code: 'PIPELINE_INVALID', message: /anchor/ })
  t.throws(() => narrow(shared, { secrets: [] }), { code: 'PIPELINE_INVALID', message: /other/ })
  t.throws(() => narrow(shared, { tokenPermissions: {} }, 'copy'), { code: 'PIPELINE_INVALID' })
  t.throws(() => narrow(shared, { tokenPermissions: {} }, 'whole'), { code: 'PIPELINE_INVALID' })
  const alias = narrow(shared, { tokenPermissions: { contents: 'read' } }, 'other')
  t.same(grantOf(alias, 'other').tokenPermissions, { contents: 'read' }, 'the job that has the alias gets a block of its own')
  t.same(grantOf(alias, 'build').tokenPermissions, { contents: 'write' })
  t.throws(() => narrow(shared, { tokenPermissions: {} }, 'nobody'), { code: 'USAGE', message: /build, other/ })
})

t.test('diffs are what git applies', async t => {
  t.equal(unifiedDiff('a.yml', 'x\n', 'x\n'), '')
  spawnSync('git', ['init', '-q', dir])
  for (const [name, before, after] of [['.github/workflows/ci.yml', 'a\nb\nc\n', 'a\nc\n'], ['a b/c d.yml', 'x', 'y\nz'], ['crlf.yml', 'a\r\nb\r\n', 'a\r\nc\r\n'], ['é.yml', '', 'x\n']] as const) {
    mkdirSync(dirname(join(dir, name)), { recursive: true })
    writeFileSync(join(dir, name), before)
    const { status, stderr } = spawnSync('git', ['apply', '--whitespace=nowarn', '-'], { cwd: dir, input: unifiedDiff(name, before, after), encoding: 'utf8' })
    t.equal(status, 0, `${name}: ${stderr}`)
    t.equal(readFileSync(join(dir, name), 'utf8'), after, name)
  }
  t.match(unifiedDiff('/abs/ci.yml', 'a\n', 'b\n'), /^--- a\/abs\/ci\.yml\n\+\+\+ b\/abs\/ci\.yml\n@@/)
})

t.test('laws: never wider, others untouched, twice is once, and GitHub still reads it', async t => {
  const names = [...KNOWN.keys()]
  const permissions = fc.uniqueArray(fc.constantFrom(...names), { maxLength: 5 }).chain(chosen => fc.record(Object.fromEntries(chosen.map(name => [name, fc.constantFrom(...KNOWN.get(name)!, 'none')])) as Record<string, fc.Arbitrary<string>>))
  const shape = fc.constantFrom('block', 'flow', 'commented')
  const blockText = fc.oneof(fc.constant(''), fc.constantFrom('read-all', 'write-all').map(word => `permissions: ${word}\n`), fc.tuple(permissions, shape).map(([held, form]) => {
    const pairs = Object.entries(held)
    if (pairs.length === 0) return 'permissions: {}\n'
    if (form === 'flow') return `permissions: { ${pairs.map(([name, access]) => `${name}: ${access}`).join(', ')} }\n`
    return `permissions:${form === 'commented' ? ' # c' : ''}\n${pairs.map(([name, access], i) => `  ${form === 'commented' && i % 2 ? '# note\n  ' : ''}${name}: ${access}${form === 'commented' ? ' # d' : ''}\n`).join('')}`
  }))
  const env = fc.subarray(['A', 'B', 'C']).map(secrets => (secrets.length === 0 ? '' : `env:\n${secrets.map(name => `  ${name}: \${{ secrets.${name} }}\n`).join('')}`))
  const indent = (text: string, by: number): string => text.replace(/^(?=.)/gm, ' '.repeat(by))
  const jobText = (id: string): fc.Arbitrary<string> => fc.tuple(blockText, env, fc.boolean(), env).map(([block, vars, first, step]) =>
    `  ${id}:\n${first ? indent(block, 4) : ''}    runs-on: ubuntu-latest\n${first ? '' : indent(block, 4)}${indent(vars, 4)}    steps:\n      - run: make\n${indent(step, 8)}`)
  const workflow = fc.tuple(blockText, env, jobText('build'), fc.option(jobText('other'), { nil: '' })).map(([top, vars, build, other]) => `on: push\n${top}${vars}jobs:\n${build}${other}`)
  const grant = fc.record({
    tokenPermissions: fc.oneof(fc.constant(null), permissions.map(held => Object.fromEntries(Object.entries(held).filter(([, access]) => access !== 'none').map(([name, access]) => [name.replaceAll('-', '_'), access as 'read' | 'write'])))),
    oidc: fc.boolean(), secrets: fc.subarray(['A', 'B', 'C', 'D']),
  }, { requiredKeys: [] })
  let changed = 0
  fc.assert(fc.property(workflow, grant, (text, asked) => {
    const before = readWorkflow(text, 'w').jobs
    const result = narrowWorkflow(text, 'build', asked as Partial<JobGrant>, PROOF)
    if (firstError(result.text) !== null) throw new Error('GitHub refuses it')
    const after = readWorkflow(result.text, 'w').jobs
    const [was, now] = [before[0]!.grant, after[0]!.grant]
    if (was.tokenPermissions !== null) {
      for (const [name, access] of Object.entries(now.tokenPermissions!)) {
        const held = was.tokenPermissions[name]
        if (held === undefined || (held === 'read' && access === 'write')) throw new Error(`${name} was widened`)
      }
      if (asked.tokenPermissions) {
        for (const [name, access] of Object.entries(was.tokenPermissions)) {
          const wanted = asked.tokenPermissions[name]
          const expected = wanted === undefined ? undefined : wanted === 'read' ? 'read' : access
          if (now.tokenPermissions![name] !== expected) throw new Error(`${name} is ${now.tokenPermissions![name]}, not ${expected}`)
        }
      }
      if (asked.oidc === false && now.oidc) throw new Error('OIDC stayed')
    }
    if (now.oidc && !was.oidc) throw new Error('OIDC was added')
    if (now.secrets.some(name => !was.secrets.includes(name))) throw new Error('a secret was added')
    if (asked.secrets && before.length === 1 && now.secrets.some(name => !asked.secrets!.includes(name))) throw new Error('a secret stayed')
    if (JSON.stringify(before[1]?.grant) !== JSON.stringify(after[1]?.grant)) throw new Error('the other job changed')
    if (narrowWorkflow(result.text, 'build', asked as Partial<JobGrant>, PROOF).changed) throw new Error('twice is not once')
    if (result.changed) changed++
  }), { numRuns: 600 })
  t.ok(changed > 200, `${changed} of 600 workflows were narrowed`)
})
