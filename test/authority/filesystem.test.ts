import t from 'tap'
import { filesystem } from '../../src/authority/filesystem.ts'
import { changed, coverage, exec, file, fileFailed, looked, startedWhere } from './evidence.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'

const used = (events: EvidenceBody[]) => {
  const all = filesystem.nothingUsed()
  for (const event of events) filesystem.observe(event, all)
  return all
}
const rows = (declared: { read?: string[]; write?: string[] }, events: EvidenceBody[], seen = coverage()) =>
  filesystem.compare(filesystem.schema.parse(declared), used(events), seen).map(row => `${row.grant}: ${row.outcome}`)
const narrow = (declared: { read?: string[]; write?: string[] }, events: EvidenceBody[], seen = coverage()) => filesystem.narrow(filesystem.schema.parse(declared), used(events), seen)

t.test('a grant is a directory, not a prefix of its name', async t => {
  t.same(rows({ read: ['/usr/lib'] }, [file('/usr/libx/secret')]), ['read /usr/lib: unused', 'read /usr/libx/secret: undeclared'])
  t.same(rows({ read: ['/usr/lib'] }, [file('/usr/lib')]), ['read /usr/lib: used'])
  t.same(rows({ read: ['/'] }, [file('/etc/passwd')]), ['read /: used'])
})

t.test('writing allows reading, reading does not allow writing', async t => {
  t.same(rows({ write: ['/workspace'] }, [file('/workspace/a')]), ['write /workspace: unused'])
  t.same(rows({ read: ['/workspace'] }, [file('/workspace/a', 'write')]), ['read /workspace: unused', 'write /workspace: undeclared'])
  t.same(rows({ read: ['/data'] }, [file('/data/a', 'readwrite')]), ['read /data: used', 'write /data/a: undeclared'])
  t.same(narrow({ write: ['/workspace'] }, [file('/workspace/a')]), { read: ['/workspace'], write: [] }, 'what was only read is only readable afterwards')
})

t.test('a grant that is a link stands for where it leads, and keeps its name', async t => {
  const events = [startedWhere({ '/srv/now': '/srv/2026', '/etc/localtime': '/usr/share/zoneinfo/UTC' }), file('/srv/2026/a', 'write'), file('/usr/share/zoneinfo/UTC')]
  const declared = { read: ['/etc/localtime', '/opt'], write: ['/srv/now'] }
  t.same(rows(declared, events), ['read /etc/localtime: used', 'read /opt: unused', 'write /srv/now: used'])
  t.same(narrow(declared, events), { read: ['/etc/localtime'], write: ['/srv/now'] })
  t.ok(rows(declared, events.slice(1)).includes('write /srv/2026/a: undeclared'), 'where they are no links they are other files')
})

t.test('what is looked at and not opened is used, and its parents come without being granted', async t => {
  const events = [looked('/'), looked('/usr'), looked('/usr/share'), file('/usr/share/zoneinfo/UTC'), looked('/etc/apt'), looked('/lib')]
  t.same(rows({ read: ['/etc/apt', '/usr'] }, events), ['read /etc/apt: used', 'read /usr: used'])
  t.same(narrow({ read: ['/'] }, events), { read: ['/etc/apt', '/usr/share/zoneinfo'], write: [] })
  t.same(rows({ read: ['/usr/share/zoneinfo'] }, events), ['read /usr/share/zoneinfo: used', 'read /etc/apt: undeclared'])
})

t.test('a change that is known by its name alone leaves open where it went: no grant to write is called unused', async t => {
  const declared = { write: ['/srv/a', '/srv/b'] }
  t.same(rows(declared, [changed('/srv/a/link/x')]), ['write /srv/a: used', 'write /srv/b: unobservable'])
  t.same(narrow(declared, [changed('/srv/a/link/x')]).write, declared.write)
  t.same(rows(declared, [changed('/proc/self/fd/3')]), ['write /srv/a: unobservable', 'write /srv/b: unobservable'])
})

t.test('a program of the job\'s own is read by executing it', async t => {
  t.same(narrow({ read: ['/'], write: [] }, [exec('/workspace/build/x'), exec('/usr/bin/git')]), { read: ['/workspace'], write: [] })
})

t.test('what the cell withheld is denied; what is nowhere, or the file\'s own affair, is not', async t => {
  t.same(rows({}, [fileFailed('/home/x/.ssh/id', 'ENOENT', true)]), ['read /home/x/.ssh/id: denied'])
  t.same(rows({}, [fileFailed('/home/x/.ssh/id', 'EACCES', true)]), ['read /home/x/.ssh/id: denied'])
  t.same(rows({}, [fileFailed('/no/such', 'ENOENT', false)]), [])
  t.same(rows({}, [fileFailed('/etc/passwd', 'EEXIST', true, 'write')]), [])
  t.same(rows({}, [fileFailed('/usr/new', 'EROFS', false, 'write')]), ['write /usr/new: denied'], 'making a file that is not there yet')
  t.same(rows({ read: ['/home'] }, [fileFailed('/home/x/.ssh/id', 'EACCES', true)]), ['read /home: unused'], 'declared, tried, and of no use')
  t.same(rows({}, [fileFailed('relative', 'ENOENT', true), fileFailed('(unreadable)', 'EACCES', true)]), [])
})

t.test('what the cell refused of its own is denied, whatever was granted; a process that it does not have is not', async t => {
  t.same(rows({ read: ['/'], write: ['/'] }, [fileFailed('/proc/sys/kernel/core_pattern', 'EROFS', true, 'write')]).filter(row => row.endsWith('denied')), ['write /proc/sys/kernel/core_pattern: denied'])
  t.same(rows({}, [fileFailed('/proc/1/environ', 'EPERM', true)]), ['read /proc/1/environ: denied'])
  t.same(rows({}, [fileFailed('/dev/vda', 'ENOENT', true)]), ['read /dev/vda: denied'])
  t.same(rows({}, [fileFailed('/proc/4242/environ', 'ENOENT', true), fileFailed('/proc/self/nothing', 'ENOENT', false), fileFailed('/dev/nothing', 'ENOENT', false)]), [])
})

t.test('what the cell makes for itself is no authority; /tmp and the workspace are', async t => {
  t.same(rows({}, ['/proc/self/maps', '/dev/null', '/run/ambit/secrets/A', '/etc/resolv.conf', '/etc/ld.so.cache', '/', '(unreachable)pipe:[7]'].map(path => file(path))), [])
  t.same(rows({}, [file('/tmp/x/y', 'write', true)]), ['write /tmp: undeclared'])
})

t.test('a path that nobody could read makes silence mean nothing', async t => {
  const lost = file('(truncated)/very/long')
  t.same(rows({ read: ['/opt'] }, [lost]), ['read /opt: unobservable'])
  t.same(narrow({ read: ['/opt'] }, [lost]), { read: ['/opt'], write: [] })
})

t.test('narrowing names directories of installed software, and files elsewhere', async t => {
  t.same(narrow({ read: ['/'] }, [
    '/usr/lib/gcc/x86_64-linux-gnu/12/crtbegin.o', '/usr/lib/x86_64-linux-gnu/libc.so.6', '/usr/lib/os-release', '/usr/share/git-core/templates/info', '/usr/include/stdio.h',
    '/usr/local/lib/python3.11/x.py', '/lib64/ld.so', '/etc/passwd', '/opt/tool/a',
  ].map(path => file(path))).read, [
    '/etc/passwd', '/lib64/ld.so', '/opt/tool/a', '/usr/include', '/usr/lib/gcc', '/usr/lib/os-release', '/usr/lib/x86_64-linux-gnu', '/usr/local/lib/python3.11', '/usr/share/git-core',
  ])
  const many = (folder: string, count: number): EvidenceBody[] => Array.from({ length: count }, (_, i) => file(`${folder}/f${i}`))
  t.equal(narrow({ read: ['/'] }, many('/opt/tool', 8)).read.length, 8)
  t.same(narrow({ read: ['/'] }, many('/opt/tool', 9)).read, ['/opt/tool'])
  t.equal(narrow({ read: ['/'] }, many('/etc', 30)).read.length, 30, 'never a top-level directory')
  t.equal(narrow({ read: ['/'] }, Array.from({ length: 20 }, (_, i) => file(`/usr/lib/package${i}/x`))).read.length, 20, 'nor a whole system tree')
  t.equal(narrow({ read: ['/opt/tool/f0', '/opt/tool/f1', ...Array.from({ length: 8 }, (_, i) => `/opt/tool/f${i + 2}`)] }, many('/opt/tool', 10)).read.length, 10, 'not beyond what was declared')
  t.same(narrow({ read: ['/usr/lib/gcc/x86_64-linux-gnu/12'] }, [file('/usr/lib/gcc/x86_64-linux-gnu/12/cc1')]).read, ['/usr/lib/gcc/x86_64-linux-gnu/12'])
})

t.test('what is made needs the place that it is made in', async t => {
  t.same(narrow({ write: ['/var/cache/tool'] }, [file('/var/cache/tool/deep/new', 'write', true)]).write, ['/var/cache/tool'])
  t.same(narrow({ write: ['/'] }, [file('/var/cache/tool/new', 'write', true)]).write, ['/var/cache/tool'])
  t.same(narrow({ write: ['/var/cache/tool'] }, [file('/var/cache/tool/old', 'write')]).write, ['/var/cache/tool/old'])
  t.same(narrow({ write: ['/workspace', '/tmp'] }, [file('/workspace/deep/x', 'write', true)]).write, ['/workspace'])
})

t.test('paths that no cell can hold are refused with the reason', async t => {
  for (const [path, why] of [['usr', /absolute/], ['/a/../b', /"\.\."/], ['/a//b', /shortest form: \/a\/b/], ['/a/', /shortest form: \/a/], ['/a/./b', /shortest/], ['/a\0b', /NUL/], ['/sys/kernel', /never part of a cell/], ['/run/docker.sock', /never part/], ['//a', /shortest form: \/a/], [`/${'a/'.repeat(3000)}a`, /longer/]] as const) {
    const parsed = filesystem.schema.safeParse({ read: [path] })
    t.match(parsed.error?.issues[0]?.message, why, JSON.stringify(path).slice(0, 40))
  }
  t.ok(filesystem.schema.safeParse({ read: ['/', '/a..b', '/...', '/with space', '/sysx', '/runner'] }).success)
})
