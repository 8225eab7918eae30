import t from 'tap'
import { exec as kind, type ExecGrant } from '../../src/authority/exec.ts'
import { secret } from '../../src/authority/secret.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { coverage, exec, execFailed, file, script, startedWhere, startedWith } from './evidence.ts'

const used = (events: EvidenceBody[]) => {
  const all = kind.nothingUsed()
  for (const event of events) kind.observe(event, all)
  return all
}
const rows = (declared: ExecGrant[], events: EvidenceBody[]) => kind.compare(kind.schema.parse(declared), used(events), coverage()).map(row => `${row.grant}: ${row.outcome}`)
const narrow = (declared: ExecGrant[], events: EvidenceBody[]) => kind.narrow(kind.schema.parse(declared), used(events), coverage())

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

const [RIGHT, WRONG] = ['a'.repeat(64), 'b'.repeat(64)]
const GIT = { path: '/usr/bin/git', sha256: RIGHT }
const found = (sha256: string) => startedWith({ programs: [{ path: '/usr/bin/git', sha256, dev: '8:1', ino: '77' }] })

t.test('a program with a digest is used when its content was the one that is named', async t => {
  t.same(rows([GIT], [found(RIGHT), exec('/usr/bin/git')]), [`/usr/bin/git sha256:${RIGHT.slice(0, 12)}: used`])
  t.match(kind.compare([GIT], used([found(RIGHT), exec('/usr/bin/git')]), coverage())[0]!.proof, RIGHT, 'the whole digest is in the proof')
  t.same(rows([GIT], [found(WRONG), exec('/usr/bin/git')]), [`/usr/bin/git sha256:${RIGHT.slice(0, 12)}: unused`, '/usr/bin/git: undeclared'])
  t.same(rows([GIT], [exec('/usr/bin/git')]), [`/usr/bin/git sha256:${RIGHT.slice(0, 12)}: unobservable`], 'evidence without digests cannot say')
  t.same(rows([GIT], [found(RIGHT)]), [`/usr/bin/git sha256:${RIGHT.slice(0, 12)}: unused`])
  t.same(narrow([GIT], [found(RIGHT), exec('/usr/bin/git')]), [GIT], 'narrowing keeps the digest')
  t.same([narrow([GIT], [found(WRONG), exec('/usr/bin/git')]), narrow([GIT], [found(RIGHT)]), narrow([GIT], [exec('/usr/bin/git')])], [[], [], [GIT]])
})

t.test('the checked file is that program also when another has taken its path meanwhile', async t => {
  const replaced = { ...exec('/usr/bin/git', true), ino: '77' }
  t.same(rows([GIT], [found(RIGHT), replaced]), [`/usr/bin/git sha256:${RIGHT.slice(0, 12)}: used`])
  t.same(rows([GIT], [found(RIGHT), exec('/usr/bin/git', true)]), [`/usr/bin/git sha256:${RIGHT.slice(0, 12)}: unused`, '/usr/bin/git (no path leads to it): undeclared'], 'another file is none of its')
})

t.test('a digest is less than the path alone', async t => {
  t.ok(kind.within([GIT], ['/usr/bin/git']))
  t.ok(kind.within([GIT], ['*']))
  t.ok(kind.within([GIT], [GIT]))
  t.notOk(kind.within(['/usr/bin/git'], [GIT]))
  t.notOk(kind.within([{ ...GIT, sha256: WRONG }], [GIT]))
})

t.test('digests that would hold nothing are refused, with the reason', async t => {
  const why = (entry: unknown): string => kind.schema.safeParse([entry]).error?.issues.map(issue => `${issue.path.join('.')}: ${issue.message}`).join('; ') ?? 'taken'
  t.equal(why(GIT), 'taken')
  t.match(why({ sha256: RIGHT }), /^0\.path: .*a digest alone says nothing/)
  t.match(why({ path: '/usr/bin/git' }), /^0\.sha256: must be the SHA-256/)
  t.match(why({ ...GIT, sha256: RIGHT.toUpperCase() }), /lower case/)
  for (const path of ['/workspace/x', '/tmp/x', '/tmp']) t.match(why({ ...GIT, path }), /jobs write in/)
  t.match(why({ ...GIT, path: '*' }), /"\*" is any program, and has no digest/)
  t.match(why({ ...GIT, path: '/dev/shm/x' }), /never part of a cell/)
  t.match(why({ ...GIT, md5: 'x' }), /"md5" is not known/)
  t.notOk(kind.schema.safeParse([GIT, '/usr/bin/git']).success, 'twice')
  t.notOk(kind.schema.safeParse([GIT, '*']).success)
  t.notOk(kind.schema.safeParse(Array.from({ length: 65 }, (_, n) => ({ ...GIT, path: `/usr/bin/${n}` }))).success, 'as many as one plan can carry')
})

t.test('what the evidence cannot tell apart from silence is not called unused', async t => {
  const GRANT = '/opt/tool'
  const sh = exec('/usr/bin/dash')
  const cases: [string, EvidenceBody[], 'unused' | 'unobservable'][] = [
    ['nothing odd', [exec('/usr/bin/git')], 'unused'],
    ['a script that lies where its name says', [...script('/workspace/a.sh', ['/bin/sh', './a.sh']), sh, file('/workspace/a.sh')], 'unused'],
    ['a script by a name that may be a link', [...script('/workspace/a.sh', ['/bin/sh', './a.sh']), sh, file(GRANT)], 'unobservable'],
    ['a script whose interpreter never opened it', [...script('/workspace/a.sh', ['/bin/true', './a.sh'])], 'unobservable'],
    ['a file that was only named', [...script('/workspace/a.sh', ['/bin/sh', './a.sh']), { ...file('/workspace/a.sh'), source: 'name' } as EvidenceBody], 'unobservable'],
    ['an interpreter that is a script', [...script('/workspace/a.sh', ['/bin/sh', GRANT, './a.sh']), file('/workspace/a.sh')], 'unobservable'],
    ['the same, by a relative name', [...script('/workspace/a.sh', ['/bin/sh', 'tool', './a.sh']), file('/workspace/a.sh')], 'unobservable'],
    ['the same, by a link', [...script('/workspace/a.sh', ['/bin/sh', '/workspace/link', './a.sh']), file('/workspace/a.sh')], 'unobservable'],
    ['the same, under arguments that were cut', [...script('/workspace/a.sh', ['/bin/sh', GRANT]), file('/workspace/a.sh')], 'unobservable'],
    ['an option of an interpreter', [...script('/workspace/a.sh', ['/bin/sh', '-e', './a.sh']), file('/workspace/a.sh')], 'unused'],
    ['env', [...script('/workspace/a.sh', ['/usr/bin/env', 'bash', './a.sh']), exec('/usr/bin/bash'), file('/workspace/a.sh')], 'unused'],
    ['arguments of a script', [...script('/workspace/a.sh', ['/bin/sh', './a.sh', GRANT]), file('/workspace/a.sh')], 'unused'],
    ['the loader as a program', [exec('/usr/lib64/ld-linux-x86-64.so.2')], 'unobservable'],
    ['a program with a loader of its own, and a grant that can be one', [startedWith({ loaders: [GRANT] }), exec('/workspace/build/x')], 'unobservable'],
    ['the same, of a program without a path', [startedWith({ loaders: [GRANT] }), exec('/memfd:x', true)], 'unobservable'],
    ['programs of packages have the system\'s loader', [startedWith({ loaders: [GRANT] }), exec('/usr/bin/git')], 'unused'],
    ['a grant that needs a loader is none', [startedWith({ loaders: [] }), exec('/workspace/build/x')], 'unused'],
  ]
  for (const [name, events, outcome] of cases) {
    t.equal(rows([GRANT], events)[0], `${GRANT}: ${outcome}`, name)
    t.same(narrow([GRANT], events), outcome === 'unused' ? [] : [GRANT], `${name}: narrowed`)
  }
  t.match(rows(['/opt/x/ld-own.so.1'], [exec('/usr/bin/git')])[0], /unobservable/, 'a library by its name')
  t.match(rows(['/workspace/own-loader'], [exec('/workspace/build/x')])[0], /unobservable/, 'what a job makes may be one')
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
