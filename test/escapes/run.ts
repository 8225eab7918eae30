import { execFile, spawn } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { startPrivateDaemon } from '../../src/daemon/private-daemon.ts'
import { readBundle } from '../../src/evidence/bundle.ts'
import { CLIENT } from '../../src/package.ts'
import { judge } from '../../src/verdict/verdict.ts'
import type { Attack, Evidence, Stage, Statement, Way } from './case.ts'

export type Outcome = 'worked' | 'refused' | 'absent' | 'broken'
/** `line`: what the attack said of itself. */
export type Seen = { outcome: Outcome; line: string }
export type Result = {
  bare: Seen
  bubblewrap: Seen
  cell: Seen
  evidence: { shown: string } | { silent: string } | { missing: string }
}
export type Suite = {
  run(attack: Attack): Promise<Result>
  stop(): Promise<void>
}

const STATUS = new Map<number, Outcome>([[0, 'worked'], [10, 'refused'], [20, 'absent']])
const PATIENCE_MS = 90_000
const USUAL_BUBBLEWRAP = ['--unshare-all', '--ro-bind', '/', '/', '--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp', '--die-with-parent']

/** One daemon and one folder for as many cases as are run one after another. */
export async function startSuite(): Promise<Suite> {
  // Not below /tmp, which cells and bubblewrap replace by their own.
  const dir = mkdtempSync('/var/tmp/ambit-escapes-')
  chmodSync(dir, 0o755)
  const daemon = await startPrivateDaemon().catch(error => { rmSync(dir, { recursive: true }); throw error })
  const built = new Map<string, Promise<string>>()
  const build = (source: string): Promise<string> => {
    const known = built.get(source) ?? compile(source, join(dir, source))
    built.set(source, known)
    return known
  }
  let stages = 0

  const attempt = async <T>(attack: Attack, way: Way, use: (stage: Stage, argv: string[]) => Promise<T>): Promise<T> => {
    const undo: (() => unknown)[] = []
    const own = join(dir, `${++stages}`)
    const stage: Stage = { dir: own, workspace: join(own, 'workspace'), program: await build(attack.source ?? attack.name), daemon: daemon.socket, defer: act => { undo.unshift(act) } }
    for (const path of [own, stage.workspace]) { mkdirSync(path); chmodSync(path, 0o755) }
    try {
      const args = await attack.setUp?.(stage, way) ?? []
      return await use(stage, [stage.program, ...args])
    } finally {
      for (const act of undo) await act()
      // What an attack leaves may be deeper than a path can be.
      await promisify(execFile)('rm', ['-rf', own])
    }
  }
  const seen = async (attack: Attack, stage: Stage, way: Way, argv: string[]): Promise<Seen> => {
    const ended = await finished(attack.through?.(argv) ?? argv, stage.workspace, [attack.input?.(stage) ?? 'ignore', ...attack.inherits?.(stage) ?? []])
    // Who builds the sandbox may be who stops it: then the attack's program was never started, or its status is not what came back.
    const stopped = { bare: undefined, bubblewrap: /^bwrap: /, cell: attack.stoppedBy }[way]
    const told = ended.outcome === 'broken' ? ended.lines.find(line => stopped?.test(line) === true) : undefined
    const outcome: Seen = told === undefined ? ended : { outcome: 'refused', line: told }
    return await attack.tookEffect?.(stage, way) === true ? { outcome: 'worked', line: `${outcome.line}; and yet it took effect` } : outcome
  }

  return {
    async run(attack) {
      const bare = await attempt(attack, 'bare', (stage, argv) => seen(attack, stage, 'bare', argv))
      const bubblewrap = await attempt(attack, 'bubblewrap', (stage, argv) =>
        seen(attack, stage, 'bubblewrap', ['bwrap', ...USUAL_BUBBLEWRAP, '--bind', stage.workspace, stage.workspace, '--chdir', stage.workspace, ...attack.bubblewrap?.(stage) ?? [], ...argv]))
      return attempt(attack, 'cell', async (stage, argv) => {
        const contract = join(dir, 'contract.yaml')
        writeFileSync(contract, `apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: escape }\nspec:\n${(attack.contract?.(stage) ?? usualContract(stage)).replace(/^/gm, '  ')}\n`)
        const bundle = attack.bundle?.(stage) ?? join(dir, `bundle-${stages}`)
        const cell = await seen(attack, stage, 'cell', [CLIENT, 'run', '--socket', daemon.socket, '--contract', contract, '--evidence', bundle, '--', ...argv])
        if (typeof attack.evidence !== 'function') return { bare, bubblewrap, cell, evidence: attack.evidence }
        const evidence = await evidenceIn(bundle, stage.program)
        const shown = attack.evidence(evidence, stage)
        return { bare, bubblewrap, cell, evidence: shown === null ? { missing: toldOf(evidence) } : { shown } }
      })
    },
    async stop() {
      await daemon.stop()
      rmSync(dir, { recursive: true, force: true })
    },
  }
}

/** The attack's program and /tmp, in enforce mode: what the smallest useful contract grants. */
export function usualContract(stage: Stage): string {
  return `mode: enforce
ttl: 1m
workspace: shared
authority:
  filesystem: { read: [], write: [/workspace, /tmp] }
  exec: [${stage.program}]
  syscall: { profile: build }`
}

async function compile(source: string, program: string): Promise<string> {
  await promisify(execFile)('gcc', ['-static', '-O1', '-Wall', '-Wextra', '-Werror', '-pthread', '-o', program, join(import.meta.dirname, 'cases', `${source}.c`)])
  return program
}

/** Runs a command to its end, and reads its status and its first line. Who does not end is killed, and broken. */
function finished(argv: readonly string[], cwd: string, [input, ...inherited]: readonly [number | 'ignore', ...number[]]): Promise<Seen & { lines: string[] }> {
  return new Promise((resolve, reject) => {
    // In a group of its own, so that what it started goes with it.
    const child = spawn(argv[0]!, argv.slice(1), { cwd, stdio: [input, 'pipe', 'pipe', ...inherited], detached: true })
    let said = ''
    const hear = (chunk: Buffer): void => { if (said.length < 4096) said += chunk.toString() }
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', hear)
    const late = setTimeout(() => process.kill(-child.pid!, 'SIGKILL'), PATIENCE_MS)
    child.once('error', reject).once('close', (code, signal) => {
      clearTimeout(late)
      const lines = said.trim().split('\n')
      resolve({ outcome: STATUS.get(code ?? -1) ?? 'broken', line: lines[0] || `ended by ${signal ?? `status ${code}`}`, lines })
    })
  })
}

async function evidenceIn(bundle: string, program: string): Promise<Evidence> {
  const { contract, events } = await readBundle(bundle)
  const pids = new Set<number>()
  for (const event of events) {
    if (event.type === 'exec' && event.path === program) pids.add(event.process.pid)
    if (event.type === 'fork' && pids.has(event.process.pid)) pids.add(event.child)
  }
  const verdict = judge(contract, events)
  return { records: events, rows: verdict.rows, pids, cell: verdict.cell }
}

/** What the evidence does hold, for a person who must find out why it lacks the rest. */
function toldOf({ records, rows }: Evidence): string {
  const failures = records.filter(({ type }) => ['syscall.refused', 'file.failed', 'exec.failed', 'dns', 'flow', 'connect', 'limit'].includes(type))
  return JSON.stringify({ denied: rows.filter(row => row.outcome === 'denied'), failures })
}

/** The statement holds. */
export async function holds(statement: Statement): Promise<boolean> {
  return statement.check()
}
