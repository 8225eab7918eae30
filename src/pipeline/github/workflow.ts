import type { Node } from 'yaml'
import { AmbitError } from '../../errors.ts'
import type { EnvEntry, GrantSource, Job, PipelineFile, Step, Text, Unsupported } from '../graph.ts'
import { authorityIn } from './expressions.ts'
import { firstError, type ParseError } from './parser.ts'
import { expand, hyphened, underscored, type Access } from './permissions.ts'
import { shellOf } from './shell.ts'
import { openYaml, type Place, type Yaml } from './yaml.ts'

export type Workflow = Omit<PipelineFile, 'digest'>

/**
 * Reads a GitHub workflow. `file` goes into the result, `shown` into messages.
 * GitHub's own parser decides what is a workflow; what it grants is read from the YAML, for the parser drops positions
 * and indentation that are needed later. Throws PIPELINE_INVALID with the place.
 */
export function readWorkflow(text: string, file: string, shown = file): Workflow {
  const yaml = openYaml(text, shown)
  const refuse = (why: string, place: Place | undefined): AmbitError => new AmbitError('PIPELINE_INVALID', {
    attempted: 'read the workflow', why, remedy: 'GitHub would refuse this file too: see its workflow syntax reference', where: { file: shown, ...place },
  })
  if (yaml.root === null || !yaml.isMap(yaml.root)) throw refuse(yaml.root === null || yaml.text(yaml.root) === '' ? 'it is empty' : 'it is not a mapping', { line: 1, column: 1 })
  const jobs = yaml.get(yaml.root, 'jobs')
  if (yaml.isMap(jobs) && yaml.entries(jobs).length === 0) throw refuse('it has no jobs', yaml.place(jobs))
  const error = judgedByGithub(text, shown)
  if (error !== null) throw refuse(error.why, error.place)
  return describe(yaml, file)
}

function judgedByGithub(text: string, shown: string): ParseError | null {
  try {
    return firstError(text)
  } catch (cause) {
    throw new AmbitError('PIPELINE_INVALID', {
      attempted: 'read the workflow', why: `GitHub's own parser gives up on it: ${(cause as Error).message}`,
      remedy: 'write keys as plain text and values without YAML tags', where: { file: shown }, cause,
    })
  }
}

type Permissions = { held: Map<string, Access>; sources: Map<string, Place> } | null

function describe(yaml: Yaml, file: string): Workflow {
  const top = yaml.root
  const atWorkflow = permissionsOf(yaml, top)
  const env = envOf(yaml, top)
  const shared = secretsIn(yaml, yaml.get(top, 'env'), 'workflow')
  const defaults = yaml.get(yaml.get(top, 'defaults'), 'run')
  return {
    file, env, permissions: atWorkflow && Object.fromEntries([...atWorkflow.held].map(([name, access]) => [underscored(name), access])),
    name: yaml.text(yaml.get(top, 'name')) ?? file,
    jobs: yaml.entries(yaml.get(top, 'jobs')).map(({ key, at, value }) => jobOf(yaml, key, at, value, { atWorkflow, shared, defaults })),
  }
}

type Around = { atWorkflow: Permissions; shared: SecretUse; defaults: Node | null }

function jobOf(yaml: Yaml, id: string, at: Place, job: Node | null, around: Around): Job {
  const own = permissionsOf(yaml, job)
  // A job's block replaces the workflow's, it does not add to it.
  const effective = own ?? around.atWorkflow
  const level = own === null ? 'workflow' : 'job'
  const held = effective?.held ?? new Map<string, Access>()
  const oidc = held.get('id-token') === 'write'

  const defaults = yaml.get(yaml.get(job, 'defaults'), 'run')
  const steps = yaml.items(yaml.get(job, 'steps')).map((node, index) => stepOf(yaml, node, index, [defaults, around.defaults]))
  const uses: SecretUse[] = [around.shared]
  for (const { key, value } of yaml.entries(job)) {
    if (key === 'secrets' && yaml.text(value) === 'inherit') uses.push({ sources: [secretSource('*', 'job', yaml.place(value))], token: false })
    else uses.push(secretsIn(yaml, value, key === 'steps' ? 'step' : 'job'))
  }
  const secretSources = uses.flatMap(use => use.sources)

  return {
    id, name: yaml.text(yaml.get(job, 'name')) ?? id, ...at,
    grant: {
      tokenPermissions: effective === null ? null : Object.fromEntries([...held].filter(([name]) => name !== 'id-token').map(([name, access]) => [underscored(name), access])),
      oidc,
      secrets: [...new Set(secretSources.map(source => source.name))],
      egress: null,
    },
    grantSources: [
      ...[...held].map(([name, access]): GrantSource => ({
        kind: name === 'id-token' ? 'oidc' : 'permission', name: underscored(name), access, level, ...effective!.sources.get(name)!,
      })),
      ...secretSources,
    ],
    env: envOf(yaml, job), steps,
    unsupported: unsupportedIn(yaml, job, steps, secretSources),
  }
}

/** null: this level has no block. A permission that is left out of a block, or is `none`, is not held. */
function permissionsOf(yaml: Yaml, level: Node | null): Permissions {
  const block = yaml.get(level, 'permissions')
  if (block === null) return null
  const shorthand = yaml.text(block)
  if (shorthand === 'read-all' || shorthand === 'write-all') {
    const held = expand(shorthand)
    return { held, sources: new Map([...held.keys()].map(name => [name, yaml.place(block)])) }
  }
  const held = new Map<string, Access>()
  const sources = new Map<string, Place>()
  for (const { key, at, value } of yaml.entries(block)) {
    const access = yaml.text(value)
    if (access !== 'read' && access !== 'write') continue
    held.set(hyphened(key), access)
    sources.set(hyphened(key), at)
  }
  return { held, sources }
}

function envOf(yaml: Yaml, level: Node | null): EnvEntry[] {
  return yaml.entries(yaml.get(level, 'env')).map(({ key, value }) => ({ name: key, value: textAt(yaml, value)! }))
}

function textAt(yaml: Yaml, node: Node | null): Text | null {
  const value = yaml.text(node)
  return value === null ? null : { value, ...yaml.place(node) }
}

type SecretUse = { sources: GrantSource[]; token: boolean }

/** Every secret, and the token, that an expression anywhere below `node` names. */
function secretsIn(yaml: Yaml, node: Node | null, level: GrantSource['level']): SecretUse {
  const found: SecretUse = { sources: [], token: false }
  const walk = (one: Node | null): void => {
    const text = yaml.text(one)
    if (text !== null) {
      if (!text.includes('${{')) return
      const { secrets, token, computed } = authorityIn(text)
      for (const name of [...secrets, ...(computed ? ['*'] : [])]) found.sources.push(secretSource(name, level, yaml.place(one)))
      found.token ||= token
      return
    }
    for (const { value } of yaml.entries(one)) walk(value)
    for (const item of yaml.items(one)) walk(item)
  }
  walk(node)
  return found
}

function secretSource(name: string, level: GrantSource['level'], place: Place): GrantSource {
  return { kind: 'secret', name, access: null, level, ...place }
}

function stepOf(yaml: Yaml, step: Node, index: number, defaults: (Node | null)[]): Step {
  const text = (key: string): Text | null => textAt(yaml, yaml.get(step, key))
  const inherited = (key: string): Text | null => text(key) ?? defaults.map(level => textAt(yaml, yaml.get(level, key))).find(one => one !== null) ?? null
  const run = text('run')
  const uses = text('uses')
  const own = secretsIn(yaml, step, 'step')
  return {
    index, id: yaml.text(yaml.get(step, 'id')), line: yaml.place(step).line, run, uses, env: envOf(yaml, step),
    // The runner's own words for a step without a name.
    name: yaml.text(yaml.get(step, 'name')) ?? (run !== null ? `Run ${run.value.trimStart().split('\n')[0]}` : uses !== null ? `Run ${uses.value}` : `step ${index + 1}`),
    shell: inherited('shell'), workingDirectory: inherited('working-directory'),
    if: text('if'), continueOnError: text('continue-on-error'), timeoutMinutes: text('timeout-minutes'),
    secrets: [...new Set(own.sources.map(source => source.name))], token: own.token,
  }
}

function unsupportedIn(yaml: Yaml, job: Node | null, steps: Step[], secrets: GrantSource[]): Unsupported[] {
  const found: Unsupported[] = []
  const add = (line: number, what: string, why: string): void => { found.push({ line, what, why }) }
  const keys = new Map(yaml.entries(job).map(entry => [entry.key, entry]))
  const labels = runsOnLabels(yaml, keys.get('runs-on')?.value ?? null)
  const foreign = labels.find(label => /^(windows|macos)/i.test(label))
  if (foreign !== undefined) add(keys.get('runs-on')!.at.line, `runs-on: ${foreign}`, 'a cell is Linux')
  const uses = keys.get('uses')
  if (uses !== undefined) add(uses.at.line, `uses: ${yaml.text(uses.value)}`, 'a reusable workflow is fetched and run by a runner only')
  if (keys.has('container')) add(keys.get('container')!.at.line, 'container:', 'a runner starts the container')
  if (keys.has('services')) add(keys.get('services')!.at.line, 'services:', 'a runner starts the service containers')
  const matrix = yaml.entries(keys.get('strategy')?.value ?? null).find(entry => entry.key === 'matrix')
  if (matrix !== undefined) add(matrix.at.line, 'strategy: matrix', 'it stands for several jobs, which GitHub makes of it')
  for (const source of secrets.filter(one => one.name === '*' && uses === undefined)) add(source.line, 'secrets by a computed name', 'which of them are meant is known to GitHub only')
  for (const step of steps) {
    if (step.uses !== null) add(step.uses.line, `uses: ${step.uses.value}`, 'an action runs on a runner only')
    else if (step.run === null) add(step.line, step.name, 'a step that neither runs nor uses something is for a runner')
    const shell = step.shell === null || step.run === null ? null : shellOf(step.shell.value)
    if (shell !== null && 'foreign' in shell) add(step.shell!.line, `shell: ${step.shell!.value}`, shell.foreign)
  }
  return found
}

function runsOnLabels(yaml: Yaml, node: Node | null): string[] {
  if (yaml.isMap(node)) return runsOnLabels(yaml, yaml.get(node, 'labels'))
  const one = yaml.text(node)
  return one !== null ? [one] : yaml.items(node).map(item => yaml.text(item) ?? '')
}
