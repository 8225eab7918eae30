import { chmodSync, mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { writableTrees } from '../../src/cell/plan.ts'
import { elfInterpreters, rootBuilder } from '../../src/cell/root.ts'

const dir = mkdtempSync('/usr/share/ambit-root-')
const elsewhere = mkdtempSync('/var/tmp/ambit-root-')
t.teardown(() => { for (const one of [dir, elsewhere]) rmSync(one, { recursive: true, force: true }) })
// Another user must be able to look in.
chmodSync(dir, 0o755)
chmodSync(elsewhere, 0o755)
mkdirSync(join(dir, 'real/deep'), { recursive: true })
writeFileSync(join(dir, 'real/deep/file'), '')
symlinkSync('real', join(dir, 'link'))
symlinkSync(join(dir, 'link/deep'), join(dir, 'chain'))
symlinkSync('loop', join(dir, 'loop'))

t.test('what is exposed is bound where it really is, with the links that lead there', t => {
  const root = rootBuilder([], { uid: 7, gid: 8 })
  root.expose(join(dir, 'chain/file'))
  t.same(root.mounts(), [
    { type: 'bind', source: join(dir, 'real/deep/file'), target: join(dir, 'real/deep/file'), readonly: true, recursive: true, optional: true, asUser: { uid: 7, gid: 8 } },
    { type: 'symlink', target: join(dir, 'chain'), to: join(dir, 'link/deep') },
    { type: 'symlink', target: join(dir, 'link'), to: 'real' },
  ])
  t.ok(root.shows(realpathSync(join(dir, 'link/deep/file'))))
  t.notOk(root.shows(dir))
  root.expose(dir)
  t.match(root.mounts().map(({ target }) => target), [dir, join(dir, 'real/deep/file')], 'a folder before what lies in it, and no link that it brings itself')
  t.end()
})

t.test('a link that a job may have made leads nowhere', t => {
  symlinkSync(join(dir, 'real'), join(elsewhere, 'planted'))
  const refused = (writable: string[], path: string): void => { t.throws(() => rootBuilder(writable).expose(path), { code: 'CELL_FAILED', message: /is a link/ }, path) }
  refused([], join(elsewhere, 'planted/deep'))
  refused([dir], join(dir, 'link/deep'))
  rootBuilder([join(dir, 'real')]).expose(join(dir, 'link/deep'))
  t.end()
})

t.test('a link beside a program that nobody asked for stops no cell, and no job may write where links are followed', t => {
  symlinkSync(join(dir, 'real/deep/file'), join(elsewhere, 'beside'))
  const root = rootBuilder([])
  root.exposeLinks([elsewhere], () => true)
  t.same(root.mounts(), [])
  root.exposeLinks([dir], real => real === join(dir, 'real'))
  t.ok(root.mounts().some(({ target }) => target === join(dir, 'link')), 'one of the host\'s packages is shown')
  for (const path of ['/usr/lib/x', '/etc', '/nix/store']) t.throws(() => writableTrees([path]), { code: 'CELL_FAILED' }, path)
  t.same(writableTrees(['/usr/local/x', '/srv/a', '/srv/a/b', '/workspace/out', '/tmp', '/']), ['/srv/a', '/usr/local/x'])
  t.end()
})

t.test('what the caller may not look up is as if it were not there', t => {
  mkdirSync(join(elsewhere, 'closed/in'), { recursive: true })
  chmodSync(join(elsewhere, 'closed'), 0o700)
  const mine = rootBuilder([], { uid: 7, gid: 8 })
  for (const path of ['closed/in', 'closed/missing']) mine.expose(join(elsewhere, path))
  t.same(mine.mounts(), [])
  const roots = rootBuilder([])
  roots.expose(join(elsewhere, 'closed/in'))
  t.equal(roots.mounts().length, 1)
  t.end()
})

t.test('missing paths and the cell\'s own are skipped; the host is shown without them', t => {
  const root = rootBuilder([])
  for (const path of [join(dir, 'missing'), join(dir, 'loop'), '/dev/mem', '/run', '/etc/hosts']) root.expose(path)
  t.same(root.mounts().filter(({ type }) => type === 'bind'), [])
  root.expose('/')
  const targets = root.mounts().map(({ target }) => target)
  t.ok(targets.includes('/usr') && targets.includes('/etc/passwd'))
  t.notOk(targets.some(target => /^\/(proc|sys|dev|run|tmp)(\/|$)/.test(target) || /^\/etc(\/(hosts|resolv\.conf|hostname))?$/.test(target)))
  t.ok(elfInterpreters().length > 0)
  t.end()
})
