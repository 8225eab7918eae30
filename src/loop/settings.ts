import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { LineCounter, parseDocument } from 'yaml'
import { z } from 'zod'
import { AmbitError } from '../errors.ts'
import { readText } from '../text.ts'

const name = z.string().regex(/^[A-Za-z0-9.-]+$/)

/** What a loop needs and a pipeline file cannot say. Lies beside the pipeline as ambit.yaml; every part is optional. */
export const loopSettings = z.strictObject({
  apiVersion: z.literal('ambit/v1'),
  kind: z.literal('Loop'),
  workflow: z.string().optional().describe('the workflow file, when there are several'),
  job: z.string().optional().describe('the job, when there are several'),
  repository: z.string().regex(/^[^/]+\/[^/]+$/).default('owner/repository').describe('owner/name, for GITHUB_REPOSITORY and the token'),
  server: z.strictObject({ command: z.array(z.string()).min(1) }).optional()
    .describe('a local API server to start; STATE in its command is replaced by a directory that it fills with server.json, ca.pem and app-key.pem'),
  apiHost: name.optional().describe('the name by which the job reaches the local server'),
  collectorHost: name.optional().describe('a second name on the local server, which no job should reach'),
  environment: z.strictObject({ pass: z.array(z.string()).default([]), set: z.record(z.string(), z.string()).default({}) }).default({ pass: [], set: {} }),
  secrets: z.array(z.string()).default([]).describe('secrets that get a made-up value for this loop'),
  hostile: z.string().optional().describe('JSON file with attempts that must succeed before narrowing and fail after it'),
})
export type LoopSettings = z.infer<typeof loopSettings>

export const attempt = z.strictObject({
  name: z.string(), kind: z.string().describe('the authority kind that must show the refusal'),
  script: z.string(), expectation: z.string().optional(),
})
export const attempts = z.array(attempt).min(1)
export type Attempt = z.infer<typeof attempt>

/** Reads DIR/ambit.yaml; a directory without one has the defaults. */
export function readLoopSettings(dir: string): LoopSettings {
  const file = join(dir, 'ambit.yaml')
  if (!existsSync(file)) return loopSettings.parse({ apiVersion: 'ambit/v1', kind: 'Loop' })
  const lines = new LineCounter()
  const document = parseDocument(readText(file, 'the loop settings'), { lineCounter: lines })
  const broken = document.errors[0]
  if (broken !== undefined) {
    const at = lines.linePos(broken.pos[0])
    throw new AmbitError('SETTINGS_INVALID', { attempted: 'read the loop settings', why: broken.message.split('\n')[0]!, remedy: 'mend the YAML', where: { file, line: at.line, column: at.col } })
  }
  const parsed = loopSettings.safeParse(document.toJS({ maxAliasCount: 10 }))
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    throw new AmbitError('SETTINGS_INVALID', { attempted: 'read the loop settings', why: `${issue.path.join('.') || 'the document'}: ${issue.message}`, remedy: 'known keys: ' + Object.keys(loopSettings.shape).join(', '), where: { file } })
  }
  return parsed.data
}
