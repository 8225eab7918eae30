import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, chownSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'

// The workspace that a job may write and that stays as it was, and the one that it shares: by a caller who is not root.
const root = join(import.meta.dirname, '../..')
const dir = mkdtempSync(join(tmpdir(), 'ambit-overlay-'))
const socket = join(dir, 'run/ambit.sock')
const changesDir = join(dir, 'changes')
const NOBODY = { uid: 61_001, gid: 61_002 }
chmodSync(dir, 0o755)
mkdirSync(join(dir, 'run'))
// The command runs from the tree, which the caller may not be let into: a copy of the client is enough.
const client = join(dir, 'ambit-client')
writeFileSync(client, readFileSync(join(root, 'build/Release/ambit-client')))
chmodSync(client, 0o755)

const args = ['daemon', '--state', join(dir, 'state'), '--changes', changesDir, '--socket', socket, '--feed-port', '0', '--log-level', 'warn']
const daemon = spawn(process.execPath, [join(root, 'dist/cli/main.js'), ...args], { stdio: ['ignore', 'inherit', 'inherit'] })
t.before(async () => {
  for (let i = 0; i < 1000 && !existsSync(join(dir, 'state/daemon.json')); i++) await sleep(20)
  chownSync(socket, 0, NOBODY.gid)
  chmodSync(socket, 0o660)
})
t.teardown(async () => {
  const gone = new Promise(resolve => daemon.once('exit', resolve))
  daemon.kill('SIGTERM')
  await gone
  rmSync(dir, { recursive: true, force: true })
})

let count = 0
function contract(spec: string): string {
  const file = join(dir, `contract-${count++}.yaml`)
  writeFileSync(file, `apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: test }\nspec:\n  mode: enforce\n  ttl: 60s\n${spec.replace(/^/gm, '  ')}\n`)
  return file
}
const AUTHORITY = `authority:
  filesystem: { read: [/usr, /bin, /lib, /lib64], write: [/workspace, /tmp] }
  exec: ['*']
  syscall: { profile: build }`
const OVERLAY = contract(`workspace: overlay\n${AUTHORITY}`)
const SHARED = contract(`workspace: shared\n${AUTHORITY}`)

type Result = { status: number | null; stdout: string; stderr: string }
function run(file: string, script: string, work: string, caller: { uid: number; gid: number } | null = NOBODY, options: string[] = []): Result {
  return spawnSync(client, ['run', '--socket', socket, '--contract', file, ...options, '--', 'sh', '-c', script], { cwd: work, encoding: 'utf8', input: '', ...caller })
}
function changes(home: string, options: string[]): Result {
  return spawnSync(process.execPath, [join(root, 'dist/cli/main.js'), 'changes', home, ...options], { encoding: 'utf8', env: { PATH: process.env['PATH'] } })
}
function kept(stderr: string): string {
  const found = /`ambit changes ([^`]+)` shows it/.exec(stderr)
  if (found === null) throw new Error(`no changes are told: ${stderr}`)
  return found[1]!
}
/** A workspace of the caller's, with a bit of everything. */
function workspace(caller = NOBODY): string {
  const work = mkdtempSync(join(dir, 'work-'))
  const made = (path: string, content: string): void => { writeFileSync(join(work, path), content) }
  mkdirSync(join(work, 'src/deep'), { recursive: true })
  mkdirSync(join(work, 'old'))
  made('src/keep.txt', 'kept\n')
  made('src/edit.txt', 'one\ntwo\n')
  made('src/deep/gone.txt', 'gone\n')
  made('old/a.txt', 'a\n')
  made('old/b.txt', 'b\n')
  made('touched', 'same\n')
  symlinkSync('src/keep.txt', join(work, 'link'))
  spawnSync('chown', ['-hR', `${caller.uid}:${caller.gid}`, work])
  return work
}
/** Names, kinds, modes, owners and contents: two trees are the same if these are. */
function picture(folder: string, prefix = ''): Record<string, string> {
  const out: Record<string, string> = {}
  for (const name of readdirSync(folder).sort()) {
    const path = join(folder, name)
    const about = lstatSync(path)
    const what = about.isSymbolicLink() ? `-> ${readlinkSync(path)}` : about.isFile() ? readFileSync(path, 'latin1') : about.isDirectory() ? 'directory' : 'other'
    out[prefix + name] = `${about.uid}:${about.gid} ${(about.mode & 0o7777).toString(8)} ${what}`
    if (about.isDirectory()) Object.assign(out, picture(path, `${prefix}${name}/`))
  }
  return out
}

const EDIT = `set -e
printf 'one\\n2\\n' > src/edit.txt
rm src/deep/gone.txt
rm -r old; mkdir old; echo new > old/c.txt
echo added > added.txt; chmod 755 added.txt
mkdir -p fresh/inner; echo x > fresh/inner/x
ln -s /etc/passwd planted
mv src/keep.txt src/moved.txt
ln -sfn moved.txt link
chmod 600 touched; chmod 644 touched`

t.test('a name that a job chose writes no line and moves no cursor where its changes are shown', t => {
  const work = workspace()
  const script = 'printf x > "$(printf \'a\\ndeleted  edit.txt\\033[2Jb\')"'
  const { status, stderr } = run(OVERLAY, script, work)
  t.equal(status, 0, stderr)
  const home = kept(stderr)
  const name = 'a\ndeleted  edit.txt\u001b[2Jb'
  t.ok((JSON.parse(changes(home, ['--json']).stdout) as { changes: { path: string }[] }).changes.some(one => one.path === name || one.path.includes('a\n')), 'the file has that name')
  for (const options of [[], ['--diff']]) {
    const { stdout } = changes(home, options)
    t.match(stdout, /a\\(?:x0a|n)deleted {2}edit\.txt\\(?:x1b|033)\[2Jb/)
    t.notMatch(stdout, /^deleted|\u001b/m)
  }
  t.end()
})

t.test('what the job writes to an overlay leaves the workspace as it was, and can be seen', t => {
  const work = workspace()
  const before = picture(work)
  const { status, stderr } = run(OVERLAY, `${EDIT}; cat src/edit.txt; test ! -e src/deep/gone.txt`, work)
  t.equal(status, 0, stderr)
  t.same(picture(work), before, 'nothing changed')
  const home = kept(stderr)
  t.equal(statSync(home).uid, NOBODY.uid)
  t.equal(statSync(home).mode & 0o777, 0o700, 'for the caller alone')
  t.same(readdirSync(home).sort(), ['changes.json', 'workspace'], 'nothing else is kept')
  const shown = JSON.parse(changes(home, ['--json']).stdout) as { changes: { path: string; change: string; type: string }[] }
  t.same(shown.changes.map(({ path, change, type }) => `${change} ${type} ${path}`).sort(), [
    'added directory fresh', 'added directory fresh/inner', 'added file added.txt', 'added file fresh/inner/x', 'added file old/c.txt', 'added file src/moved.txt', 'added link planted',
    'changed file src/edit.txt', 'changed link link', 'deleted file old/a.txt', 'deleted file old/b.txt', 'deleted file src/deep/gone.txt', 'deleted file src/keep.txt',
  ])
  const { stdout } = changes(home, ['--diff'])
  t.match(stdout, /--- a\/src\/edit\.txt\n\+\+\+ b\/src\/edit\.txt\n@@ -1,2 \+1,2 @@\n one\n-two\n\+2/)
  t.match(stdout, /added planted: link/)
  t.equal(changes(home, ['--discard']).status, 0)
  t.notOk(existsSync(join(home, 'workspace')))
  t.same(picture(work), before, 'nor did discarding')
  t.equal(run(OVERLAY, 'true', work).stderr, '', 'a job that writes nothing leaves nothing')
  t.end()
})

t.test('applied changes are what the job would have done to a shared workspace, and belong to the caller', t => {
  const [apart, shared] = [workspace(), workspace()]
  const { stderr } = run(OVERLAY, EDIT, apart)
  t.equal(run(SHARED, EDIT, shared).status, 0)
  // As root: it takes the rights of whom they belong to.
  const applied = changes(kept(stderr), ['--apply'])
  t.equal(applied.status, 0, applied.stderr)
  t.same(picture(apart), picture(shared))
  for (const text of Object.values(picture(apart))) t.match(text, new RegExp(`^${NOBODY.uid}:${NOBODY.gid} `))
  t.notOk(existsSync(join(kept(stderr), 'workspace')), 'applied once')
  t.end()
})

t.test('a workspace that changed meanwhile is not overwritten', t => {
  const work = workspace()
  const { stderr } = run(OVERLAY, 'echo job > src/edit.txt; echo job > new', work)
  writeFileSync(join(work, 'src/edit.txt'), 'person\n')
  const refused = changes(kept(stderr), ['--apply'])
  t.equal(refused.status, 2)
  t.match(refused.stderr, /has changed since the job started: src\/edit\.txt/)
  t.equal(readFileSync(join(work, 'src/edit.txt'), 'utf8'), 'person\n')
  t.notOk(existsSync(join(work, 'new')), 'all or nothing')
  t.equal(changes(kept(stderr), ['--apply', '--force']).status, 0)
  t.equal(readFileSync(join(work, 'src/edit.txt'), 'utf8'), 'job\n')
  t.end()
})

t.test('a link that stands in the way of applying leads nowhere, no set-id bit and no special file gets through, and root takes no orders from what a user prepared', t => {
  const work = workspace()
  const outside = mkdtempSync(join(dir, 'outside-'))
  chownSync(outside, NOBODY.uid, NOBODY.gid)
  writeFileSync(join(outside, 'edit.txt'), 'untouched\n')
  const { stderr } = run(OVERLAY, `echo job > src/edit.txt; echo x > src/new.txt; echo tool > tool; chmod 755 tool; mkfifo pipe; rm -r old; ln -s ${outside} old`, work)
  const home = kept(stderr)
  // As a job that once had the run of the workspace, or a neighbour, would leave it.
  rmSync(join(work, 'src'), { recursive: true })
  symlinkSync(outside, join(work, 'src'))
  // The bit as the caller could set it by hand, on what is the caller's own.
  chmodSync(join(home, 'workspace/upper/tool'), 0o6755)
  t.equal(spawnSync('cp', ['-r', `${join(home, 'workspace/upper/src')}/.`, join(work, 'src')]).status, 0)
  t.equal(readFileSync(join(outside, 'edit.txt'), 'utf8'), 'job\n', 'bare: a plain copy follows the link')
  writeFileSync(join(outside, 'edit.txt'), 'untouched\n')
  rmSync(join(outside, 'new.txt'), { force: true })
  const applied = changes(home, ['--apply', '--force'])
  t.equal(applied.status, 0, applied.stderr)
  t.match(applied.stdout, /left out: pipe/)
  t.same(readdirSync(outside), ['edit.txt'])
  t.equal(readFileSync(join(outside, 'edit.txt'), 'utf8'), 'untouched\n')
  t.ok(lstatSync(join(work, 'src')).isDirectory(), 'the directory that the job wrote is there again')
  t.equal(lstatSync(join(work, 'tool')).mode & 0o7777, 0o755)
  t.equal(readlinkSync(join(work, 'old')), outside)
  t.notOk(existsSync(join(work, 'pipe')))

  const again = kept(run(OVERLAY, 'echo x > evil', work).stderr)
  const target = mkdtempSync(join(dir, 'root-'))
  const about = join(again, 'changes.json')
  const { dev, ino } = statSync(target, { bigint: true })
  const told = JSON.parse(readFileSync(about, 'utf8')) as { workspace: object }
  writeFileSync(about, JSON.stringify({ ...told, workspace: { path: target, dev: String(dev), ino: String(ino) } }))
  const misled = changes(again, ['--apply'])
  t.not(misled.status, 0)
  t.same(readdirSync(target), [], 'a directory of root\'s that the user\'s file names is not written')
  t.end()
})

t.test('nothing of the host lies on the cell\'s root, from which ever side it is walked to', t => {
  const work = workspace()
  const observe = OVERLAY.replace('.yaml', '-observe.yaml')
  writeFileSync(observe, readFileSync(OVERLAY, 'utf8').replace('mode: enforce', 'mode: observe'))
  for (const file of [OVERLAY, SHARED, observe]) {
    const { stdout, stderr } = run(file, 'grep -c " / / " /proc/self/mountinfo; for from in / /tmp/.. /workspace/.. /usr/..; do stat -c %d:%i $from; done', work)
    const [mounts, ...roots] = stdout.trim().split('\n')
    t.equal(mounts, '1', stderr)
    t.equal(roots.length, 4)
    t.equal(new Set(roots).size, 1, stdout)
  }
  t.end()
})

t.test('a tree deeper than any path is told as such, and can be discarded', t => {
  const work = workspace()
  const deep = 'import os\nfor _ in range(2000):\n  os.mkdir("d" * 10)\n  os.chdir("d" * 10)'
  const { status, stderr } = run(OVERLAY, `mkdir later && chmod 0 later; python3 -c '${deep}'`, work)
  t.equal(status, 0, stderr)
  const home = kept(stderr)
  for (const option of ['--json', '--diff', '--apply']) {
    const { status, stderr } = changes(home, [option])
    t.equal(status, 2, option)
    t.match(stderr, /nested more than 256 deep/)
  }
  t.notOk(existsSync(join(work, 'dddddddddd')), 'nothing was applied')
  const discarded = changes(home, ['--discard'])
  t.equal(discarded.status, 0, discarded.stderr)
  t.notOk(existsSync(join(home, 'workspace')))
  t.end()
})

t.test('others than the caller do not get at the changes', t => {
  const work = workspace()
  const home = kept(run(OVERLAY, 'echo secret > made', work).stderr)
  const look = (caller: { uid: number; gid: number }): Result => spawnSync('cat', [join(home, 'workspace/upper/made')], { encoding: 'utf8', ...caller })
  t.equal(look(NOBODY).stdout, 'secret\n')
  t.not(look({ uid: 61_009, gid: NOBODY.gid }).status, 0)
  changes(home, ['--discard'])
  t.end()
})

t.test('the evidence tells what was written, and where writes go', t => {
  const work = workspace({ uid: 0, gid: 0 })
  const evidence = join(dir, 'bundle')
  const { stderr } = run(OVERLAY, 'echo x > made.txt; cat src/keep.txt', work, null, ['--evidence', evidence])
  changes(kept(stderr), ['--discard'])
  const log = readdirSync(evidence).find(name => name.endsWith('.jsonl'))!
  const records = readFileSync(join(evidence, log), 'utf8').trim().split('\n').map(line => JSON.parse(line) as { type: string; path?: string; access?: string; enforcers?: { name: string; state: string }[] })
  t.ok(records.some(({ type, path, access }) => type === 'file' && path === '/workspace/made.txt' && access === 'write'))
  t.ok(records.some(({ type, path }) => type === 'file' && path === '/workspace/src/keep.txt'))
  t.match(records.find(({ type }) => type === 'coverage')!.enforcers!.find(({ name }) => name === 'writes')!.state, /kept apart, without a quota/)
  t.end()
})

t.test('a shared workspace never holds anything that is not its caller\'s: files, directories, links, nor after a kill', async t => {
  const work = workspace()
  const bare = mkdtempSync(join(dir, 'bare-'))
  spawnSync('sh', ['-c', 'echo x > file'], { cwd: bare })
  t.equal(statSync(join(bare, 'file')).uid, 0, 'bare: what a job of root\'s leaves is root\'s')
  t.equal(run(SHARED, `${EDIT}; ln added.txt hard; mkfifo pipe; touch 'odd name' .hidden; (umask 0; mkdir open)`, work).status, 0)
  const child = spawn(client, ['run', '--socket', socket, '--contract', SHARED, '--', 'sh', '-c', 'echo ready; i=0; while :; do i=$((i+1)); mkdir d$i; echo x > d$i/f; ln -s f d$i/l; done'], { cwd: work, stdio: ['ignore', 'pipe', 'ignore'], ...NOBODY })
  await new Promise(resolve => child.stdout.once('data', resolve))
  await sleep(100)
  child.kill('SIGKILL')
  await new Promise(resolve => child.once('close', resolve))
  for (let quiet = 0, last = ''; quiet < 5;) {
    const now = readdirSync(work).join()
    quiet = now === last ? quiet + 1 : 0
    last = now
    await sleep(50)
  }
  const all = picture(work)
  t.ok(Object.keys(all).some(name => /^d\d+\/l$/.test(name)), 'it was killed while it wrote')
  t.same(Object.entries(all).filter(([, text]) => !text.startsWith(`${NOBODY.uid}:${NOBODY.gid} `)), [])
})

t.test('nothing executes where the contract says noexec, whatever exec allows', t => {
  const work = workspace()
  const script = 'printf \'#!/bin/sh\\necho ran\\n\' > tool; chmod 755 tool; ./tool'
  t.match(run(SHARED, script, work).stdout, /ran/, 'without it')
  for (const kind of ['shared', 'overlay']) {
    const { status, stdout, stderr } = run(contract(`workspace: ${kind}\nnoexec: [/workspace]\n${AUTHORITY}`), script, work)
    t.equal(status, 126, `${kind}: ${stderr}`)
    t.equal(stdout, '')
    if (kind === 'overlay') changes(kept(stderr), ['--discard'])
  }
  t.end()
})

t.test('a granted path that does not exist is refused with its line', t => {
  const work = workspace()
  const bad = contract('workspace: shared\nauthority:\n  filesystem:\n    read:\n      - /usr\n      - /usr/no/such/path\n  exec: [\'*\']\n  syscall: { profile: build }')
  const { status, stderr } = run(bad, 'true', work)
  t.equal(status, 2)
  t.match(stderr, new RegExp(`${bad}:12:\\d+: could not build the cell: filesystem\\.read: /usr/no/such/path does not exist on this host`))
  const part = contract('workspace: shared\nauthority:\n  filesystem: { read: [/usr, /bin, /lib, /lib64], write: [/workspace/nowhere] }\n  exec: [\'*\']\n  syscall: { profile: build }')
  t.match(run(part, 'true', work).stderr, /filesystem\.write: \/workspace\/nowhere does not exist/)
  for (const file of [bad, part]) {
    const skipping = join(dir, `skipping-${count++}.yaml`)
    writeFileSync(skipping, readFileSync(file, 'utf8').replace('  ttl:', '  missingPaths: skip\n  ttl:').replace('- /usr\n', '- /usr\n        - /bin\n        - /lib\n        - /lib64\n'))
    const { status, stderr } = run(skipping, 'true', work)
    t.equal(status, 0, stderr)
  }
  t.end()
})
