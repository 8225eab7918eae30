import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { closeSync, existsSync, fstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { clientMessage, encodeDaemonMessage, type ClientMessage, type DaemonMessage, type RunMessage } from '../../src/daemon/protocol.ts'
import { AmbitError } from '../../src/errors.ts'
import { native, type NativeControl } from '../../src/native.ts'

// The client as it is, against a daemon's side that runs no cells: it says what it is told to.
const CLIENT = join(import.meta.dirname, '../../build/Release/ambit-client')
const dir = mkdtempSync(join(tmpdir(), 'ambit-client-'))
const work = join(dir, 'work')
mkdirSync(work)
const contract = join(dir, 'contract.yaml')
const CONTRACT = 'kind: Cell\nname: "quoted \\ and ünïcödé"\ttab\u0001\n'
writeFileSync(contract, CONTRACT)
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

type Serving = { socket: string; control: NativeControl; seen: ClientMessage[]; ended: number[] }
type Answer = (message: ClientMessage, say: (message: DaemonMessage) => void, fds: number[], control: NativeControl, connection: number) => void
let sockets = 0
function serve(t: Tap.Test, answer: Answer): Serving {
  const socket = join(dir, `socket-${sockets++}`)
  const seen: ClientMessage[] = []
  const ended: number[] = []
  const control: NativeControl = new (native().Control)(socket, 0o600, 0, (connection, _, packet, fds) => {
    const message = clientMessage(packet)
    seen.push(message)
    answer(message, reply => control.send(connection, encodeDaemonMessage(reply)), fds, control, connection)
    for (const fd of fds) closeSync(fd)
  }, connection => ended.push(connection))
  t.teardown(() => control.close())
  return { socket, control, seen, ended }
}
declare namespace Tap { type Test = { teardown(fn: () => void): void } }

type Result = { code: number | null; signal: string | null; stdout: string; stderr: string }
function start(args: string[], options: { env?: Record<string, string>; input?: string } = {}): { child: ChildProcess; result: Promise<Result> } {
  // Through env: tap adds variables of its own to what is spawned.
  const child = spawn('env', ['-i', ...Object.entries(options.env ?? {}).map(([name, value]) => `${name}=${value}`), CLIENT, ...args], { cwd: work, stdio: ['pipe', 'pipe', 'pipe'] })
  child.stdin!.on('error', () => {})
  child.stdin!.end(options.input ?? '')
  let stdout = ''
  let stderr = ''
  child.stdout!.on('data', chunk => { stdout += chunk })
  child.stderr!.on('data', chunk => { stderr += chunk })
  return { child, result: new Promise(resolve => child.once('close', (code, signal) => resolve({ code, signal, stdout, stderr }))) }
}
const run = (args: string[], options = {}): Promise<Result> => start(args, options).result
const cell = (socket: string, ...rest: string[]): string[] => ['run', '--socket', socket, '--contract', contract, ...rest]

const ended = (facts: Partial<Extract<DaemonMessage, { type: 'ended' }>> = {}): DaemonMessage => ({ type: 'ended', cell: 'c1', code: 0, signal: null, reason: 'exited', evidence: '/state/c1', notice: null, ...facts })

t.test('the request carries contract, command, environment and the caller\'s own descriptors', async t => {
  let inode = 0
  const { socket, seen } = serve(t, (_, say, fds) => {
    t.equal(fds.length, 4)
    const [stdin, stdout, stderr, workspace] = fds as [number, number, number, number]
    t.equal(readFileSync(stdin, 'utf8'), 'input')
    writeSync(stdout, 'to stdout')
    writeSync(stderr, 'to stderr')
    inode = fstatSync(workspace).ino
    t.match(readFileSync(`/proc/self/fdinfo/${workspace}`, 'utf8'), /flags:\s+0?1[0-7]*/, 'O_PATH: it cannot be read through')
    say({ type: 'started', cell: 'c1' })
    say(ended({ code: 7 }))
  })
  const result = await run(cell(socket, '--', 'sh', '-c', 'echo "ü\n\u0002"', '--', ''), { env: { A: '1', EMPTY: '', __proto__x: 'y', QUOTE: '"\\\n' }, input: 'input' })
  t.same(result, { code: 7, signal: null, stdout: 'to stdout', stderr: 'to stderr' })
  const message = seen[0] as RunMessage
  t.same({ ...message, env: { ...message.env } }, {
    op: 'run', contract: { text: CONTRACT, file: contract }, argv: ['sh', '-c', 'echo "ü\n\u0002"', '--', ''],
    env: { A: '1', EMPTY: '', __proto__x: 'y', QUOTE: '"\\\n' }, evidence: false,
  })
  t.equal(inode, statSync(work).ino)
})

t.test('the exit status says how the cell ended', async t => {
  const cases: [DaemonMessage, number][] = [
    [ended(), 0], [ended({ code: 255 }), 255], [ended({ code: null, signal: 9 }), 137], [ended({ code: null, signal: 15 }), 143],
    [ended({ reason: 'ttl', code: null, signal: 15 }), 124], [ended({ reason: 'ttl', code: 0 }), 124], [ended({ reason: 'memory', code: null, signal: 9 }), 137],
    [ended({ reason: 'daemon-stopped', code: null, signal: 9 }), 125],
  ]
  for (const [last, status] of cases) {
    const { socket } = serve(t, (_, say) => {
      say({ type: 'started', cell: 'c1' })
      say(last)
    })
    t.equal((await run(cell(socket, '--', 'true'))).code, status, JSON.stringify(last))
  }
})

t.test('what the daemon has to say of limits is one line at the end', async t => {
  const { socket } = serve(t, (_, say) => say(ended({ code: 137, notice: 'memory limit of 64MiB reached by evil\u001b[31m[412]: killed' })))
  t.match(await run(cell(socket, '--', 'true')), { code: 137, stderr: 'ambit: memory limit of 64MiB reached by evil\\x1b[31m[412]: killed\n' })
  t.match(JSON.parse((await run(cell(socket, '--json', '--', 'true'))).stderr), { notice: /reached by evil/ })
})

t.test('--json gives one line on stderr at the end', async t => {
  const { socket } = serve(t, (_, say) => say(ended({ code: null, signal: 9, reason: 'memory' })))
  const { stderr } = await run(cell(socket, '--json', '--', 'true'))
  t.same(JSON.parse(stderr), { cell: 'c1', code: null, signal: 9, reason: 'memory', evidence: '/state/c1', notice: null })
  t.match(stderr, /^\{"cell":"c1",.*\}\n$/)
  const evidence = join(dir, 'json-evidence')
  t.equal((JSON.parse((await run(cell(socket, '--json', '--evidence', evidence, '--', 'true'))).stderr) as { evidence: string }).evidence, evidence)
})

t.test('an error of the daemon is printed as it is, with its exit status, and drives no terminal', async t => {
  const error = new AmbitError('CONTRACT_INVALID', { attempted: 'read the contract', why: 'there is no field "\u001b[31mred"', remedy: 'write `workspace`', where: { file: 'c.yaml', line: 7, column: 3 } })
  const { socket } = serve(t, (_, say) => say({ type: 'error', error: error.toJSON() as never, exitCode: error.exitCode }))
  const { code, stderr } = await run(cell(socket, '--', 'true'))
  t.equal(code, 2)
  t.equal(stderr, 'ambit: c.yaml:7:3: could not read the contract: there is no field "\\x1b[31mred"\n  write `workspace`\n')
})

t.test('signals reach the cell once it runs, and none is lost before', async t => {
  const names = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGWINCH'] as const
  const { socket, seen } = serve(t, (message, say) => {
    if (message.op === 'run') {
      // Sent while the cell is still being built; `started` comes later.
      for (const name of names) child.kill(name)
      setTimeout(() => say({ type: 'started', cell: 'c1' }), 100)
    }
    if (seen.length === 1 + names.length) child.kill('SIGTERM')
    if (seen.length === 2 + names.length) say(ended({ code: 3 }))
  })
  const { child, result } = start(cell(socket, '--', 'true'))
  t.match(await result, { code: 3, signal: null })
  t.same(seen.slice(1, -1).map(message => (message as { signal: number }).signal).sort((a, b) => a - b), names.map(name => constants.signals[name]).sort((a, b) => a - b))
  t.same(seen.at(-1), { op: 'signal', signal: 15 })
})

t.test('who asks twice is not held by a daemon that does not answer', async t => {
  const { socket, ended } = serve(t, () => { child.kill('SIGINT') })
  const { child, result } = start(cell(socket, '--', 'true'))
  // Signals of one kind that come at once are one.
  const again = setInterval(() => child.kill('SIGINT'), 30)
  t.match(await result, { code: 130 })
  clearInterval(again)
  for (let i = 0; i < 200 && ended.length === 0; i++) await sleep(10)
  t.equal(ended.length, 1, 'the daemon learns that it went')
})

t.test('a daemon that goes away is told, with 125', async t => {
  const { socket } = serve(t, (_, say, _fds, control, connection) => {
    say({ type: 'started', cell: 'c1' })
    control.disconnect(connection)
  })
  const { code, stderr } = await run(cell(socket, '--', 'true'))
  t.equal(code, 125)
  t.match(stderr, /^ambit: could not follow the cell to its end: the daemon went away\n {2}\S/)
  const mute = serve(t, (_, _say, _fds, control, connection) => control.disconnect(connection))
  t.match(await run(cell(mute.socket, '--', 'true')), { code: 125, stderr: /could not build the cell/ })
  const babbling = serve(t, (_, _say, _fds, control, connection) => control.send(connection, Buffer.from('{"type":"ended"}')))
  t.match(await run(cell(babbling.socket, '--', 'true')), { code: 125, stderr: /does not understand/ })
})

t.test('without a daemon, or without the right to it, the error says what to do', async t => {
  t.match(await run(cell(join(dir, 'nobody'), '--', 'true')), { code: 2, stderr: /^ambit: could not reach the daemon: .*nobody: No such file or directory\n {2}start the daemon/ })
  const { socket } = serve(t, () => {})
  for (const path of [dir, work]) spawnSync('chmod', ['755', path])
  const { status, stderr } = spawnSync('setpriv', ['--reuid', '54321', '--regid', '54321', '--clear-groups', CLIENT, ...cell(socket, '--', 'true')], { cwd: work, encoding: 'utf8' })
  t.equal(status, 2)
  t.match(stderr, /Permission denied\n {2}ask whoever runs this host/)
})

t.test('the evidence directory is handed over by descriptor, and nothing half made stays', async t => {
  const made = join(dir, 'made')
  const { socket, seen } = serve(t, (message, say, fds) => {
    if (!(message as RunMessage).evidence) return
    t.equal(fds.length, 5)
    t.equal(fstatSync(fds[4]!).ino, statSync(made).ino)
    if (seen.length === 1) {
      say({ type: 'error', error: { code: 'CELL_FAILED', attempted: 'build the cell', why: 'no', remedy: 'none' }, exitCode: 125 })
      return
    }
    writeFileSync(`/proc/self/fd/${fds[4]}/file`, 'evidence')
    say(ended())
  })
  t.equal((await run(cell(socket, '--evidence', made, '--', 'true'))).code, 125)
  t.notOk(existsSync(made), 'taken away again')
  t.equal((await run(cell(socket, '--evidence', made, '--', 'true'))).code, 0)
  t.same(readdirSync(made), ['file'])
  t.equal(statSync(made).mode & 0o777, 0o700)
  const asked = seen.length
  t.match(await run(cell(socket, '--evidence', made, '--', 'true')), { code: 2, stderr: /prepare the evidence directory .*made: it is not empty/ })
  t.match(await run(cell(socket, '--evidence', join(dir, 'no/such'), '--', 'true')), { code: 2, stderr: /No such file/ })
  t.match(await run(cell(socket, '--evidence', contract, '--', 'true')), { code: 2, stderr: /Not a directory/ })
  t.equal(seen.length, asked, 'the daemon was not asked')
  t.match(await run(cell(join(dir, 'nobody'), '--evidence', join(dir, 'unmade'), '--', 'true')), { code: 2 })
  t.notOk(existsSync(join(dir, 'unmade')))
})

t.test('what cannot be passed unchanged is refused, or stays outside', async t => {
  const { socket, seen } = serve(t, (_, say) => say(ended()))
  // Node has no way to pass such bytes: a shell has.
  const shell = (script: string) => spawnSync('sh', ['-c', script], { cwd: work, encoding: 'utf8', env: {} })
  const command = cell(socket, '--').join(' ')
  t.match(shell(`${CLIENT} ${command} echo fine "$(printf '\\377')"`), { status: 2, stderr: /argument 2 of the command is not UTF-8/ })
  t.match(shell(`${CLIENT} ${command} echo "$(printf '\\355\\240\\200')"`), { status: 2, stderr: /argument 1/ }, 'a surrogate')
  t.equal(seen.length, 0)
  const result = start(['run', '--socket', socket, '--contract', contract, '--', 'true'])
  t.equal((await result.result).code, 0)
  const child = spawn('sh', ['-c', `BAD="$(printf '\\300\\200')" GOOD=ü exec ${CLIENT} ${command} true`], { cwd: work, env: {} })
  await new Promise(resolve => child.once('exit', resolve))
  const { env } = seen[1] as RunMessage
  t.equal(env['GOOD'], 'ü')
  t.notOk('BAD' in env)
  const bad = join(dir, 'bad.yaml')
  writeFileSync(bad, Buffer.concat([Buffer.from('kind: Cell\nname: '), Buffer.from([0xff])]))
  t.match(await run(['run', '--socket', socket, '--contract', bad, '--', 'true']), { code: 2, stderr: /bad\.yaml:2: could not read the contract: byte 17 is not UTF-8/ })
  t.match(await run(['run', '--socket', socket, '--contract', join(dir, 'none.yaml'), '--', 'true']), { code: 2, stderr: /^ambit: could not read the contract: .*none\.yaml: No such file or directory\n {2}check/ })
})

t.test('a request of the largest size passes, and a larger one is refused before it is sent', async t => {
  const { socket, seen } = serve(t, (_, say) => say(ended()))
  const plain = join(dir, 'plain.yaml')
  writeFileSync(plain, 'kind: Cell')
  // One argument holds 128 KiB at most.
  const argv = (total: number): string[] => {
    const size = (words: string[]): number => JSON.stringify({ op: 'run', contract: { text: 'kind: Cell', file: plain }, argv: words, env: {}, evidence: false }).length
    const words = ['true', 'x'.repeat(100_000), 'x'.repeat(100_000), '']
    return [...words.slice(0, 3), 'x'.repeat(total - size(words))]
  }
  const ask = (total: number): Promise<Result> => run(['run', '--socket', socket, '--contract', plain, '--', ...argv(total)])
  t.equal((await ask(256 * 1024)).code, 0)
  t.equal((seen[0] as RunMessage).argv.length, 4)
  t.match(await ask(256 * 1024 + 1), { code: 2, stderr: /together are 262145 bytes, and 262144 is the most/ })
  t.equal(seen.length, 1)
})

t.test('the command line is read strictly', async t => {
  t.match(await run(['--help']), { code: 0, stdout: /^Usage: ambit-client run/ })
  t.match(await run(['run', '--help']), { code: 0, stdout: /--evidence DIR/ })
  const cases: [string[], RegExp][] = [
    [[], /no command was given/], [['walk'], /"walk" is not a command/], [['run', '--contrct', 'x', '--', 'true'], /there is no option "--contrct"/],
    [['run', '--contract'], /--contract needs a value/], [['run', '--contract=', 'x'], /--contract needs a value/], [['run', '--', 'true'], /--contract is missing/], [['run', '--contract', contract], /the command to run is missing/],
  ]
  for (const [args, why] of cases) {
    const { code, stderr } = await run(args)
    t.equal(code, 2, args.join(' '))
    t.match(stderr, why)
    t.match(stderr, /ambit-client --help/)
  }
})

t.test('a caller with closed descriptors gives the command empty ones', async t => {
  const { socket } = serve(t, (_, say, fds) => {
    for (const fd of fds.slice(0, 3)) t.equal(fstatSync(fd).rdev, statSync('/dev/null').rdev)
    say(ended())
  })
  const child = spawn('sh', ['-c', `exec ${CLIENT} ${cell(socket, '--').join(' ')} true <&- >&- 2>&-`], { cwd: work })
  t.equal(await new Promise(resolve => child.once('exit', resolve)), 0)
})
