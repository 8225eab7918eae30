import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { AmbitError } from '../../src/errors.ts'
import { authorityIn, segments, soleSecret } from '../../src/pipeline/github/expressions.ts'
import { KNOWN } from '../../src/pipeline/github/permissions.ts'
import { readWorkflow } from '../../src/pipeline/github/workflow.ts'
import { authorityGraph, type Job } from '../../src/pipeline/graph.ts'
import { readPipelines } from '../../src/pipeline/read.ts'

const dir = realpathSync(mkdtempSync(join(tmpdir(), 'ambit-test-')))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

let trees = 0
function tree(files: Record<string, string | Buffer>): string {
  const root = join(dir, `tree-${trees++}`)
  for (const [name, content] of Object.entries({ '.github/workflows/.keep': '', ...files })) {
    mkdirSync(dirname(join(root, name)), { recursive: true })
    writeFileSync(join(root, name), content)
  }
  return root
}
const CI = '.github/workflows/ci.yml'
const job = (text: string, id?: string): Job => {
  const { jobs } = readWorkflow(text, 'ci.yml')
  return id === undefined ? jobs[0]! : jobs.find(one => one.id === id)!
}
const one = (top: string, own = '', steps = '      - run: make'): string => `on: push\n${top}jobs:\n  one:\n    runs-on: ubuntu-latest\n${own}    steps:\n${steps}\n`

t.test('permissions mean what they mean to GitHub', async t => {
  t.equal(job(one('')).grant.tokenPermissions, null, 'absent: the platform\'s default')
  t.same(job(one('permissions: {}\n')).grant.tokenPermissions, {}, 'empty: none')
  t.same(job(one('permissions:\n  contents: write\n  pull-requests: read\n  issues: none\n')).grant.tokenPermissions, { contents: 'write', pull_requests: 'read' })
  t.same(job(one('permissions: write-all\n', '    permissions:\n      issues: read\n')).grant.tokenPermissions, { issues: 'read' }, 'a job\'s block replaces the workflow\'s')
  t.same(job(one('permissions: write-all\n', '    permissions: {}\n')).grant, { tokenPermissions: {}, oidc: false, secrets: [], egress: null })

  const readAll = job(one('permissions: read-all\n')).grant
  t.equal(readAll.tokenPermissions!['contents'], 'read')
  t.notOk(Object.values(readAll.tokenPermissions!).includes('write'))
  t.equal(readAll.oidc, false)
  t.notOk('copilot_requests' in readAll.tokenPermissions!, 'what cannot be read is not in read-all')
  const writeAll = job(one('permissions: write-all\n')).grant
  t.equal(writeAll.tokenPermissions!['packages'], 'write')
  t.equal(writeAll.tokenPermissions!['models'], 'read', 'what cannot be written is read')
  t.equal(writeAll.oidc, true)
  t.equal(Object.keys(writeAll.tokenPermissions!).length, KNOWN.size - 1)
  const withToken = job(one('permissions: { id-token: write, contents: read }\n'))
  t.same(withToken.grant.tokenPermissions, { contents: 'read' })
  t.equal(withToken.grant.oidc, true)
  t.match(withToken.grantSources, [{ kind: 'oidc', name: 'id_token', level: 'workflow', line: 2, column: 16 }, { kind: 'permission', name: 'contents', access: 'read', line: 2 }])
})

t.test('secrets are found by GitHub\'s expression parser, at every level, and belong to the job that they reach', async t => {
  const text = `on: push
env:
  TOP: \${{ secrets.TOP }}
jobs:
  a:
    runs-on: ubuntu-latest
    env: { J: "x \${{ secrets['job_one'] || secrets.OTHER }}" }
    steps:
      - run: echo \${{ format('{0} }} {1}', secrets.IN_RUN, 'secrets.NOT') }} secrets.NEITHER
      - uses: some/action@v1
        with: { token: "\${{ secrets.GITHUB_TOKEN }}", key: "\${{ secrets.WITH }}" }
      - run: echo
        env: { T: "\${{ github.token }}", E: "\${{ secrets.STEP }}" }
  b:
    runs-on: ubuntu-latest
    steps: [{ run: make }]
  c:
    uses: ./.github/workflows/other.yml
    secrets: inherit
  d:
    runs-on: ubuntu-latest
    steps: [{ run: "echo '\${{ toJSON(secrets) }}'" }]
  e:
    uses: ./.github/workflows/other.yml
    secrets: { inner: "\${{ secrets.PASSED }}" }
`
  t.same(job(text, 'a').grant.secrets, ['TOP', 'JOB_ONE', 'OTHER', 'IN_RUN', 'WITH', 'STEP'])
  t.same(job(text, 'b').grant.secrets, ['TOP'])
  t.same(job(text, 'c').grant.secrets, ['TOP', '*'])
  t.same(job(text, 'd').grant.secrets, ['TOP', '*'])
  t.same(job(text, 'e').grant.secrets, ['TOP', 'PASSED'])
  t.same(job(text, 'a').steps.map(step => step.token), [false, true, true])
  t.match(job(text, 'a').grantSources.filter(source => source.name === 'STEP'), [{ level: 'step', line: 13 }])

  t.same(authorityIn('${{ SECRETS.a }}${{ secrets[github.ref] }}${{ github }}'), { secrets: ['A'], token: true, computed: true })
  t.equal(soleSecret(' ${{ secrets.x }} '), 'X')
  for (const other of ['a ${{ secrets.X }}', '${{ secrets.X || 1 }}', '${{ github.token }}', '', 'x', '${{ secrets.X }}${{ secrets.Y }}']) t.equal(soleSecret(other), null, other)
  fc.assert(fc.property(fc.array(fc.oneof(fc.string({ unit: fc.constantFrom(...'ab}\'{ $\n') }).filter(text => !text.includes('${{') && !text.endsWith('$')), fc.constant('${{ \'}}\' }}'))), parts => {
    const text = parts.join('')
    if (text.split('${{').length - 1 !== parts.filter(part => part.startsWith('${{ \'')).length) return
    t.equal(segments(text).map(part => ('literal' in part ? part.literal : `\${{ ${part.expression} }}`)).join(''), text)
  }), { numRuns: 300 })
})

t.test('what only a runner can do is listed with its line, not refused', async t => {
  const text = `on: push
jobs:
  a:
    runs-on: [self-hosted, Windows]
    container: node:20
    services: { db: { image: postgres } }
    strategy: { matrix: { v: [1, 2] } }
    steps:
      - uses: actions/checkout@v4
      - { run: dir, shell: cmd }
      - { run: ls, shell: pwsh }
      - { run: perl -v, shell: "perl -w {0}" }
  b:
    uses: o/r/.github/workflows/x.yml@v1
  c:
    runs-on: { group: big, labels: macos-14 }
    steps: [{ run: make }]
  d:
    runs-on: ubuntu-latest
    defaults: { run: { shell: sh, working-directory: sub } }
    steps: [{ run: make }, { run: make, shell: bash, working-directory: other, timeout-minutes: 3, continue-on-error: true, if: always(), id: x, name: N }]
`
  t.same(job(text, 'a').unsupported.map(({ line, what }) => [line, what]), [
    [4, 'runs-on: Windows'], [5, 'container:'], [6, 'services:'], [7, 'strategy: matrix'], [9, 'uses: actions/checkout@v4'], [10, 'shell: cmd'], [11, 'shell: pwsh'],
  ])
  t.same(job(text, 'b').unsupported.map(({ line, what }) => [line, what]), [[14, 'uses: o/r/.github/workflows/x.yml@v1']])
  t.same(job(text, 'c').unsupported.map(({ what }) => what), ['runs-on: macos-14'])
  const d = job(text, 'd')
  t.same(d.unsupported, [])
  t.match(d.steps, [
    { index: 0, id: null, name: 'Run make', shell: { value: 'sh' }, workingDirectory: { value: 'sub' }, if: null },
    { index: 1, id: 'x', name: 'N', shell: { value: 'bash' }, workingDirectory: { value: 'other' }, if: { value: 'always()' }, continueOnError: { value: 'true' }, timeoutMinutes: { value: '3' }, line: 21 },
  ])
})

t.test('the graph says who reaches what', async t => {
  const workflow = readWorkflow(one('permissions: { contents: read, id-token: write }\nenv: { A: "${{ secrets.A }}" }\n', '', '      - run: make\n      - run: echo ${{ github.token }}${{ secrets.B }}'), 'ci.yml')
  const { nodes, edges } = authorityGraph({ ...workflow, digest: '' })
  t.same(nodes.map(node => node.id).sort(), ['identity:one', 'job:one', 'secret:A', 'secret:B', 'step:one/0', 'step:one/1', 'token:one'])
  const reach = (from: string): string[] => edges.filter(edge => edge.from === from).map(edge => edge.to).sort()
  t.same(reach('job:one'), ['identity:one', 'secret:A', 'secret:B', 'token:one'])
  t.same(reach('step:one/0'), ['identity:one', 'secret:A'])
  t.same(reach('step:one/1'), ['identity:one', 'secret:A', 'secret:B', 'token:one'])
})

t.test('a file, its folder and its repository give the same name and digest', async t => {
  const root = tree({ [CI]: one(''), '.github/workflows/b.yaml': one(''), '.github/workflows/notes.txt': '\t' })
  const all = await readPipelines(root)
  t.same(all.map(file => file.file), ['.github/workflows/b.yaml', '.github/workflows/ci.yml'])
  t.equal(all[1]!.digest, createHash('sha256').update(one('')).digest('hex'))
  t.same(await readPipelines(join(root, CI)), [all[1]])
  t.same(await readPipelines(join(root, '.github/workflows')), all)
  writeFileSync(join(root, 'plain.yml'), `\uFEFF${one('permissions: {}\n').replaceAll('\n', '\r\n')}`)
  const [plain] = await readPipelines(join(root, 'plain.yml'))
  t.equal(plain!.file, 'plain.yml')
  t.same(plain!.jobs[0]!.grant.tokenPermissions, {})
})

t.test('anchors are followed', async t => {
  const text = `on: push
jobs:
  a:
    runs-on: ubuntu-latest
    permissions: &p { contents: write }
    env: &e { A: "\${{ secrets.A }}" }
    steps: &s [{ run: make }]
  b:
    runs-on: ubuntu-latest
    permissions: *p
    env: *e
    steps: *s
`
  t.same(job(text, 'b').grant, job(text, 'a').grant)
  t.equal(job(text, 'b').steps.length, 1)
})

t.test('bad input is named with its place', async t => {
  const refused = async (content: string | Buffer, why: RegExp, line?: number, column?: number): Promise<void> => {
    const root = tree({ [CI]: content })
    const error = await readPipelines(root).then(() => null, (caught: unknown) => caught as AmbitError)
    t.ok(error instanceof AmbitError, String(why))
    t.equal(error!.code, 'PIPELINE_INVALID')
    t.match(error!.detail.why, why)
    t.match(error!.detail.where?.file, /ci\.yml$/)
    t.ok(error!.detail.remedy.length > 0)
    if (line !== undefined) t.equal(error!.detail.where?.line, line, `line of ${why}`)
    if (column !== undefined) t.equal(error!.detail.where?.column, column, `column of ${why}`)
  }
  await refused('on: push\njobs:\n\tone: {}\n', /tab/, 3, 1)
  await refused('on: [push\njobs: {}\n', /not YAML/)
  await refused('', /empty/)
  await refused('- a\n', /not a mapping/, 1)
  await refused('on: push\njobs: {}\n', /it has no jobs/, 2, 7)
  await refused('on: push\n', /jobs/)
  await refused('on: push\njobs:\n  one:\n    runs-on: x\n    stepz: []\n', /stepz/, 5, 5)
  await refused(one('permissions: { contents: admin }\n'), /admin/, 2)
  await refused(one('permissions: { nothing: read }\n'), /nothing/, 2)
  await refused(one('', '', '      - run: echo ${{ secrets.A'), /not closed/, 6)
  await refused(one('', '', '      - run: echo ${{ nope.A }}'), /nope/, 6)
  await refused('on: push\njobs:\n  one:\n    runs-on: x\n    needs: two\n    steps: [{run: a}]\n', /no dependencies/)
  await refused('on: push\non: push\njobs: {a: {runs-on: x, steps: [{run: a}]}}\n', /already defined/, 2)
  await refused(Buffer.from([0x6f, 0x6e, 0xff, 0xfe]), /UTF-8/)
  await refused(`a: ${'x'.repeat(600 * 1024)}`, /KiB/)
  await refused('['.repeat(20_000), /nested|YAML/)
  await refused(`on: push\nx: ${'['.repeat(150)}${']'.repeat(150)}\n`, /nested/)
  await refused('on: *nope\n', /no anchor/, 1, 5)
  await refused('on: &a [*a]\n', /inside what it stands for/)
  await refused('? {a: b}\n: c\non: push\n', /./)
  const bomb = ['a0: &a0 [x, x, x, x, x, x, x, x, x, x]', ...Array.from({ length: 9 }, (_, i) => `a${i + 1}: &a${i + 1} [${Array(10).fill(`*a${i}`).join(', ')}]`)]
  await refused(`${bomb.join('\n')}\n${one('')}`, /aliases/)
  await refused(`${Array.from({ length: 600 }, (_, i) => `k${i}: ${i === 0 ? '&a x' : '*a'}`).join('\n')}\n`, /aliases/)

  const failing = async (path: string): Promise<string> => readPipelines(path).then(() => 'read', (error: AmbitError) => error.code)
  t.equal(await failing(tree({})), 'PIPELINE_INVALID')
  t.equal(await failing(join(dir, 'missing')), 'FILE_UNREADABLE')
})

t.test('links out of the tree, pipes and folders are not read', async t => {
  const outside = join(dir, 'outside.yml')
  writeFileSync(outside, one(''))
  const linked = tree({})
  symlinkSync(outside, join(linked, CI))
  await t.rejects(readPipelines(linked), { code: 'PIPELINE_INVALID', message: /leads out of its tree/ })
  await t.rejects(readPipelines(join(linked, CI)), { code: 'PIPELINE_INVALID' })
  // Without the check the link would be followed: its target is a good workflow.
  t.equal((await readPipelines(outside)).length, 1)
  const within = tree({ 'real.yml': one('') })
  symlinkSync('../../real.yml', join(within, CI))
  t.equal((await readPipelines(within))[0]!.file, CI)
  const piped = tree({})
  execFileSync('mkfifo', [join(piped, CI)])
  await t.rejects(readPipelines(piped), { message: /not a regular file/ })
  const folder = tree({})
  mkdirSync(join(folder, CI))
  await t.rejects(readPipelines(folder), { message: /not a regular file/ })
})

t.test('no text makes the reader do anything but read or refuse', async () => {
  const pieces = ['on: push\n', 'jobs:\n', '  a:\n', '    runs-on: x\n', '    steps:\n', '      - run: y\n', '    permissions: read-all\n', '\t', '&a ', '*a', '${{ secrets.', ' }}', '[', '{', '}', ']', ': ', '- ', '"', '\'', '|\n', '!!binary ', '\u0000', '? ', '<<: ']
  fc.assert(fc.property(fc.array(fc.oneof(fc.constantFrom(...pieces), fc.string({ maxLength: 4 })), { maxLength: 30 }), parts => {
    try {
      readWorkflow(parts.join(''), 'x.yml')
    } catch (error) {
      if (!(error instanceof AmbitError) || error.code !== 'PIPELINE_INVALID') throw error
    }
  }), { numRuns: 1500 })
})
