import { createTwoFilesPatch, FILE_HEADERS_ONLY } from 'diff'
import { isAlias, isCollection, isMap, isPair, isScalar, isSeq, type Node, type Pair, type YAMLMap } from 'yaml'
import type { JobGrant } from '../authority/kind.ts'
import { AmbitError } from '../errors.ts'
import { soleSecret } from './github/expressions.ts'
import { hyphened, underscored, type Access } from './github/permissions.ts'
import { openYaml, type Entry, type Yaml } from './github/yaml.ts'
import { readWorkflow, type Workflow } from './github/workflow.ts'
import type { Job } from './graph.ts'

type Edit = { from: number; to: number; text: string }
type Permissions = Map<string, Access>

/**
 * Cuts one job of a workflow down to `grant`, as far as the file says more; what the grant leaves out stays as it is.
 * Only the lines that change are touched. The block that is narrowed carries `# ambit: COMMENT`.
 *
 * A job's own `permissions:` replaces the workflow's, so it is what is written, with one exception: where the file has
 * only this job and the workflow's block is the one in force, that block is narrowed in its place. Secrets go where an
 * env entry hands over exactly one and nothing else.
 *
 * The result is read again before it is given out: it parses, grants the job no more than before, and other jobs what
 * they had. Throws PIPELINE_INVALID if that cannot be reached (YAML that jobs share by an anchor), USAGE for an unknown job.
 */
export function narrowWorkflow(text: string, jobId: string, grant: Partial<JobGrant>, comment: string): { text: string; changed: boolean } {
  const file = 'the workflow'
  const before = readWorkflow(text, file)
  const job = before.jobs.find(one => one.id === jobId)
  if (job === undefined) {
    throw new AmbitError('USAGE', { attempted: 'narrow the workflow', why: `it has no job "${jobId}"`, remedy: `its jobs: ${before.jobs.map(one => one.id).join(', ')}` })
  }
  const byPermissions = grant.tokenPermissions === undefined && grant.oidc === undefined ? text : narrowPermissions(text, before, job, grant, tidy(comment))
  const after = grant.secrets === undefined ? byPermissions : narrowSecrets(byPermissions, jobId, before.jobs.length === 1, new Set(grant.secrets.map(name => name.toUpperCase())))
  if (after !== text) check(before, readAgain(after, jobId, file), jobId)
  return { text: after, changed: after !== text }
}

/** A unified diff with git's a/ and b/ headers; empty if nothing differs. */
export function unifiedDiff(name: string, before: string, after: string): string {
  if (before === after) return ''
  const path = name.replace(/^\/+/, '')
  return createTwoFilesPatch(`a/${path}`, `b/${path}`, before, after, undefined, undefined, { headerOptions: FILE_HEADERS_ONLY })
}

function tidy(comment: string): string {
  return `# ambit: ${comment.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, ' ')}`
}

function readAgain(text: string, jobId: string, file: string): Workflow {
  try {
    return readWorkflow(text, file)
  } catch (cause) {
    throw shared(jobId, (cause as Error).message.split('\n')[0]!)
  }
}

function shared(jobId: string, why: string): AmbitError {
  return new AmbitError('PIPELINE_INVALID', {
    attempted: `narrow job "${jobId}"`, why, remedy: 'write out what the jobs share by an anchor, then narrow again; nothing was changed',
  })
}

/** The promise of this file, kept by looking. */
function check(before: Workflow, after: Workflow, jobId: string): void {
  for (const old of before.jobs) {
    const now = after.jobs.find(one => one.id === old.id)
    if (now === undefined) throw shared(jobId, `job "${old.id}" would vanish`)
    const problem = old.id === jobId ? wider(now.grant, old.grant) : differs(now.grant, old.grant)
    if (problem !== null) throw shared(jobId, `job "${old.id}" would change: ${problem}`)
  }
}

function wider(now: JobGrant, old: JobGrant): string | null {
  if (now.oidc && !old.oidc && old.tokenPermissions !== null) return 'id-token would be added'
  const secret = now.secrets.find(name => !old.secrets.includes(name))
  if (secret !== undefined) return `secret ${secret} would be added`
  if (old.tokenPermissions === null) return null
  if (now.tokenPermissions === null) return 'its permissions would be the default'
  for (const [name, access] of Object.entries(now.tokenPermissions)) {
    const held = old.tokenPermissions[name]
    if (held === undefined || (held === 'read' && access !== 'read')) return `${name}: ${access} would be added`
  }
  return null
}

function differs(now: JobGrant, old: JobGrant): string | null {
  const plain = (grant: JobGrant): string => JSON.stringify([grant.tokenPermissions && Object.entries(grant.tokenPermissions).sort(), grant.oidc, [...grant.secrets].sort()])
  return plain(now) === plain(old) ? null : 'another job is narrowed'
}

/** What the job is to hold: of each thing the less of what it holds and what it is granted. */
function target(job: Job, grant: Partial<JobGrant>): Permissions {
  const { tokenPermissions: held, oidc } = job.grant
  const wanted = grant.tokenPermissions === undefined ? held : grant.tokenPermissions
  const kept: Permissions = new Map()
  for (const [name, access] of Object.entries(held ?? wanted ?? {})) {
    const asked = wanted === null ? access : wanted[name] ?? wanted[hyphened(name)]
    if (name === 'id_token' || asked === undefined) continue
    kept.set(hyphened(name), access === 'read' || asked === 'read' ? 'read' : 'write')
  }
  const asksOidc = grant.oidc ?? (grant.tokenPermissions?.['id_token'] !== undefined ? true : oidc)
  if (oidc && asksOidc) kept.set('id-token', 'write')
  return kept
}

function holds(job: Job): Permissions | null {
  if (job.grant.tokenPermissions === null) return null
  const held: Permissions = new Map(Object.entries(job.grant.tokenPermissions).map(([name, access]) => [hyphened(name), access as Access]))
  if (job.grant.oidc) held.set('id-token', 'write')
  return held
}

const same = (a: Permissions, b: Permissions): boolean => a.size === b.size && [...a].every(([name, access]) => b.get(name) === access)

function narrowPermissions(text: string, workflow: Workflow, job: Job, grant: Partial<JobGrant>, comment: string): string {
  const wanted = target(job, grant)
  const held = holds(job)
  // Nothing is known of a default but that it may be more than anything that is written down.
  if (held === null && (grant.tokenPermissions === undefined || grant.tokenPermissions === null)) return text
  const yaml = openYaml(text, 'the workflow')
  const jobEntry = yaml.entries(yaml.get(yaml.root, 'jobs')).find(entry => entry.key === job.id)!
  const own = yaml.entries(jobEntry.value).find(entry => entry.key === 'permissions')
  const above = yaml.entries(yaml.root).find(entry => entry.key === 'permissions')
  const edits: Edit[] = []
  const alone = workflow.jobs.length === 1
  if (held === null || !same(held, wanted)) {
    if (own !== undefined) edits.push(...blockEdits(text, yaml, own, wanted, comment))
    else if (alone && above !== undefined) edits.push(...blockEdits(text, yaml, above, wanted, comment))
    else edits.push(insertion(text, yaml, jobEntry, wanted, comment))
  }
  // A job that is added later would inherit what nobody needs now.
  if (own !== undefined && above !== undefined && alone) {
    const inherited: Permissions = new Map(Object.entries(workflow.permissions ?? {}).map(([name, access]) => [hyphened(name), access]))
    const less: Permissions = new Map([...inherited].flatMap(([name, access]): [string, Access][] => {
      const need = wanted.get(name)
      return need === undefined ? [] : [[name, access === 'read' ? 'read' : need]]
    }))
    if (!same(inherited, less)) edits.push(...blockEdits(text, yaml, above, less, comment))
  }
  return apply(text, edits)
}

/** Edits of a `permissions:` block: line by line where each permission has its own plain line, else written anew. */
function blockEdits(text: string, yaml: Yaml, entry: Entry, wanted: Permissions, comment: string): Edit[] {
  const keyStart = (entry.pair.key as Node).range![0]
  const value = entry.pair.value as Node
  const header: Edit = commentAt(text, keyStart, comment)
  if (wanted.size > 0 && isMap(value) && !(value as YAMLMap).flow && !isAlias(value) && value.anchor === undefined && hasOwnLines(text, value as YAMLMap)) {
    const lines = yaml.entries(value).flatMap(({ key, pair }): Edit[] => {
      const node = pair.value as Node
      const access = wanted.get(hyphened(underscored(key)))
      if (access === undefined) return [removal(text, value as YAMLMap, pair)]
      return yaml.text(node) === access ? [] : [{ from: node.range![0], to: node.range![1], text: access }]
    })
    return [header, ...lines]
  }
  if (value.anchor !== undefined && new RegExp(`\\*${escape(value.anchor)}(?![^\\s,\\]}])`).test(text)) throw shared('it', `the permissions block has the anchor &${value.anchor}, which others use`)
  const end = lastOffset(entry.pair)
  const indent = ' '.repeat(keyStart - lineStart(text, keyStart))
  const inFlow = text.slice(lineStart(text, keyStart), keyStart).trim() !== '' && !/^\s*-\s+$/.test(text.slice(lineStart(text, keyStart), keyStart))
  if (inFlow) return [{ from: keyStart, to: end, text: `permissions: ${flow(wanted)}` }]
  const rest = text.slice(end, lineEnd(text, end))
  const kept = /^\s*#/.test(rest) && !/^\s*# ambit: /.test(rest) ? ` ${rest.trim()}` : ''
  return [{ from: keyStart, to: lineEnd(text, end), text: block(text, indent, wanted, `${comment}${kept}`) }]
}

/** Every permission on a line of its own, with a plain or quoted value: what can be edited without rewriting. */
function hasOwnLines(text: string, map: YAMLMap): boolean {
  return map.items.every(pair => {
    const key = pair.key as Node
    const value = pair.value as Node | null
    if (!isScalar(key) || !isScalar(value) || value.anchor !== undefined || key.anchor !== undefined || value.tag !== undefined || !key.range || !value.range) return false
    return text.slice(lineStart(text, key.range[0]), key.range[0]).trim() === '' && !text.slice(key.range[0], value.range[1]).includes('\n')
  })
}

function insertion(text: string, yaml: Yaml, job: Entry, wanted: Permissions, comment: string): Edit {
  if (isAlias(job.pair.value)) throw shared(job.key, 'the whole job is an alias of another')
  const map = job.value as YAMLMap
  const first = (map.items[0]!.key as Node).range![0]
  if (map.flow) return { from: map.range![0] + 1, to: map.range![0] + 1, text: ` permissions: ${flow(wanted)},` }
  const runsOn = yaml.entries(map).find(entry => entry.key === 'runs-on')
  const simple = runsOn !== undefined && isScalar(runsOn.pair.value) && !text.slice((runsOn.pair.key as Node).range![0], lastOffset(runsOn.pair)).includes('\n')
  const indent = ' '.repeat(first - lineStart(text, first))
  const at = simple ? lineEnd(text, lastOffset(runsOn.pair)) : first
  const made = block(text, indent, wanted, comment)
  return simple ? { from: at, to: at, text: `${newline(text)}${indent}${made}` } : { from: at, to: at, text: `${made}${newline(text)}${indent}` }
}

function block(text: string, indent: string, wanted: Permissions, comment: string): string {
  if (wanted.size === 0) return `permissions: {} ${comment}`
  return [`permissions: ${comment}`, ...[...wanted].map(([name, access]) => `${indent}  ${name}: ${access}`)].join(newline(text))
}

function flow(wanted: Permissions): string {
  return wanted.size === 0 ? '{}' : `{ ${[...wanted].map(([name, access]) => `${name}: ${access}`).join(', ')} }`
}

/** The proof goes to the end of the key's line; an older proof makes way. */
function commentAt(text: string, keyStart: number, comment: string): Edit {
  const end = lineEnd(text, keyStart)
  const line = text.slice(keyStart, end)
  const older = line.indexOf(' # ambit: ')
  return older >= 0 ? { from: keyStart + older + 1, to: end, text: comment } : { from: end, to: end, text: `${line.endsWith(' ') ? '' : ' '}${comment}` }
}

function narrowSecrets(text: string, jobId: string, alone: boolean, kept: ReadonlySet<string>): string {
  const yaml = openYaml(text, 'the workflow')
  const job = yaml.entries(yaml.get(yaml.root, 'jobs')).find(entry => entry.key === jobId)!.value
  const levels = [...(alone ? [yaml.root] : []), job, ...yaml.items(yaml.get(job, 'steps'))]
  const edits: Edit[] = []
  for (const level of levels) {
    const env = yaml.entries(level).find(entry => entry.key === 'env')
    if (env === undefined || !isMap(level)) continue
    const entries = yaml.entries(env.value)
    const gone = entries.filter(({ value }) => {
      const secret = soleSecret(yaml.text(value) ?? '')
      return secret !== null && secret !== 'GITHUB_TOKEN' && !kept.has(secret)
    })
    if (gone.length === 0) continue
    if (gone.length === entries.length) edits.push(removal(text, level as YAMLMap, env.pair))
    else if (isAlias(env.pair.value)) throw shared(jobId, 'its env is an alias of another')
    else for (const { pair } of gone) edits.push(removal(text, env.value as YAMLMap, pair))
  }
  return apply(text, edits)
}

/** Takes a pair out of its mapping: whole lines where it has lines of its own. */
function removal(text: string, map: YAMLMap, pair: Pair): Edit {
  const index = map.items.indexOf(pair)
  const from = (pair.key as Node).range![0]
  const end = lastOffset(pair)
  const next = map.items[index + 1]
  const previous = map.items[index - 1]
  if (map.flow) {
    if (next !== undefined) return { from, to: (next.key as Node).range![0], text: '' }
    return { from: previous === undefined ? from : lastOffset(previous), to: end, text: '' }
  }
  const start = lineStart(text, from)
  // The first key of a list's item stands behind the dash, which must stay.
  if (text.slice(start, from).trim() !== '') {
    if (next === undefined) throw shared('it', 'an item of a list would be left empty')
    return { from, to: (next.key as Node).range![0], text: '' }
  }
  const after = afterLine(text, end)
  const blankBefore = start === 0 || /\n[ \t]*\r?\n$/.test(text.slice(0, start))
  const blankAfter = /^[ \t]*\r?\n/.exec(text.slice(after))
  return { from: start, to: blankBefore && blankAfter !== null ? after + blankAfter[0].length : after, text: '' }
}

/** Where the last character of a pair's content ends: comments and blank lines that follow are not part of it. */
function lastOffset(node: unknown): number {
  if (isPair(node)) return node.value === null ? lastOffset(node.key) : lastOffset(node.value)
  const one = node as Node
  if (isCollection(one) && !one.flow && (isMap(one) || isSeq(one)) && one.items.length > 0) return lastOffset(one.items.at(-1))
  return one.range![1]
}

const newline = (text: string): string => (text.includes('\r\n') ? '\r\n' : '\n')
const lineStart = (text: string, at: number): number => text.lastIndexOf('\n', at - 1) + 1
const escape = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

function lineEnd(text: string, at: number): number {
  const end = text.indexOf('\n', at)
  if (end < 0) return text.length
  return text[end - 1] === '\r' ? end - 1 : end
}

function afterLine(text: string, at: number): number {
  // A block scalar's range ends behind its last line already.
  if (text[at - 1] === '\n') return at
  const end = text.indexOf('\n', at)
  return end < 0 ? text.length : end + 1
}

/** From the last to the first, so that offsets stay true. */
function apply(text: string, edits: Edit[]): string {
  return edits.sort((a, b) => b.from - a.from || b.to - a.to).reduce((done, { from, to, text: put }) => done.slice(0, from) + put + done.slice(to), text)
}
