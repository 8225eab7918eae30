import fc from 'fast-check'
import t from 'tap'
import { KINDS } from '../../src/authority/kinds.ts'
import { readContract } from '../../src/contract/read.ts'
import { contractDigest } from '../../src/contract/write.ts'
import { narrowContract } from '../../src/contract/narrow.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { renderVerdict, verdictJson } from '../../src/verdict/forms.ts'
import { judge } from '../../src/verdict/verdict.ts'
import { CASES } from '../authority/arbitraries.ts'
import { ended, exec, execFailed, file, fileFailed, flow, hooks, request, response, started, syscalls } from '../authority/evidence.ts'

const CONTRACT = readContract(`apiVersion: ambit/v1
kind: Cell
metadata: { name: test }
spec:
  mode: observe
  ttl: 1m
  authority:
    github: { permissions: { contents: write, packages: write }, repositories: [o/r] }
    network: [{ host: '*', port: '*' }]
    filesystem: { read: [/], write: [/workspace, /tmp] }
    exec: ['*']
    syscall: { profile: build }
    secret: [{ name: KEY }]
`, 'c.yaml')
const EVENTS: EvidenceBody[] = [
  started(CONTRACT), hooks(), exec('/usr/bin/curl'), file('/usr/lib/x86_64-linux-gnu/libc.so.6'), file('/workspace/out', 'write', true),
  request('GET', '/repos/o/r/releases/latest'), response(200), flow('api.github.com', 443), syscalls({ read: { succeeded: 2 }, unshare: { refused: 1 } }), ended,
]

t.test('a verdict says of each grant what the evidence says', async t => {
  const verdict = judge(CONTRACT, EVENTS)
  const { rows, coverage } = verdict
  t.match(verdict, { cell: 'c0ffee', mode: 'observe', contractDigest: contractDigest(CONTRACT), outcome: { code: 0, signal: null, reason: 'exited' } })
  t.same(coverage, [])
  const of = (kind: string): string[] => rows.filter(row => row.kind === kind).map(row => `${row.grant}: ${row.outcome}`)
  t.same(of('github'), ['contents: write: unused', 'contents: read: used', 'packages: write: unused'])
  t.same(of('network'), ['*:*: used'])
  t.same(of('filesystem'), ['read /: used', 'write /workspace: used', 'write /tmp: unused'])
  t.same(of('exec'), ['*: used', '/usr/bin/curl: used'])
  t.same(of('secret'), ['KEY (environment): unobservable'])
  t.match(rows.find(row => row.kind === 'syscall' && row.grant === 'unshare'), { outcome: 'denied', count: 1 })
  t.ok(rows.every(row => row.proof.length > 0), 'each with a proof')
})

t.test('evidence that is not whole is judged, and nothing in it is called unused', async t => {
  for (const events of [[], EVENTS.slice(0, 1), EVENTS.slice(0, -1), EVENTS.filter(event => event.type !== 'coverage'), [...EVENTS.slice(0, -1), ...['exec', 'file', 'syscall', 'network', 'api'].map(family => ({ type: 'loss', event: 'x', family, produced: 9, delivered: 8, dropped: 1 }) as EvidenceBody), ended]]) {
    const verdict = judge(CONTRACT, events)
    t.notOk(verdict.rows.some(row => row.outcome === 'unused'))
    t.ok(verdict.rows.some(row => row.outcome === 'unobservable'))
    t.ok(verdict.coverage.length > 0)
    t.match(renderVerdict(verdict, { color: false, all: false }), /coverage  what the evidence cannot speak of/)
  }
  t.match(judge(CONTRACT, EVENTS.slice(0, -1)).outcome, { code: null, signal: null, reason: 'unfinished' })
  t.match(judge(CONTRACT, []), { cell: '', mode: 'observe' })
})

t.test('the verdict under a narrowed contract has nothing unused', async t => {
  t.notOk(judge(narrowContract(CONTRACT, EVENTS), EVENTS).rows.some(row => row.outcome === 'unused'))
})

t.test('the mode is how the cell ran, whatever it is judged by', async t => {
  const enforced = [started(CONTRACT, 'enforce'), ...EVENTS.slice(1)]
  t.equal(judge(CONTRACT, enforced).mode, 'enforce')
})

t.test('a terminal gets a table for each kind, long groups folded', async t => {
  const text = renderVerdict(judge(CONTRACT, EVENTS), { color: false, all: false })
  t.match(text, /^cell c0ffee {2}observe, exit status 0, contract [0-9a-f]{12}: 1 denied, /)
  for (const kind of KINDS) t.match(text, new RegExp(`^${kind.name}  `, 'm'))
  t.match(text, / unused +contents: write +declared +0 {2}only read was used/)
  t.match(text, / denied +unshare +- +1 /)
  t.match(text, /… \d+ more: .*\(--all shows them\)/)
  t.ok(text.split('\n').length < 50)
  const all = renderVerdict(judge(CONTRACT, EVENTS), { color: false, all: true })
  t.notMatch(all, /--all/)
  t.ok(all.split('\n').length > 120)
  t.notMatch(text + all, /\u001b/)
  t.match(renderVerdict(judge(CONTRACT, EVENTS), { color: true, all: false }), /\u001b\[31m1 denied/)
  const killed = { ...ended, code: null, signal: 'SIGKILL', reason: 'memory' } as EvidenceBody
  t.match(renderVerdict(judge(CONTRACT, [...EVENTS.slice(0, -1), killed]), { color: false, all: false }), /ended by SIGKILL \(memory\)/)
})

t.test('what a job chose is shown, not obeyed', async t => {
  const evil = '\u001b]0;owned\u0007\r\n\u009b31m'
  const none = readContract('apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec: { mode: enforce, ttl: 1m }\n', 'c.yaml')
  const events: EvidenceBody[] = [
    { ...started(none), cell: evil } as EvidenceBody, hooks(), fileFailed(`/x${evil}`), execFailed(`/y${evil}`), file(`/z${evil}`), exec(`/w${evil}`),
    flow(evil, 443, { decision: 'refused', reason: evil }), { ...request('POST', '/repos/o/r/issues'), process: { pid: 1, start: '1', comm: evil } } as EvidenceBody, response(403), syscalls({ [evil]: { refused: 1 } }), ended,
  ]
  const verdict = judge(none, events)
  t.ok(verdict.rows.length >= 7)
  for (const all of [false, true]) t.notMatch(renderVerdict(verdict, { color: false, all }), /[\u0000-\u0009\u000b-\u001f\u007f-\u009f]/)
  t.ok(renderVerdict(verdict, { color: false, all: true }).split('\n').every(line => line === '' || /^(cell|  |\w+  )/.test(line)), 'no line of its own')
})

t.test('as data it is the same, counted', async t => {
  const verdict = judge(CONTRACT, EVENTS)
  const data = JSON.parse(JSON.stringify(verdictJson(verdict))) as { rows: { outcome: string }[]; totals: Record<string, number> }
  t.same(data.rows, verdict.rows)
  t.same(Object.values(data.totals).reduce((sum, count) => sum + count, 0), verdict.rows.length)
  t.match(data.rows.filter(row => (row as { kind?: string }).kind === 'filesystem'), [{ outcome: 'used' }], 'the first row of a kind can be matched alone')
})

t.test('any evidence of any kind can be judged and shown', async t => {
  const any = fc.tuple(...Object.values(CASES).map(one => one.events)).map(lists => lists.flat())
  t.doesNotThrow(() => fc.assert(fc.property(any, fc.boolean(), (events, whole) => {
    const verdict = judge(CONTRACT, whole ? [started(CONTRACT), hooks(), ...events, ended] : events)
    renderVerdict(verdict, { color: true, all: whole })
    return verdict.rows.every(row => row.proof !== '' && (whole || row.outcome !== 'unused'))
  }), { numRuns: 200 }))
})
