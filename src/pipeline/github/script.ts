import { truthy } from '@actions/expressions/result'
import { AmbitError } from '../../errors.ts'
import type { EnvEntry, Job, PipelineFile, Step, Text } from '../graph.ts'
import { asText, compile, compileCondition, compileSegment, compileText, type Compiled, type CompiledText, type Scope } from './compile.ts'
import { segments, type Segment } from './expressions.ts'
import { RUNTIME } from './runtime.ts'
import { quote, shellOf, unexpandable, type Shell } from './shell.ts'

export type Driver = { script: string; files: Record<string, string> }

/**
 * A bash script that runs a job's `run:` steps in order, as the runner does, and the files that it needs beside it in
 * `directory` (an absolute path, which the job can write to). It ends with 0 only if the job succeeds, with 2 if it
 * could not be run as it stands.
 *
 * Secrets come from the cell's environment: `${{ secrets.NPM_TOKEN }}` is the value of NPM_TOKEN there, and
 * `${{ github.token }}` and `${{ secrets.GITHUB_TOKEN }}` that of GITHUB_TOKEN; empty if there is none, as on GitHub.
 * The driver takes them out of the environment first: a step has a secret only if the workflow hands it over.
 * `github.sha` and what else GitHub puts in variables comes from those (GITHUB_SHA), which must then be there.
 *
 * In `run:`, what is known beforehand is put into the text, as GitHub does. What is known only while the job runs, and
 * secrets, become references to variables: the shell expands them where GitHub would have pasted them, and never reads
 * them as code. Where it would not expand them, and in other languages, that is an error.
 *
 * Throws PIPELINE_INVALID with the line for whatever cannot be done here, before anything runs.
 */
export function driver(job: Job, options: { repository: string; workflow: PipelineFile; directory: string }): Driver {
  const { repository, workflow, directory } = options
  const needs: Scope['needs'] = new Map()
  const scope = (env: Scope['env']): Scope => ({
    job: job.id, file: workflow.file, env, needs,
    known: new Map([
      ['github.repository', repository], ['github.repository_owner', repository.split('/')[0]!],
      ['github.workflow', workflow.name], ['github.job', job.id],
    ]),
  })
  const refuse = (line: number, why: string, remedy: string): AmbitError => new AmbitError('PIPELINE_INVALID', { attempted: `run job "${job.id}" on this host`, why, remedy, where: { file: workflow.file, line } })
  const unsupported = job.unsupported[0]
  if (unsupported !== undefined) throw refuse(unsupported.line, `${unsupported.what}: ${unsupported.why}`, 'a driver runs jobs made of `run:` steps')

  const files: Record<string, string> = {}
  const steps = job.steps.map(step => {
    const made = stepParts(step, scope('step'), scope('job'), directory, refuse)
    files[made.name] = made.content
    return made.code
  })
  const jobEnvironment = [...workflow.env, ...job.env].map(entry => setEntry('ambit_env', entry, scope('job'), refuse))

  const script = [
    `# The run: steps of job ${printable(job.id)} of ${printable(workflow.file)}, in order.`,
    '# The whole script is one function, so that it is read before any step could change it.',
    'ambit_main() {',
    'unset -v "${!ambit_@}"',
    `ambit_directory=${quote(directory)}`,
    RUNTIME,
    ...defaults(job, workflow, repository),
    ...secretNames(job).map(name => `[[ -n \${${name}+x} ]] && ambit_secrets[:${name}]=$${name}; unset -v ${name}`),
    ...[...needs].map(([name, { line, expression }]) => `[[ -n \${${name}+x} ]] || ambit_fail ${quote(`${workflow.file}:${line}: \${{ ${expression} }} needs ${name}, which the environment does not have`)}`),
    'ambit_inherit',
    'ambit_environment() {', ':', ...jobEnvironment, '}',
    'ambit_environment',
    ...steps,
    '[[ $ambit_job == success ]]',
    '}',
    'ambit_main; exit',
    '',
  ].join('\n')
  return { script, files }
}

type Refuse = (line: number, why: string, remedy: string) => AmbitError

/** What the runner tells every step, where the cell's environment does not say otherwise. */
function defaults(job: Job, workflow: PipelineFile, repository: string): string[] {
  const values = {
    CI: 'true', GITHUB_ACTIONS: 'true', GITHUB_JOB: job.id, GITHUB_WORKFLOW: workflow.name, GITHUB_REPOSITORY: repository,
    GITHUB_REPOSITORY_OWNER: repository.split('/')[0]!, GITHUB_SERVER_URL: 'https://github.com', GITHUB_API_URL: 'https://api.github.com',
    RUNNER_OS: 'Linux', RUNNER_ARCH: process.arch === 'arm64' ? 'ARM64' : 'X64', RUNNER_TEMP: '/tmp',
  }
  return [
    ...Object.entries(values).map(([name, value]) => `[[ -n \${${name}+x} ]] || export ${name}=${quote(value)}`),
    '[[ -n ${GITHUB_WORKSPACE+x} ]] || export GITHUB_WORKSPACE=$PWD',
  ]
}

function secretNames(job: Job): string[] {
  return ['GITHUB_TOKEN', ...job.grant.secrets.filter(name => /^[A-Z_][A-Z0-9_]*$/.test(name))]
}

function stepParts(step: Step, scope: Scope, jobScope: Scope, directory: string, refuse: Refuse): { name: string; content: string; code: string } {
  const number = step.index + 1
  const run = step.run!
  const shell = shellOf(step.shell?.value ?? null)
  if ('foreign' in shell) throw refuse(step.shell!.line, `shell: ${step.shell!.value}: ${shell.foreign}`, 'take another shell')
  if (/::(set-output|save-state|set-env|add-path)\b/.test(run.value)) {
    throw refuse(run.line, 'it uses a workflow command (::set-output and its like) that GitHub has deprecated and this driver does not read', 'write to $GITHUB_OUTPUT, $GITHUB_ENV or $GITHUB_PATH')
  }
  const name = `step-${number}${shell.extension}`
  const { content, variables } = scriptText(run, `AMBIT_VALUE_${number}`, shell, scope, refuse)
  const words = shell.words.map(word => quote(word.replaceAll('{0}', `${directory}/${name}`))).join(' ')
  const limit = timeLimit(step, scope, refuse)
  const where = step.workingDirectory === null ? '"$GITHUB_WORKSPACE"' : assign(compileText(step.workingDirectory, scope), step.workingDirectory.line, refuse)
  const title = step.name.includes('${{') ? display(step, scope) : step.name
  const code = [
    `# line ${step.line}`,
    `ambit_environment_${number}() {`, ':', ...step.env.map(entry => setEntry('ambit_now', entry, jobScope, refuse)), '}',
    `ambit_if_${number}() {`, valueOf(compileCondition(step.if, scope)), '}',
    `ambit_lenient_${number}() {`, step.continueOnError === null ? 'V=false T=b' : valueOf(flag(step.continueOnError, scope)), '}',
    `ambit_run_${number}() {`,
    ...variables,
    step.workingDirectory === null ? 'ambit_enter "$GITHUB_WORKSPACE"' : `${where}\nambit_enter "$V"`,
    `ambit_launch ${limit}${words}`, '}',
    `ambit_step ${number} ${quote((step.id ?? '').toLowerCase())} ${quote(printable(title))}`,
  ].join('\n')
  return { name, content, code }
}

/** The script's text with what is known put in; the rest as variables that are set before the script starts. */
function scriptText(run: Text, prefix: string, shell: Shell, scope: Scope, refuse: Refuse): { content: string; variables: string[] } {
  const variables: string[] = []
  const parts = segments(run.value).map(segment => ({ segment, compiled: 'literal' in segment ? { text: segment.literal } : asText(compileSegment(segment, run, scope)) }))
  const isVariable = (segment: Segment): boolean => 'code' in parts.find(part => part.segment === segment)!.compiled
  const shown = parts.map(({ segment, compiled }) => ('text' in compiled ? { literal: compiled.text } : segment))
  const first = shell.posix ? unexpandable(shown, segment => 'expression' in segment) : shown.find(segment => 'expression' in segment && isVariable(segment)) ?? null
  if (first !== null && 'expression' in first) {
    const line = run.line + 1 + run.value.slice(0, first.offset).split('\n').length - 1
    throw refuse(run.value.includes('\n') ? line : run.line, `\${{ ${first.expression} }} is known only while the job runs, and stands where ${shell.posix ? 'the shell expands no variable (single quotes, or a here-document with a quoted delimiter)' : 'no shell reads it'}`,
      'hand it over by `env:` and read the variable')
  }
  const content = parts.map(({ compiled }) => {
    if ('text' in compiled) return compiled.text
    const name = `${prefix}_${variables.length}`
    variables.push(`${compiled.code}\nambit_now[:${name}]=$V`)
    return `\${${name}}`
  }).join('')
  // The runner writes scripts with line feeds only (ScriptHandler.cs).
  return { content: content.replaceAll('\r\n', '\n'), variables }
}

function setEntry(into: string, entry: EnvEntry, scope: Scope, refuse: Refuse): string {
  if (/[=\0]/.test(entry.name)) throw refuse(entry.value.line, `"${printable(entry.name)}" is not a name that a variable can have`, 'leave out = and NUL')
  return `${assign(compileText(entry.value, scope), entry.value.line, refuse)}\n${into}[${quote(`:${entry.name}`)}]=$V`
}

function assign(compiled: CompiledText, line: number, refuse: Refuse): string {
  if ('code' in compiled) return compiled.code
  if (compiled.text.includes('\0')) throw refuse(line, 'a value holds a NUL byte, which no variable can', 'take it out')
  return `V=${quote(compiled.text)}`
}

/** Bash that leaves whether it holds. */
function valueOf(compiled: Compiled): string {
  if ('code' in compiled) return compiled.code
  return truthy(compiled.value) ? 'V=true T=b' : 'V=false T=b'
}

function flag(text: Text, scope: Scope): Compiled {
  const [only, ...more] = segments(text.value.trim())
  return more.length === 0 && only !== undefined && 'expression' in only ? compileSegment({ ...only, offset: 0 }, text, scope) : compile(text.value, text.line, scope)
}

function timeLimit(step: Step, scope: Scope, refuse: Refuse): string {
  if (step.timeoutMinutes === null) return ''
  const compiled = compileText(step.timeoutMinutes, scope)
  const minutes = 'text' in compiled ? Number(compiled.text) : Number.NaN
  if (!Number.isFinite(minutes) || minutes <= 0) throw refuse(step.timeoutMinutes.line, `timeout-minutes: ${step.timeoutMinutes.value} is not a number of minutes that is known beforehand`, 'give a number')
  return `timeout --kill-after=10 ${Math.ceil(minutes * 60)} `
}

/** A name is for people: what cannot be evaluated in it is shown as it stands. */
function display(step: Step, scope: Scope): string {
  try {
    const compiled = compileText({ value: step.name, line: step.line, column: 1 }, { ...scope, needs: new Map() })
    return 'text' in compiled ? compiled.text : step.name
  } catch {
    return step.name
  }
}

function printable(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, ' ')
}
