import { createHash } from 'node:crypto'
import { chmodSync, chownSync, copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { closePrograms, loadersAmong, openPrograms } from '../../src/cell/programs.ts'
import { readContract } from '../../src/contract/read.ts'

// Not in /tmp: no contract can name what is there.
const dir = mkdtempSync('/var/tmp/ambit-programs-')
chmodSync(dir, 0o755)
t.teardown(() => rmSync(dir, { recursive: true }))

const ROOT = { uid: 0, gid: 0 }
const NOBODY = { uid: 65_534, gid: 65_534 }
const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex')
const text = (path: string, digest: string, more = '', mode = 'enforce'): string => `apiVersion: ambit/v1
kind: Cell
metadata: { name: x }
spec:
  mode: ${mode}
  ttl: 1m
${more}  authority:
    exec:
      - /usr/bin/true
      - path: ${path}
        sha256: ${digest}
`
const open = (path: string, digest: string, { caller = ROOT, more = '', mode = 'enforce' } = {}) => {
  const written = text(path, digest, more, mode)
  return openPrograms(readContract(written, 'c.yaml'), caller, { text: written, file: 'c.yaml' })
}
const descriptors = (): number => readdirSync('/proc/self/fd').length
let made = 0
function program(from = '/usr/bin/true'): string {
  const path = join(dir, `program-${made++}`)
  copyFileSync(from, path)
  chmodSync(path, 0o755)
  return path
}

t.test('what was read is what the descriptor shows, whatever takes its path', async t => {
  const path = program()
  const digest = sha256(path)
  const before = descriptors()
  const [found] = await open(path, digest)
  t.match(found, { path, real: path, sha256: digest })
  renameSync(program('/usr/bin/false'), path)
  t.not(sha256(path), digest)
  t.equal(sha256(`/proc/self/fd/${found!.fd}`), digest)
  closePrograms([found!])
  await t.rejects(open(path, digest), { code: 'CONTRACT_INVALID' }, 'what is there now is another one')
  t.equal(descriptors(), before)
})

t.test('another content is refused with the path, both digests and the line; in observe it is told', async t => {
  const path = program()
  const wrong = 'f'.repeat(64)
  await t.rejects(open(path, wrong), { code: 'CONTRACT_INVALID', detail: { where: { file: 'c.yaml', line: 10 }, why: `exec: ${path}: its sha256 is ${sha256(path)}, and the contract names ${wrong}` } })
  const [found] = await open(path, wrong, { mode: 'observe' })
  t.equal(found!.sha256, sha256(path))
  closePrograms([found!])
})

t.test('a file that changed is read again', async t => {
  const path = program()
  closePrograms(await open(path, sha256(path)))
  writeFileSync(path, 'other')
  await t.rejects(open(path, sha256('/usr/bin/true')))
  closePrograms(await open(path, sha256(path)))
})

t.test('a digest holds nothing of what others than root can write, or reach through what the job writes', async t => {
  const why = async (path: string, options: Parameters<typeof open>[2] = {}): Promise<string> => open(path, sha256('/usr/bin/true'), options).then(found => (closePrograms(found), 'opened'), (error: Error) => error.message)
  const path = program()
  t.equal(await why(path), 'opened')
  t.equal(await why(path, { caller: NOBODY }), 'opened')
  chmodSync(path, 0o775)
  t.match(await why(path), /others than root may write it/)
  chmodSync(path, 0o755)
  chownSync(path, NOBODY.uid, NOBODY.gid)
  t.match(await why(path), /others than root may write it/)
  mkdirSync(join(dir, 'written'))
  const inTree = join(dir, 'written/true')
  copyFileSync('/usr/bin/true', inTree)
  symlinkSync(join(dir, 'written'), join(dir, 'link'))
  t.equal(await why(join(dir, 'link/true')), 'opened')
  const written = text(join(dir, 'link/true'), sha256('/usr/bin/true')).replace('    exec:', `    filesystem: { write: [${join(dir, 'written')}] }\n    exec:`)
  await t.rejects(openPrograms(readContract(written, 'c.yaml'), ROOT, { text: written, file: 'c.yaml' }), { message: /where the job may write/ })
})

t.test('nobody learns the digest of a file that is not theirs to read, and only files have one', async t => {
  const refused = (path: string, caller: typeof ROOT, why: RegExp) => t.rejects(open(path, 'f'.repeat(64), { caller }), { message: why })
  const path = program()
  chmodSync(path, 0o711)
  await refused(path, NOBODY, /not yours to read/)
  mkdirSync(join(dir, 'closed'), { mode: 0o700 })
  copyFileSync('/usr/bin/true', join(dir, 'closed/true'))
  await refused(join(dir, 'closed/true'), NOBODY, /does not exist, or is not yours to see/)
  await refused(join(dir, 'closed/true'), ROOT, /its sha256 is/)
  await refused(dir, ROOT, /it is no file/)
  await refused(join(dir, 'absent'), ROOT, /does not exist/)
  t.same(await open(join(dir, 'absent'), 'f'.repeat(64), { more: '  missingPaths: skip\n' }), [])
})

t.test('programs that need no loader are known by their headers', async t => {
  const loader = '/lib64/ld-linux-x86-64.so.2'
  writeFileSync(join(dir, 'script'), '#!/bin/sh\n')
  writeFileSync(join(dir, 'short'), '\x7fELF')
  t.same(loadersAmong(['/usr/bin/true', loader, join(dir, 'script'), join(dir, 'short'), join(dir, 'absent'), dir, '*', '/workspace/x']), [loader])
  t.same(loadersAmong(['/usr/bin/true', loader]), [loader], 'also when asked again')
})
