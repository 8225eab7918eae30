import t from 'tap'
import { exec as kind } from '../../src/authority/exec.ts'
import { secret } from '../../src/authority/secret.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { coverage, exec, execFailed, file, startedWhere } from './evidence.ts'

const used = (events: EvidenceBody[]) => {
  const all = kind.nothingUsed()
  for (const event of events) kind.observe(event, all)
  return all
}
const rows = (declared: string[], events: EvidenceBody[]) => kind.compare(kind.schema.parse(declared), used(events), coverage()).map(row => `${row.grant}: ${row.outcome}`)
const narrow = (declared: string[], events: EvidenceBody[]) => kind.narrow(kind.schema.parse(declared), used(events), coverage())

t.test('a program is its path, not what begins like it', async t => {
  t.same(rows(['/usr/bin/git'], [exec('/usr/bin/gitk')]), ['/usr/bin/git: unused', '/usr/bin/gitk: undeclared'])
  t.same(rows(['/usr/bin'], [exec('/usr/bin/git')]), ['/usr/bin: unused', '/usr/bin/git: undeclared'], 'a directory grants no program')
})

t.test('"*" is used by all that ran, and narrows to it', async t => {
  const events = [exec('/usr/bin/git'), exec('/workspace/build/x'), exec('/usr/bin/git')]
  t.same(rows(['*'], events), ['*: used', '/usr/bin/git: used', '/workspace/build/x: used'])
  t.same(narrow(['*'], events), ['/usr/bin/git', '/workspace/build/x'])
  t.same(narrow(['*'], []), [])
})

t.test('a program without a path can be allowed by "*" alone', async t => {
  const hidden = exec('/memfd:x', true)
  t.same(rows(['*'], [hidden]), ['*: used', '/memfd:x (no path leads to it): used'])
  t.same(narrow(['*'], [hidden]), ['*'], 'no list can name it')
  t.same(rows(['/memfd:x'], [hidden]), ['/memfd:x: unused', '/memfd:x (no path leads to it): undeclared'])
  t.same(narrow(['*'], [exec('/dev/shm/p')]), ['*'], 'nor what lies where no contract can point')
  t.match(kind.compare(['/usr/bin/git'], used([exec('(truncated)/x')]), coverage()), [{ outcome: 'unobservable' }])
})

t.test('a grant that is a link stands for where it leads, and keeps its name', async t => {
  const events = [startedWhere({ '/bin/sh': '/usr/bin/dash' }), exec('/usr/bin/dash')]
  t.same(rows(['/bin/sh'], events), ['/bin/sh: used'])
  t.same(narrow(['/bin/sh', '/usr/bin/git'], events), ['/bin/sh'])
  t.same(rows(['/bin/sh'], [exec('/usr/bin/dash')]), ['/bin/sh: unused', '/usr/bin/dash: undeclared'], 'where it is no link it is another program')
})

t.test('the loader started by itself makes silence mean nothing', async t => {
  const events = [exec('/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2'), exec('/usr/bin/dash')]
  t.same(rows(['/usr/bin/dash', '/usr/bin/git'], events), ['/usr/bin/dash: used', '/usr/bin/git: unobservable', '/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2: undeclared'])
  t.same(narrow(['/usr/bin/git'], events), ['/usr/bin/git'])
})

t.test('what the cell withheld is denied; a search through PATH is not', async t => {
  t.same(rows([], [execFailed('/usr/bin/perl')]), ['/usr/bin/perl: denied'])
  t.same(rows([], [execFailed('/usr/bin/perl', 'EACCES')]), ['/usr/bin/perl: denied'])
  t.same(rows([], [execFailed('/usr/local/bin/gcc', 'ENOENT', false), execFailed('/etc/passwd', 'ENOEXEC'), execFailed('perl')]), [])
  t.same(rows(['/usr/bin/perl'], [execFailed('/usr/bin/perl', 'EACCES')]), ['/usr/bin/perl: unused'])
})

t.test('lists that say two things are refused', async t => {
  t.notOk(kind.schema.safeParse(['*', '/usr/bin/git']).success)
  t.notOk(kind.schema.safeParse(['/usr/bin/git', '/usr/bin/git']).success)
  t.notOk(kind.schema.safeParse(['git']).success)
  t.notOk(kind.schema.safeParse(['/usr/bin/*/..']).success)
})

t.test('a secret in a variable leaves no trace; one in a file does', async t => {
  const declared = secret.schema.parse([{ name: 'A' }, { name: 'B', delivery: 'file' }, { name: 'C', delivery: 'file' }])
  const seen = secret.nothingUsed()
  for (const event of [file('/run/ambit/secrets/B'), file('/run/ambit/secrets/AB'), file('/run/ambit/secrets/C', 'write')]) secret.observe(event, seen)
  const told = (gaps: Parameters<typeof coverage>[0] = {}) => secret.compare(declared, seen, coverage(gaps)).map(row => `${row.grant}: ${row.outcome}`)
  t.same(told(), ['A (environment): unobservable', 'B (file): used', 'C (file): unused'])
  t.same(told({ file: ['lost'] }), ['A (environment): unobservable', 'B (file): used', 'C (file): unobservable'])
  t.same(secret.narrow(declared, seen, coverage()).map(one => one.name), ['A', 'B'])
  t.same(secret.fromJob({ tokenPermissions: {}, oidc: false, secrets: ['A', 'A', 'GITHUB_TOKEN'], egress: null }), [{ name: 'A', delivery: 'environment' }])
  t.notOk(secret.within([{ name: 'A', delivery: 'environment' }], [{ name: 'A', delivery: 'file' }]))
  t.notOk(secret.schema.safeParse([{ name: '../x' }]).success)
})
