import { register } from 'node:module'

/**
 * GitHub's workflow parser imports its schema as JSON without the import attribute that Node 20 and later ask for
 * (ERR_IMPORT_ATTRIBUTE_MISSING). Call this before the first module that leads to the parser is imported; those are
 * imported dynamically for that reason, and because the parser takes longer to load than most commands take to run.
 */
export function allowParser(): void {
  if (allowed) return
  allowed = true
  register(`data:text/javascript,${encodeURIComponent(HOOK)}`)
}

let allowed = false

const HOOK = `export const load = (url, context, next) =>
  next(url, url.endsWith('.json') && url.includes('/@actions/') ? { ...context, importAttributes: { ...context.importAttributes, type: 'json' } } : context)`
