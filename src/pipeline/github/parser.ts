import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { FeatureFlags } from '@actions/expressions/features'
import { convertOn } from '@actions/workflow-parser/model/converter/events'
import { handleTemplateTokenErrors } from '@actions/workflow-parser/model/converter/handle-errors'
import { convertJobs } from '@actions/workflow-parser/model/converter/jobs'
import { JSONObjectReader } from '@actions/workflow-parser/templates/json-object-reader'
import type { MappingDefinition } from '@actions/workflow-parser/templates/schema/mapping-definition'
import { TemplateSchema } from '@actions/workflow-parser/templates/schema/template-schema'
import { TemplateContext, TemplateValidationErrors } from '@actions/workflow-parser/templates/template-context'
import { readTemplate } from '@actions/workflow-parser/templates/template-reader'
import { NoOperationTraceWriter } from '@actions/workflow-parser/templates/trace-writer'
import { WORKFLOW_ROOT } from '@actions/workflow-parser/workflows/workflow-constants'
import { YamlObjectReader } from '@actions/workflow-parser/workflows/yaml-object-reader'
import type { Place } from './yaml.ts'

/**
 * GitHub's own parser, put together from its parts. Its front door cannot be used: it imports its schema as JSON
 * without the attribute that Node asks for (ERR_IMPORT_ASSERTION_TYPE_MISSING on Node 20), being made for bundlers.
 */
const SCHEMA = TemplateSchema.load(new JSONObjectReader(undefined, readFileSync(fileURLToPath(new URL('workflow-v1.0.min.json', import.meta.resolve('@actions/workflow-parser'))), 'utf8')))

/** Type names of the permissions that the schema knows: "permission-level-any" and its like, by name. */
export const PERMISSION_TYPES: ReadonlyMap<string, string> = new Map(
  Object.entries((SCHEMA.getDefinition('permissions-mapping') as MappingDefinition).properties).map(([name, { type }]) => [name, type]),
)

export type ParseError = { why: string; place: Place | undefined }

/**
 * The first thing that GitHub would refuse a workflow for; null: it takes it. The YAML must be known to be safe to walk:
 * the parser follows aliases without a limit. Throws what the parser throws on YAML that it was not made for.
 */
export function firstError(content: string): ParseError | null {
  const context = new TemplateContext(new TemplateValidationErrors(), SCHEMA, new NoOperationTraceWriter())
  context.state['featureFlags'] = new FeatureFlags()
  const file = context.getFileId('workflow')
  const reader = new YamlObjectReader(file, content)
  const broken = reader.errors[0]
  if (broken !== undefined) return { why: broken.message, place: broken.range?.start }
  const root = readTemplate(context, WORKFLOW_ROOT, reader, file)
  if (root !== undefined && context.errors.count === 0) {
    // The second pass finds needs that form a ring, ids that are used twice, events that nobody knows.
    for (const { key, value } of root.assertMapping('root')) {
      const name = key.assertString('root key').value
      if (name === 'on') handleTemplateTokenErrors(root, context, {}, () => convertOn(context, value))
      if (name === 'jobs') handleTemplateTokenErrors(root, context, [], () => convertJobs(context, value))
    }
  }
  const error = context.errors.getErrors()[0]
  return error === undefined ? null : { why: error.rawMessage, place: error.range?.start }
}
