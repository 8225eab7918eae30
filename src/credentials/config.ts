import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { isMap, LineCounter, parseDocument, type Document } from 'yaml'
import { z } from 'zod'
import { AmbitError } from '../errors.ts'

const httpsUrl = z.url({ protocol: /^https$/, error: 'must be an https URL' })
const id = z.union([z.string().regex(/^[A-Za-z0-9._-]+$/), z.number().int().positive()]).transform(String)
const path = z.string().min(1).describe('a path; a relative one starts at the issuers file')

export const issuersSchema = z.strictObject({
  github: z.strictObject({
    appId: id.describe('the App\'s id or client id'),
    installationId: id.describe('the installation whose repositories jobs may be given'),
    privateKeyFile: path.describe('the App\'s private key, PEM; nobody but its owner and group may read it'),
    apiUrl: httpsUrl.default('https://api.github.com').describe('the API, for GitHub Enterprise Server https://HOST/api/v3'),
    caFile: path.optional().describe('certificates to trust for that API instead of the usual ones, PEM'),
  }).optional().describe('mints installation tokens for the `github` part of contracts'),
  oidc: z.strictObject({
    requestUrl: httpsUrl.describe('where a job asks for an OIDC token, as in ACTIONS_ID_TOKEN_REQUEST_URL'),
    requestToken: z.string().min(1).describe('what it shows there, as in ACTIONS_ID_TOKEN_REQUEST_TOKEN'),
  }).optional().describe('handed to cells whose contract declares `id_token`'),
  secrets: z.record(z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, 'a secret\'s name must be one of an environment variable'), z.union([
    z.strictObject({ file: path.describe('its content, byte for byte; nobody but its owner and group may read it') }),
    z.strictObject({ environment: z.string().min(1).describe('a variable of the daemon\'s own environment') }),
  ], { error: 'must be { file: PATH } or { environment: NAME }' })).default({}).describe('where the secrets that contracts declare come from'),
})
/** Paths are absolute once read. */
export type Issuers = z.infer<typeof issuersSchema>
export type GithubApp = NonNullable<Issuers['github']>

/** A daemon that mints nothing. */
export const NO_ISSUERS: Issuers = { secrets: {} }

const MAX_FILE = 1024 * 1024

/**
 * Reads the daemon's issuers file (YAML or JSON). What it names is checked now, so that a mistake stops the daemon and not the
 * first job; keys and secrets themselves are read when they are used, so that they can be rotated.
 */
export function readIssuers(file: string): Issuers {
  const lines = new LineCounter()
  const attempted = 'read the issuers file'
  const { text, othersRead } = readGuarded(file, MAX_FILE, attempted)
  const document = parseDocument(text, { lineCounter: lines })
  const fail = (why: string, remedy: string, offset?: number): never => {
    const at = offset === undefined ? undefined : lines.linePos(offset)
    throw new AmbitError('SETTINGS_INVALID', { attempted, why, remedy, where: { file, ...(at === undefined ? {} : { line: at.line, column: at.col }) } })
  }
  const broken = document.errors[0]
  // yaml's message quotes the line, which may hold a token.
  if (broken !== undefined) fail(`it is not YAML (${broken.code})`, 'mend the YAML', broken.pos[0])
  const parsed = issuersSchema.safeParse(document.toJS({ maxAliasCount: 10 }))
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!
    const keys = issue.code === 'unrecognized_keys' ? issue.keys : []
    const where = [...issue.path, ...keys.slice(0, 1)]
    const name = where.join('.') || 'the document'
    fail(keys.length > 0 ? `${name} is not known` : `${name}: ${issue.message}`, 'known are github: { appId, installationId, privateKeyFile, apiUrl, caFile }, oidc: { requestUrl, requestToken }, secrets: { NAME: { file } or { environment } }', offsetOf(document, where))
  }
  const issuers = parsed.data!
  if (issuers.oidc !== undefined && othersRead) fail('it holds a request token, and everybody on this host may read it', `chmod 600 ${file}`, offsetOf(document, ['oidc', 'requestToken']))
  const absolute = (named: string): string => resolve(dirname(file), named)
  const at = (where: string[], check: () => unknown): void => {
    try {
      check()
    } catch (error) {
      const { why, remedy } = (error as AmbitError).detail
      fail(`${where.join('.')}: ${why}`, remedy, offsetOf(document, where))
    }
  }
  const { github } = issuers
  if (github !== undefined) {
    github.privateKeyFile = absolute(github.privateKeyFile)
    at(['github', 'privateKeyFile'], () => readPrivate(github.privateKeyFile, 'the App\'s private key'))
    if (github.caFile !== undefined) {
      const caFile = github.caFile = absolute(github.caFile)
      at(['github', 'caFile'], () => readGuarded(caFile, MAX_FILE, 'read the API\'s certificates'))
    }
  }
  for (const [name, source] of Object.entries(issuers.secrets)) {
    if (!('file' in source)) continue
    source.file = absolute(source.file)
    at(['secrets', name, 'file'], () => readPrivate(source.file, `the secret ${name}`))
  }
  return issuers
}

/** Reads a file that must stay private: a regular one, of a sane size, that not everybody may read. */
export function readPrivate(file: string, what: string, limit = MAX_FILE): string {
  const attempted = `read ${what}`
  const { text, othersRead } = readGuarded(file, limit, attempted)
  if (othersRead) throw new AmbitError('FILE_UNREADABLE', { attempted, why: `everybody on this host may read ${file}`, remedy: `chmod 600 ${file}, and replace what it held if others use this host` })
  return text
}

/** Opened once: what is checked is what is read. Text that is not UTF-8 would be handed over changed. */
function readGuarded(file: string, limit: number, attempted: string): { text: string; othersRead: boolean } {
  const fail = (why: string, remedy: string, cause?: unknown): never => {
    throw new AmbitError('FILE_UNREADABLE', { attempted, why, remedy, cause })
  }
  let fd: number
  try {
    // A named pipe in its place must not hold the daemon up.
    fd = openSync(file, constants.O_RDONLY | constants.O_NONBLOCK)
  } catch (cause) {
    return fail(`${file}: ${(cause as NodeJS.ErrnoException).code ?? 'unknown error'}`, 'check the path and that the daemon may read it', cause)
  }
  try {
    const stat = fstatSync(fd)
    if (!stat.isFile()) fail(`${file} is not a regular file`, 'name a file')
    if (stat.size > limit) fail(`${file} has ${stat.size} bytes, more than ${limit}`, 'name the right file')
    const bytes = Buffer.alloc(limit + 1)
    let length = 0
    for (let read = -1; read !== 0 && length < bytes.length; length += read) read = readSync(fd, bytes, length, bytes.length - length, null)
    if (length > limit) fail(`${file} has more than ${limit} bytes`, 'name the right file')
    try {
      return { text: new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes.subarray(0, length)), othersRead: (stat.mode & 0o004) !== 0 }
    } catch {
      return fail(`${file} is not UTF-8 text`, 'store it as text, for instance in base64')
    }
  } finally {
    closeSync(fd)
  }
}

/** Where a value stands, or the nearest part around it that is there. */
function offsetOf(document: Document, where: readonly PropertyKey[]): number | undefined {
  for (let depth = where.length; depth >= 0; depth -= 1) {
    const key = where[depth - 1]
    const parent = depth < 2 ? document.contents : document.getIn(where.slice(0, depth - 1), true)
    const pair = depth > 0 && isMap(parent) ? parent.items.find(item => String(item.key) === String(key)) : undefined
    const range = ((depth === 0 ? document.contents : pair?.key) as { range?: [number, number, number] } | null | undefined)?.range
    if (range != null) return range[0]
  }
  return undefined
}
