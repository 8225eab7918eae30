import type { Job, PipelineFile } from '../pipeline/graph.ts'

export type Severity = 'high' | 'medium' | 'low' | 'info'

export type Rule = { id: string; title: string; help: string; severity: Severity }

const rule = (id: string, severity: Severity, title: string, help: string): Rule => ({ id, severity, title, help })

/** What an audit looks for, by id. `help` is what SARIF viewers show beside a finding. */
export const RULES = {
  inherited: rule('inherited-permission', 'medium', 'A job inherits a write permission from the workflow',
    'Permissions above all jobs reach every job, also those that are added later. Give each job its own `permissions:` block with what it was seen to use.'),
  permission: rule('write-permission', 'low', 'A job holds a write permission',
    'What a token may write, whoever gets hold of it may write too. Measure what the job uses and narrow it to that.'),
  read: rule('read-permission', 'low', 'A job holds a read permission',
    'A permission that no run used can be taken away.'),
  unspecified: rule('unspecified-permissions', 'medium', 'A job leaves its permissions to the default',
    'Without a `permissions:` block a job gets what the repository\'s or organisation\'s settings say, which may be write access to everything. Write down what it needs.'),
  identity: rule('oidc-identity', 'medium', 'A job may ask for an OIDC identity',
    '`id-token: write` lets the job sign in wherever its repository is trusted. Only jobs that do so need it.'),
  secret: rule('secret', 'low', 'A job is handed a secret',
    'A secret in a job\'s environment can be read by everything that the job starts.'),
  secrets: rule('all-secrets', 'high', 'A job is handed every secret',
    '`secrets: inherit` and computed names hand over secrets that nobody listed. Name the ones that are needed.'),
  egress: rule('unlimited-egress', 'info', 'A job may connect to anywhere',
    'The pipeline file cannot limit where a job connects to; a contract can, and a cell enforces it.'),
} as const

/** One grant of one job. `kind` and `grant` are those of a verdict's rows. */
export type Grant = { rule: Rule; kind: string; grant: string; line: number; column: number; what: string; remedy: string }

export const DEFAULT_PERMISSIONS = 'default permissions'
export const EVERYWHERE = '*:*'
export const ALL_SECRETS = 'all secrets'

/** All that a job holds by its pipeline file, one by one; what only evidence makes worth a finding is `RULES.read`. */
export function grantsOf(job: Job, file: PipelineFile): Grant[] {
  const found: Grant[] = []
  const here = { line: job.line, column: job.column }
  const seen = new Set<string>()
  for (const source of job.grantSources) {
    const key = `${source.kind} ${source.name}`
    if (seen.has(key)) continue
    seen.add(key)
    const { line, column } = source
    const inherited = source.level === 'workflow'
    if (source.kind === 'permission') {
      const grant = `${source.name}: ${source.access}`
      found.push({
        rule: source.access === 'read' ? RULES.read : inherited ? RULES.inherited : RULES.permission, kind: 'github', grant, line, column,
        what: inherited && file.jobs.length > 1 ? `it holds ${grant}, which the workflow gives to all ${file.jobs.length} jobs` : `it holds ${grant}`,
        remedy: inherited ? `take ${grant} out of the permissions above the jobs, or give the job its own` : `take ${grant} out of the job's permissions`,
      })
    } else if (source.kind === 'oidc') {
      found.push({ rule: RULES.identity, kind: 'github', grant: 'id_token: write', line, column, what: 'it may ask for an OIDC identity (id-token: write)', remedy: `take id-token: write out of the permissions ${inherited ? 'above the jobs' : 'of the job'}` })
    } else if (source.name === '*') {
      found.push({ rule: RULES.secrets, kind: 'secret', grant: ALL_SECRETS, line, column, what: 'it is handed every secret', remedy: 'name the secrets that the job needs' })
    } else {
      found.push({ rule: RULES.secret, kind: 'secret', grant: source.name, line, column, what: `it is handed the secret ${source.name}`, remedy: `take the lines that hand over ${source.name} out of the file` })
    }
  }
  if (job.grant.tokenPermissions === null) {
    found.push({ rule: RULES.unspecified, kind: 'github', grant: DEFAULT_PERMISSIONS, ...here, what: 'its permissions are left to the platform\'s default', remedy: 'give the job a `permissions:` block' })
  }
  if (job.grant.egress === null) {
    found.push({ rule: RULES.egress, kind: 'network', grant: EVERYWHERE, ...here, what: 'it may connect to anywhere', remedy: 'run the job under a contract that names its destinations' })
  }
  return found
}
