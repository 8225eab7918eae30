import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { parse, stringify } from 'yaml'
import { readContract } from '../../src/contract/read.ts'
import { writeContract } from '../../src/contract/write.ts'
import { startLocalServer } from '../../src/loop/server.ts'
import { EXAMPLE } from './local-server.ts'

// Every contract of the examples, read and then run in a real cell, as its first lines say.
const root = join(import.meta.dirname, '../..')
const folder = join(root, 'examples/contracts')
const dir = mkdtempSync(join(tmpdir(), 'ambit-contracts-'))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))
const contract = (name: string): string => join(folder, `${name}.yaml`)

function workspace(name: string, files: Record<string, string>): string {
  const at = join(dir, name)
  mkdirSync(at)
  for (const [file, content] of Object.entries(files)) writeFileSync(join(at, file), content)
  return at
}
function run(contractFile: string, cwd: string, ...command: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(join(root, 'bin/ambit'), ['run', '--contract', contractFile, '--', ...command], { cwd, encoding: 'utf8', input: '' })
}

t.test('every contract is read, and says the same once it is written and read again', async t => {
  const names = readdirSync(folder).sort()
  t.same(names, ['build.yaml', 'fetch.yaml', 'minimal.yaml', 'offline-test.yaml'])
  for (const name of names) {
    const text = readFileSync(join(folder, name), 'utf8')
    const read = readContract(text, name)
    t.equal(read.metadata.name, name.replace('.yaml', ''))
    t.same(readContract(writeContract(read), name), read)
    t.throws(() => readContract(text.replace('authority:', 'authorithy:'), name), { code: 'CONTRACT_INVALID' }, 'and a slip of the pen is not')
  }
})

t.test('minimal: a greeting, and nothing else', async t => {
  const at = workspace('minimal', {})
  t.match(run(contract('minimal'), at, 'sh', '-c', 'echo hello'), { status: 0, stdout: 'hello\n' })
  t.equal(run(contract('minimal'), at, 'cat', '/etc/passwd').status, 127, 'no other program')
  t.not(run(contract('minimal'), at, 'sh', '-c', 'read line < /etc/passwd').status, 0, 'no file')
})

t.test('build: make and gcc make a program in the workspace', async t => {
  const at = workspace('build', { 'hello.c': '#include <stdio.h>\nint main(void) { puts("built"); }\n', 'Makefile': 'hello: hello.c\n\t$(CC) -o $@ $< && ./hello\n' })
  const { status, stdout, stderr } = run(contract('build'), at, 'make')
  t.equal(status, 0, stderr)
  t.match(stdout, /^built$/m)
  t.ok(existsSync(join(at, 'hello')))
  t.not(run(contract('build'), at, 'sh', '-c', ': > /usr/share/made').status, 0, 'nor anywhere else')
})

t.test('offline-test: tests run, change nothing and reach nobody', async t => {
  const at = workspace('offline', { 'run-tests': '#!/bin/sh\necho scratch > /tmp/x && cat /tmp/x\n', 'source': 'as it was\n' })
  t.match(run(contract('offline-test'), at, 'sh', './run-tests'), { status: 0, stdout: 'scratch\n' })
  t.not(run(contract('offline-test'), at, 'sh', '-c', 'echo changed > source').status, 0)
  t.equal(readFileSync(join(at, 'source'), 'utf8'), 'as it was\n')
  t.equal(run(contract('offline-test'), at, 'curl', '--max-time', '10', 'https://ftp.gnu.org/').status, 6, 'no name resolves')
})

t.test('fetch: the named host is reached, by that name and port only', async t => {
  // The host's part is played by a server of ours with a certificate for both names; only where the name leads is added.
  const state = join(dir, 'state')
  const server = await startLocalServer(['node', 'server/main.mjs', '--state', 'STATE', '--repository', 'a/b', '--host', 'ftp.gnu.org', '--host', 'neighbour.test'], EXAMPLE, state)
  t.teardown(() => server.stop())
  const document = parse(readFileSync(contract('fetch'), 'utf8')) as { spec: { hosts: object; authority: { network: object[] } } }
  document.spec.hosts = { 'ftp.gnu.org': '127.0.0.1', 'neighbour.test': '127.0.0.1' }
  document.spec.authority.network = [{ host: 'ftp.gnu.org', port: server.port }]
  const file = join(dir, 'fetch.yaml')
  writeFileSync(file, stringify(document))
  const at = workspace('fetch', { 'ca.pem': server.ca })
  const fetch = (...args: string[]): { status: number | null; stdout: string } => run(file, at, 'curl', '--silent', '--max-time', '10', '--cacert', 'ca.pem', '--output', 'got', '--write-out', '%{http_code}', ...args)
  t.match(fetch(`https://ftp.gnu.org:${server.port}/`), { status: 0, stdout: '401' })
  t.match(readFileSync(join(at, 'got'), 'utf8'), /Requires authentication/)
  t.not(fetch(`https://neighbour.test:${server.port}/`).status, 0, 'another name of the same address')
  t.not(fetch(`https://ftp.gnu.org:${server.collectorPort}/`).status, 0, 'another port')
  t.not(fetch('--connect-to', `neighbour.test:${server.port}:ftp.gnu.org:${server.port}`, `https://neighbour.test:${server.port}/`).status, 0, 'another name behind the granted one')
})
