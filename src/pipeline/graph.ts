import type { JobGrant } from '../authority/kind.ts'

/** A piece of a pipeline file: its text once YAML is read, and where it begins (one-based). */
export type Text = { value: string; line: number; column: number }

export type EnvEntry = { name: string; value: Text }

/** Where a part of a job's grant stands in the file. */
export type GrantSource = {
  kind: 'permission' | 'oidc' | 'secret'
  /** Permission with underscores ("pull_requests"), "id_token", or the secret's name; "*": all of them, by a shorthand or a computed name. */
  name: string
  /** Of a permission; null for a secret. */
  access: 'read' | 'write' | null
  level: 'workflow' | 'job' | 'step'
  line: number
  column: number
}

/** What only the CI system's own runner can do. */
export type Unsupported = { line: number; what: string; why: string }

export type Step = {
  index: number
  id: string | null
  /** For people: the step's name, or what it runs. */
  name: string
  line: number
  run: Text | null
  uses: Text | null
  /** The step's own, or the default of its job or workflow; null: none is given. */
  shell: Text | null
  workingDirectory: Text | null
  env: EnvEntry[]
  if: Text | null
  continueOnError: Text | null
  timeoutMinutes: Text | null
  /** Secrets that this step's own lines name. */
  secrets: string[]
  /** The step's own lines name the job's token. */
  token: boolean
}

export type Job = {
  id: string
  name: string
  line: number
  column: number
  grant: JobGrant
  grantSources: GrantSource[]
  env: EnvEntry[]
  steps: Step[]
  /** What keeps the job from running without the CI system's own runner; empty: nothing does. */
  unsupported: Unsupported[]
}

export type PipelineFile = {
  /** Relative to the root it was read from, with forward slashes. */
  file: string
  /** SHA-256 of the file's bytes, hex. */
  digest: string
  name: string
  /** The block above all jobs, names as in a grant and `id_token` among them; null: there is none. */
  permissions: Record<string, 'read' | 'write'> | null
  env: EnvEntry[]
  jobs: Job[]
}

export type AuthorityNode =
  | { id: string; kind: 'job' | 'step'; name: string; line: number }
  /** A token's name lists what it may do; "default" where the file leaves that to the platform. */
  | { id: string; kind: 'token' | 'identity' | 'secret'; name: string }

export type AuthorityEdge = { from: string; to: string; kind: 'has_access_to' }
export type AuthorityGraph = { nodes: AuthorityNode[]; edges: AuthorityEdge[] }

/**
 * Who can reach what, as data. A job has access to its token, to its OIDC identity and to the secrets its file hands to it.
 * A step has access to what it names itself and to what its job or workflow puts in every step's environment;
 * the identity's request token is in every step's environment.
 */
export function authorityGraph(file: PipelineFile): AuthorityGraph {
  const nodes = new Map<string, AuthorityNode>()
  const edges: AuthorityEdge[] = []
  const reach = (from: string, to: AuthorityNode): void => {
    nodes.set(to.id, to)
    edges.push({ from, to: to.id, kind: 'has_access_to' })
  }
  for (const job of file.jobs) {
    const jobId = `job:${job.id}`
    nodes.set(jobId, { id: jobId, kind: 'job', name: job.name, line: job.line })
    const { tokenPermissions, oidc, secrets } = job.grant
    const token: AuthorityNode = {
      id: `token:${job.id}`, kind: 'token',
      name: tokenPermissions === null ? 'default' : Object.entries(tokenPermissions).map(([name, access]) => `${name}: ${access}`).join(', ') || 'none',
    }
    const identity: AuthorityNode = { id: `identity:${job.id}`, kind: 'identity', name: 'OIDC' }
    const secret = (name: string): AuthorityNode => ({ id: `secret:${name}`, kind: 'secret', name })
    reach(jobId, token)
    if (oidc) reach(jobId, identity)
    for (const name of secrets) reach(jobId, secret(name))
    const shared = job.grantSources.filter(source => source.kind === 'secret' && source.level !== 'step').map(source => source.name)
    for (const step of job.steps) {
      const stepId = `step:${job.id}/${step.index}`
      nodes.set(stepId, { id: stepId, kind: 'step', name: step.name, line: step.line })
      // An action gets the token by default (`github.token` as an input's default); a script only if it is named.
      if (step.token || step.uses !== null) reach(stepId, token)
      if (oidc) reach(stepId, identity)
      for (const name of new Set([...shared, ...step.secrets])) reach(stepId, secret(name))
    }
  }
  return { nodes: [...nodes.values()], edges }
}
