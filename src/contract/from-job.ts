import type { JobGrant } from '../authority/kind.ts'
import { KINDS } from '../authority/kinds.ts'
import { AmbitError } from '../errors.ts'
import { contractSchema, type Contract } from './schema.ts'

export type JobContract = {
  name: string
  pipeline: { file: string; job: string; digest: string }
  grant: JobGrant
  /** Of the API that the job's token is for. */
  apiUrl: string
  /** OWNER/NAME: what the token is for. */
  repositories: string[]
  hosts: Record<string, string>
  environment: { pass: string[]; set: Record<string, string> }
}

/** GitHub's own limit is six hours; a job that was never measured gets an hour, and its contract can say otherwise. */
const TTL = '1h'

/**
 * What a pipeline file grants a job, made explicit: the contract that its first, observed run has.
 * Throws CONTRACT_INVALID if the file grants what no contract can hold.
 */
export function contractFromJob(job: JobContract): Contract {
  const granted = Object.fromEntries(KINDS.map(kind => [kind.name, kind.fromJob(job.grant)])) as Contract['spec']['authority']
  const parsed = contractSchema.safeParse({
    apiVersion: 'ambit/v1',
    kind: 'Cell',
    metadata: { name: job.name.replace(/[^A-Za-z0-9._-]+/g, '-').replace(/^[.-]+/, '').slice(0, 128) || 'job', pipeline: job.pipeline },
    spec: {
      mode: 'observe', ttl: TTL, workspace: 'shared', missingPaths: 'skip', environment: job.environment, hosts: job.hosts,
      authority: { ...granted, github: { ...granted.github, apiUrl: job.apiUrl, repositories: job.repositories } },
    },
  })
  if (parsed.success) return parsed.data as Contract
  const { path, message } = parsed.error.issues[0]!
  throw new AmbitError('CONTRACT_INVALID', {
    attempted: `write the contract of job "${job.pipeline.job}"`, why: `${path.join('.')}: ${message}`,
    remedy: 'change the pipeline file, or write the contract by hand', where: { file: job.pipeline.file },
  })
}
