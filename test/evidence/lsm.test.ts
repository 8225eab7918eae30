import { execFileSync, spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, linkSync, mkdirSync, mkdtempSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { openProbes } from '../../src/evidence/probes.ts'
import { programTriples } from '../../src/evidence/programs.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'
import { native } from '../../src/native.ts'

// Where the kernel takes LSM programs (the emulated ones of test:vm do, and must) they are proven; elsewhere, what stands in for them is.
const dir = mkdtempSync(join(tmpdir(), 'ambit-lsm-'))
const acts = join(dir, 'acts')
execFileSync('gcc', ['-O1', '-pthread', '-static', '-o', acts, join(import.meta.dirname, '../fixtures/probes-acts.c')])
const v2 = existsSync('/sys/fs/cgroup/unified/cgroup.procs') ? '/sys/fs/cgroup/unified' : '/sys/fs/cgroup'
const parent = join(v2, `ambit-lsm-test-${process.pid}`)
mkdirSync(parent)
const probes = openProbes({ native: native(), objectDir: join(import.meta.dirname, '../../build/Release/bpf'), level: 2, parentCgroup: parent, tls: [] })
t.teardown(() => {
  probes.close()
  rmdirSync(parent)
  rmSync(dir, { recursive: true, force: true })
})
const stateOf = (name: string): string | undefined => probes.hooks().find(hook => hook.name === name)?.state
const lsm = stateOf('lsm/file_open') === 'attached'
const path = (name: string): string => join(dir, name)

/** The acts in a cell, with its programs listed or not; by what hold. */
async function observe(list: (string | number)[], programs: BigUint64Array | null = null): Promise<{ log: EvidenceBody[]; held: boolean; status: number | null }> {
  const folder = join(parent, 'cell')
  mkdirSync(folder)
  const { ino: id } = statSync(folder, { bigint: true })
  probes.addCell(id, 0)
  probes.watch(id, null)
  const held = probes.holdPrograms(id, () => programs)
  const log: EvidenceBody[] = []
  probes.route(id, { append: body => { log.push(body) } })
  try {
    const { status } = spawnSync(acts, [folder, ...list.map(String)], { cwd: dir, encoding: 'utf8' })
    await probes.flush()
    return { log, held, status }
  } finally {
    probes.removeCell(id)
    rmdirSync(folder)
  }
}

t.test('both hooks are attached, or the coverage says what does their work instead', t => {
  if (process.env.AMBIT_VM !== undefined) t.same(probes.hooks().filter(hook => hook.name.startsWith('lsm/') && hook.state !== 'attached'), [], 'the emulated kernels take LSM programs')
  t.equal(stateOf('lsm/bprm_check_security'), stateOf('lsm/file_open'))
  for (const hook of probes.hooks().filter(hook => hook.name.startsWith('lsm/'))) {
    if (lsm) t.equal(hook.state, 'attached')
    else t.match(hook, { state: 'fallback', detail: /at the exit of the call|by Landlock and the cell's root alone/ })
  }
  t.equal(stateOf('tp_btf/sys_exit (files)'), lsm ? 'attached' : 'fallback')
  t.end()
})

t.test('an opened file is told by the kernel that opens it: no thread can take it out of the evidence or put another one in', async t => {
  writeFileSync(path('secret'), '')
  const { log } = await observe(['race', path('secret'), 5_000])
  const opened = log.filter(body => body.type === 'file' && body.source !== 'name')
  t.ok(opened.length >= 1)
  const { ino } = statSync(path('secret'), { bigint: true })
  if (lsm) t.match(opened, [{ path: path('secret'), access: 'read', source: 'lsm', ino: String(ino) }], 'once, and as the file that it is')
  else t.notOk(opened.some(body => body.type === 'file' && body.source === 'lsm'))
  t.ok(opened.length <= (lsm ? 1 : 2))
})

t.test('only listed programs are executed, by device and inode: no copy, no memory, no interpreter that is not listed', async t => {
  copyFileSync('/bin/true', path('copy'))
  mkdirSync(path('tree/below'), { recursive: true })
  copyFileSync('/bin/true', path('tree/below/tool'))
  linkSync(path('copy'), path('twin'))
  writeFileSync(path('script'), '#!/usr/bin/env true\n', { mode: 0o755 })
  const ends = async (programs: BigUint64Array | null, ...act: string[]): Promise<number | null> => (await observe([...act, 'exit', 9], programs)).status
  const listed = programTriples([path('copy'), path('tree'), path('script'), '/lib64/ld-linux-x86-64.so.2', path('absent')])
  t.equal(listed.length, 12, 'what is not there is left out')

  const attacks: [string, ...string[]][] = [['try-exec', '/bin/true'], ['try-exec', path('script')], ['memfd-exec', '/bin/true']]
  for (const attack of attacks) {
    t.equal(await ends(null, ...attack), 0, `${attack.join(' ')}: possible where no program is listed`)
    if (lsm) t.not(await ends(listed, ...attack), 0, `${attack.join(' ')}: refused`)
  }
  t.equal(await ends(listed, 'try-exec', path('copy')), 0, 'the listed file')
  t.equal(await ends(listed, 'try-exec', path('twin')), 0, 'the same file by another name')
  t.equal(await ends(listed, 'try-exec', path('tree/below/tool')), 0, 'what lies below a listed folder')

  const { log, held } = await observe(['try-exec', '/bin/true', 'try-exec', path('missing'), 'exit', 9], listed)
  t.equal(held, lsm, 'whether it is held is told')
  const failed = log.filter(body => body.type === 'exec.failed')
  if (lsm) t.match(failed, [{ path: '/bin/true', errno: 'EACCES', by: 'lsm' }, { path: path('missing'), errno: 'ENOENT' }])
  t.notOk(failed.some(body => body.type === 'exec.failed' && body.path === path('missing') && body.by !== undefined), 'what failed by itself is nobody\'s refusal')
  t.equal(await ends(null, 'try-exec', '/bin/true'), 0, 'a cell after it is not held')
})
