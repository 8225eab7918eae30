import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join, relative, resolve } from 'node:path'
import { audit } from '../audit/audit.ts'
import { renderText } from '../audit/forms.ts'
import { contractFromJob } from '../contract/from-job.ts'
import { narrowContract } from '../contract/narrow.ts'
import type { Contract } from '../contract/schema.ts'
import { jobGrantOf } from '../contract/to-job.ts'
import { writeContract } from '../contract/write.ts'
import { startPrivateDaemon, type PrivateDaemon } from '../daemon/private-daemon.ts'
import { AmbitError } from '../errors.ts'
import { appendLedger, readLedger } from '../evidence/ledger.ts'
import { untilInterrupted } from '../interrupt.ts'
import { driver } from '../pipeline/github/script.ts'
import { narrowWorkflow, unifiedDiff } from '../pipeline/narrow.ts'
import { readPipelines } from '../pipeline/read.ts'
import type { Job, PipelineFile } from '../pipeline/graph.ts'
import { printable, readText } from '../text.ts'
import { renderVerdict } from '../verdict/forms.ts'
import { ledgerEntry } from '../verdict/ledger-entry.ts'
import { runInCell, type CellRun } from './cell-run.ts'
import { startLocalServer, type LocalServer } from './server.ts'
import { attempts, readLoopSettings, type LoopSettings } from './settings.ts'
import { evidenceSummary, type Show } from './show.ts'

export type LoopOptions = {
  path: string
  job?: string
  /** Where contracts, bundles, the ledger and the narrowed workflow go. */
  out?: string
  /** Write the narrowed workflow back to where it came from. */
  apply: boolean
  color: boolean
  show: Show
}

/** Where the job's driver lies in the workspace's copy. */
const DRIVER = '.ambit/job'

/** The whole loop for one job. Resolves to where its results are; what did not hold is in `show.broken`. */
export async function loop(options: LoopOptions): Promise<string> {
  const { show } = options
  const source = resolve(options.path)
  if (!existsSync(source) || !statSync(source).isDirectory()) {
    throw new AmbitError('FILE_UNREADABLE', { attempted: 'run the loop', why: `${options.path} is not a directory`, remedy: 'give a directory that holds .github/workflows' })
  }
  const settings = readLoopSettings(source)
  const files = await readPipelines(settings.workflow === undefined ? source : join(source, settings.workflow))
  const { file, job } = choose(files, options.job ?? settings.job)
  if (job.unsupported.length > 0) refuse(file, job)

  if (options.out !== undefined) refuseOut(options.out)
  const out = resolve(options.out ?? mkdtempSync(join(tmpdir(), 'ambit-loop-')))
  const ledger = join(out, 'ledger')
  const neighbour = mkdtempSync('/var/tmp/ambit-neighbour-')
  // A cell's ids own nothing on the host: only what everyone may read is there to be withheld.
  chmodSync(neighbour, 0o755)
  writeFileSync(join(neighbour, 'notes.txt'), 'another job\'s notes\n', { mode: 0o644 })
  const scratch = mkdtempSync(join(tmpdir(), 'ambit-work-'))
  let server: LocalServer | undefined
  let daemon: PrivateDaemon | undefined
  const stations = async (): Promise<string> => {
    show.station(`audit: what does job "${job.id}" of ${file.file} hold?`)
    const first = audit([only(file, job)], [])
    show.block(renderText(first, { color: options.color }))
    show.promise('the audit finds declared authority that nobody has measured', first.findings.some(finding => finding.state === 'open'))
    show.done()

    show.station('contract: what the pipeline file grants, made explicit')
    if (settings.server !== undefined) {
      mkdirSync(join(scratch, 'server'), { mode: 0o700 })
      server = await startLocalServer(settings.server.command, source, join(scratch, 'server'))
      show.line(`local API server (example material, not GitHub) on port ${server.port}`)
    }
    const contract = fromPipeline(file, job, settings, server)
    refuseUnissued(contract, settings)
    show.block(writeContract(contract))
    show.done()

    daemon = await startPrivateDaemon({ issuers: writeIssuers(scratch, settings, server) })
    const copy = (name: string): string => workspace(source, join(scratch, name), file, job, settings, server, neighbour)
    const onLine = (line: string): void => show.line(`│ ${printable(line)}`)
    const run = (name: string, under: Contract, script: string): Promise<CellRun> =>
      runInCell(daemon!, { name, contract: under, workspace: copy(name), argv: ['bash', script], out, onLine })

    show.station('observe: the job in a cell, under eyes')
    const observed = await run('observe', contract, `/workspace/${DRIVER}/driver.sh`)
    show.promise(`the job is green (cell ${observed.verdict.cell}, ${(observed.wallMs / 1000).toFixed(2)} s)`, observed.status === 0)
    show.promise(`its evidence verifies: ${observed.verified.records} records, signed`, observed.verified.valid)
    show.done()

    show.station('evidence: what it really did')
    show.block(evidenceSummary(observed.records))
    show.done()

    show.station('verdict: declared against used')
    show.block(renderVerdict(observed.verdict, { color: options.color, all: false }))
    await appendLedger(ledger, ledgerEntry(observed.verdict, contract, observed.verified.head))
    show.promise('something that was declared was not used', observed.verdict.rows.some(row => row.outcome === 'unused'))
    show.done()

    show.station('audit again, with the evidence')
    const second = audit([only(file, job)], await readLedger(ledger))
    show.block(renderText(second, { color: options.color }))
    show.promise('the finding is confirmed: measured over-authority', second.findings.some(finding => finding.state === 'confirmed'))
    show.done()

    show.station('narrow: the contract and the pipeline file, cut down to what was used')
    const narrowed = narrowContract(contract, observed.records)
    const before = readText(join(source, file.file), 'the workflow')
    const { text: after } = narrowWorkflow(before, job.id, jobGrantOf(narrowed), `measured in cell ${observed.verdict.cell}`)
    const diff = unifiedDiff(file.file, before, after)
    const narrowedRoot = join(out, 'narrowed')
    mkdirSync(dirname(join(narrowedRoot, file.file)), { recursive: true })
    writeFileSync(join(narrowedRoot, file.file), after)
    writeFileSync(join(out, 'narrowed.diff'), diff)
    show.block(shortContract(narrowed))
    show.block(diff)
    show.promise('the pipeline file grants less than before', diff !== '')
    show.done()

    show.station('enforce: the job again, with the narrowed contract')
    const narrowedFiles = await readPipelines(join(narrowedRoot, file.file))
    const digest = narrowedFiles[0]!.digest
    const enforced: Contract = { ...narrowed, metadata: { ...narrowed.metadata, pipeline: { file: file.file, job: job.id, digest } } }
    const again = await run('enforce', enforced, `/workspace/${DRIVER}/driver.sh`)
    show.promise(`the job is still green (cell ${again.verdict.cell}, ${(again.wallMs / 1000).toFixed(2)} s)`, again.status === 0)
    show.promise('its evidence verifies', again.verified.valid)
    const denied = again.verdict.rows.filter(row => row.outcome === 'denied')
    if (denied.length > 0) show.line(`withheld without harm: ${denied.map(row => `${row.kind} ${printable(row.grant)}`).slice(0, 8).join(', ')}`)
    await appendLedger(ledger, ledgerEntry(again.verdict, enforced, again.verified.head))
    show.done()

    if (settings.hostile !== undefined) {
      show.station('hostile: the same contract, a job that wants more')
      for (const [index, one] of attempts.parse(JSON.parse(readText(join(source, settings.hostile), 'the hostile attempts'))).entries()) {
        const script = `/workspace/${DRIVER}/attempt-${index}.sh`
        const quiet = { name: `hostile-${index}`, workspace: '', argv: ['bash', script], out, onLine: (): void => {} }
        const bare = await runInCell(daemon, { ...quiet, name: `hostile-${index}-before`, contract, workspace: copy(`hostile-${index}-before`) })
        const held = await runInCell(daemon, { ...quiet, contract: enforced, workspace: copy(quiet.name) })
        const rows = held.verdict.rows.filter(row => row.kind === one.kind && row.outcome === 'denied')
        show.promise(`${one.name}: possible before, refused now, and in evidence as denied (${rows.map(row => printable(row.grant)).slice(0, 2).join(', ') || 'nothing denied'})`,
          bare.status === 0 && held.status !== 0 && rows.length > 0 && held.verified.valid)
      }
      show.done()
    }

    show.station('audit of the narrowed pipeline file: is the finding closed?')
    const last = audit(narrowedFiles.map(narrowedFile => ({ ...narrowedFile, file: file.file, jobs: narrowedFile.jobs.filter(one => one.id === job.id) })), await readLedger(ledger))
    show.block(renderText(last, { color: options.color }))
    const closed = last.findings.filter(finding => finding.state === 'closed')
    show.promise(`closed with proof: ${closed.map(finding => `${finding.grant} by ${finding.evidence?.cell}`).join(', ') || 'none'}`, closed.length > 0 && closed.every(finding => finding.evidence !== null))
    show.promise('nothing is left confirmed or regressed', !last.findings.some(finding => finding.job === job.id && (finding.state === 'confirmed' || finding.state === 'regressed')))
    show.done()

    if (options.apply && show.broken.length === 0) writeFileSync(join(source, file.file), after)
    if (options.apply && show.broken.length > 0) show.line('the workflow is left as it was: a job that did not do what it should proves nothing')
    return out
  }
  try {
    return await untilInterrupted('close the loop', stations())
  } finally {
    await daemon?.stop()
    await server?.stop()
    rmSync(scratch, { recursive: true, force: true })
    rmSync(neighbour, { recursive: true, force: true })
  }
}

/** What the loop cannot hand to the job here is told before anything runs, with where it can be said. */
function refuseUnissued(contract: Contract, settings: LoopSettings): void {
  const { github, secret } = contract.spec.authority
  const missing = secret.map(one => one.name).filter(name => !settings.secrets.includes(name))
  const token = settings.server === undefined && Object.keys(github.permissions).some(name => name !== 'id_token')
  if (missing.length === 0 && !token) return
  throw new AmbitError('CREDENTIAL_REFUSED', {
    attempted: 'hand the job what its file grants',
    why: [token ? 'it holds a GitHub token, and the loop has no server to mint one' : '', missing.length > 0 ? `it is handed secrets without a value here: ${missing.join(', ')}` : ''].filter(Boolean).join('; '),
    remedy: 'say in ambit.yaml beside .github what stands in for them: `secrets: [NAME]` (they get made-up values) and `server:` (see examples/overbroad-build/ambit.yaml); or set `permissions: {}` for a job that needs no token',
  })
}

/** The loop speaks of one job; the file may hold others. */
function only(file: PipelineFile, job: Job): PipelineFile {
  return { ...file, jobs: [job] }
}

function refuseOut(out: string): void {
  const there = statSync(out, { throwIfNoEntry: false })
  if (there === undefined || (there.isDirectory() && readdirSync(out).length === 0)) return
  throw new AmbitError('USAGE', { attempted: 'keep the results', why: `${out} is ${there.isDirectory() ? 'not empty' : 'no directory'}`, remedy: 'name a new or empty directory with --out' })
}

function choose(files: PipelineFile[], wanted: string | undefined): { file: PipelineFile; job: Job } {
  const all = files.flatMap(file => file.jobs.map(job => ({ file, job })))
  const found = wanted === undefined ? all : all.filter(({ job }) => job.id === wanted)
  if (found.length === 1) return found[0]!
  throw new AmbitError('USAGE', {
    attempted: 'choose the job', why: found.length === 0 ? (wanted === undefined ? 'there is no job' : `there is no job "${wanted}"`) : 'there are several jobs',
    remedy: `name one with --job: ${all.map(({ file, job }) => `${job.id} (${file.file})`).join(', ') || 'none found'}`,
  })
}

function refuse(file: PipelineFile, job: Job): never {
  throw new AmbitError('PIPELINE_INVALID', {
    attempted: `run job "${job.id}" on this host`,
    why: job.unsupported.map(one => `line ${one.line}: ${one.what}: ${one.why}`).join('; '),
    remedy: 'the loop runs jobs made of `run:` steps; what is listed runs on a runner only',
    where: { file: file.file, line: job.unsupported[0]!.line },
  })
}

function fromPipeline(file: PipelineFile, job: Job, settings: LoopSettings, server: LocalServer | undefined): Contract {
  const apiUrl = server === undefined ? 'https://api.github.com' : `https://${settings.apiHost ?? 'localhost'}:${server.port}`
  return contractFromJob({
    name: `${basename(file.file).replace(/\.ya?ml$/, '')}-${job.id}`,
    pipeline: { file: file.file, job: job.id, digest: file.digest },
    grant: job.grant,
    apiUrl,
    repositories: [settings.repository],
    hosts: server === undefined ? {} : Object.fromEntries([settings.apiHost, settings.collectorHost].filter(host => host !== undefined).map(host => [host, '127.0.0.1'])),
    environment: {
      pass: settings.environment.pass,
      set: {
        CI: 'true', GITHUB_ACTIONS: 'true', GITHUB_REPOSITORY: settings.repository, GITHUB_API_URL: apiUrl,
        GITHUB_WORKSPACE: '/workspace', GITHUB_JOB: job.id, GITHUB_SHA: '0'.repeat(40), GITHUB_REF: 'refs/heads/main', GITHUB_REF_NAME: 'main', GITHUB_ACTOR: 'ambit', GITHUB_EVENT_NAME: 'push', GITHUB_RUN_ID: '1', GITHUB_RUN_NUMBER: '1', RUNNER_TEMP: '/tmp', RUNNER_OS: 'Linux', ...settings.environment.set,
      },
    },
  })
}

/** Every run gets a fresh copy, so that no run sees what another left behind. */
function workspace(source: string, target: string, file: PipelineFile, job: Job, settings: LoopSettings, server: LocalServer | undefined, neighbour: string): string {
  cpSync(source, target, { recursive: true, verbatimSymlinks: true, filter: path => basename(path) !== 'node_modules' || relative(source, path) === '' })
  const folder = join(target, DRIVER)
  mkdirSync(folder, { recursive: true })
  if (server !== undefined) writeFileSync(join(target, '.ambit/ca.pem'), server.ca)
  const { script, files } = driver(job, { repository: settings.repository, workflow: file, directory: `/workspace/${DRIVER}` })
  writeFileSync(join(folder, 'driver.sh'), script)
  for (const [name, content] of Object.entries(files)) writeFileSync(join(folder, name), content)
  if (settings.hostile !== undefined) {
    for (const [index, one] of attempts.parse(JSON.parse(readFileSync(join(source, settings.hostile), 'utf8'))).entries()) {
      const facts = { NEIGHBOUR: join(neighbour, 'notes.txt'), COLLECTOR: `${settings.collectorHost ?? ''}:${server?.collectorPort ?? ''}` }
      const exports = Object.entries(facts).map(([name, value]) => `export ${name}='${value}'`)
      writeFileSync(join(folder, `attempt-${index}.sh`), `${exports.join('\n')}\n${one.script}\n`)
    }
  }
  return target
}

/** The daemon's issuers for this loop alone: the local server's App, and made-up values for the job's secrets. */
function writeIssuers(dir: string, settings: LoopSettings, server: LocalServer | undefined): string {
  const secrets: Record<string, { file: string }> = {}
  for (const name of settings.secrets) {
    const path = join(dir, `secret-${name}`)
    writeFileSync(path, `made-up-${name.toLowerCase()}`, { mode: 0o600 })
    secrets[name] = { file: path }
  }
  const github = server === undefined ? undefined : {
    appId: String(server.appId), installationId: String(server.installationId), privateKeyFile: server.keyFile,
    apiUrl: `https://127.0.0.1:${server.port}`, caFile: join(dir, 'server/ca.pem'),
  }
  const oidc = server?.requestToken === undefined ? undefined : {
    requestUrl: `https://${settings.apiHost}:${server.port}/_apis/oidc/token?api-version=2`, requestToken: server.requestToken,
  }
  const path = join(dir, 'issuers.yaml')
  writeFileSync(path, JSON.stringify({ ...(github ? { github } : {}), ...(oidc ? { oidc } : {}), secrets }), { mode: 0o600 })
  return path
}

/** Long lists are cut: the whole contract lies among the results. */
function shortContract(contract: Contract): string {
  const short = structuredClone(contract)
  const { syscall, filesystem } = short.spec.authority
  const cut = <T>(list: T[]): (T | string)[] => (list.length > 8 ? [...list.slice(0, 7), `… and ${list.length - 7} more`] : list)
  short.spec.authority = { ...short.spec.authority, exec: cut(short.spec.authority.exec), syscall: { ...syscall, allow: cut(syscall.allow) }, filesystem: { read: cut(filesystem.read), write: cut(filesystem.write) } }
  return writeContract(short).trimEnd()
}
