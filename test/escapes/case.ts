import type { VerdictRow } from '../../src/verdict/verdict.ts'
import type { EvidenceBody } from '../../src/evidence/records.ts'

/** What a cell's evidence says, for a case to find its refusal in. */
export type Evidence = {
  records: readonly EvidenceBody[]
  rows: readonly VerdictRow[]
  /** Host pids of the attack and of all that it started. */
  pids: ReadonlySet<number>
  cell: string
}

/** The clause that shows the refusal; null: the evidence does not hold it. */
export type Proof = (evidence: Evidence, stage: Stage) => string | null

/** What a case has to itself on the host, and gives back. */
export type Stage = {
  /** A folder of this case alone, which anybody may read; below /var/tmp, which cells can show. */
  dir: string
  /** The directory that the attack is called from: /workspace in a cell. */
  workspace: string
  /** The attack's program. */
  program: string
  /** The control socket of the daemon that makes the cells. */
  daemon: string
  /** Run when the case is over, last first. */
  defer(undo: () => unknown): void
}

export type Way = 'bare' | 'bubblewrap' | 'cell'

export type Attack = {
  name: string
  /** One sentence: what it attempts, and against whom. */
  attempts: string
  /** Rows of the escape table ("row 15") and the issue's own words that it answers. */
  covers: readonly string[]
  /** The file in cases/, without its ending; the case's name unless given. */
  source?: string
  /** Puts up what is attacked, and returns the program's arguments. Once for each way. */
  setUp?(stage: Stage, way: Way): string[] | Promise<string[]>
  /** Descriptors that whoever starts the attack leaves open in it, from 3 on. */
  inherits?(stage: Stage): number[]
  /** The attack's input; without it, /dev/null. */
  input?(stage: Stage): number
  /** The command that runs another, if the attack is not run by itself. */
  through?(argv: readonly string[]): string[]
  /** Looks whether the attack took effect where its own program cannot tell: true overrules a refusal. */
  tookEffect?(stage: Stage, way: Way): boolean | Promise<boolean>
  /** More arguments of bubblewrap: what somebody who needs the same thing would add. */
  bubblewrap?(stage: Stage): string[]
  /** Where the cell's evidence is written, if that is under attack. */
  bundle?(stage: Stage): string
  /** What the caller is told where ambit itself stops the attack: the cell is not built, or what was asked for is not done. */
  stoppedBy?: RegExp
  /** The lines below `spec:` of the contract, instead of the usual ones. */
  contract?(stage: Stage): string
  /** Where the refusal stands in the evidence. */
  evidence: Proof | { silent: string }
  /** Why this host may lack what is attacked; without it, bare must work. */
  mayBeAbsent?: string
}

/** A row that cannot be attacked here: what is said instead, and a check that it is so. */
export type Statement = {
  name: string
  covers: readonly string[]
  statement: string
  /** Throws, or returns false, where the statement does not hold. */
  check(): boolean | Promise<boolean>
}

const byAttack = (evidence: Evidence, process: { pid: number }): boolean => evidence.pids.has(process.pid)
const denied = (evidence: Evidence, kind: string, wanted: (grant: string) => boolean): VerdictRow | undefined =>
  evidence.rows.find(row => row.kind === kind && row.outcome === 'denied' && wanted(row.grant))

/** A call that the filter refused: in the records by the attack's process, and in the verdict as denied. `arch`: another way in than the machine's own. */
export function refusedCall(names: string | readonly string[], arch = 'x86_64'): Proof {
  const wanted = typeof names === 'string' ? [names] : names
  return evidence => {
    for (const name of wanted) {
      const record = evidence.records.find(one => one.type === 'syscall.refused' && one.arch === arch && (one.name ?? `#${one.nr}`) === name && byAttack(evidence, one.process))
      const row = denied(evidence, 'syscall', grant => grant === name || grant.startsWith(`${name} (`))
      if (record?.type === 'syscall.refused' && row !== undefined) return `denied syscall ${row.grant}: ${record.errno} for pid ${record.process.pid}`
    }
    return null
  }
}

/** A file that could not be opened or changed: in the records by the attack's process, and in the verdict as denied. */
export function deniedFile(path: string | ((stage: Stage) => string)): Proof {
  return (evidence, stage) => {
    const wanted = typeof path === 'string' ? path : path(stage)
    const record = evidence.records.find(one => one.type === 'file.failed' && one.path === wanted && byAttack(evidence, one.process))
    const row = denied(evidence, 'filesystem', grant => grant.endsWith(` ${wanted}`))
    return record?.type === 'file.failed' && row !== undefined ? `denied filesystem ${row.grant}: ${record.errno} for pid ${record.process.pid}` : null
  }
}

/** A socket of the host that could not be spoken to: a destination where the evidence knows it for one, and a file elsewhere. */
export function deniedSocket(path: string | ((stage: Stage) => string)): Proof {
  return ({ records, rows, pids }, stage) => {
    const wanted = typeof path === 'string' ? path : path(stage)
    const record = records.find(one => one.type === 'file.failed' && one.path === wanted && pids.has(one.process.pid))
    const row = rows.find(one => one.outcome === 'denied' && one.grant.includes(wanted))
    return record?.type === 'file.failed' && row !== undefined ? `denied ${row.kind} ${row.grant}: ${record.errno} for pid ${record.process.pid}` : null
  }
}

/** A program that could not be executed. */
export function deniedProgram(path: string | ((stage: Stage) => string)): Proof {
  return (evidence, stage) => {
    const wanted = typeof path === 'string' ? path : path(stage)
    const record = evidence.records.find(one => one.type === 'exec.failed' && one.path === wanted && byAttack(evidence, one.process))
    const row = denied(evidence, 'exec', grant => grant === wanted)
    return record?.type === 'exec.failed' && row !== undefined ? `denied exec ${row.grant}: ${record.errno} for pid ${record.process.pid}` : null
  }
}

/** A destination that the relay or the resolver refused, and the attack's process that dialled it. */
export function deniedDestination(wanted: (grant: string) => boolean): Proof {
  return evidence => {
    const row = denied(evidence, 'network', wanted)
    const record = evidence.records.find(one => one.type === 'connect' && byAttack(evidence, one.process))
    return row === undefined ? null : `denied network ${row.grant}${record?.type === 'connect' ? ` by pid ${record.process.pid}` : ''}`
  }
}

/** A limit of the cell that was reached. */
export function limitReached(limit: 'memory' | 'pids' | 'ttl'): Proof {
  return evidence => {
    const record = evidence.records.find(one => one.type === 'limit' && one.limit === limit)
    return record?.type === 'limit' ? `${limit} limit: ${record.detail}` : null
  }
}

/** Every one of several acts was refused. */
export function all(...proofs: readonly Proof[]): Proof {
  return (evidence, stage) => {
    const found = proofs.map(proof => proof(evidence, stage))
    return found.includes(null) ? null : found.join('; ')
  }
}
