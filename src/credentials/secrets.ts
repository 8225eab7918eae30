import { AmbitError } from '../errors.ts'
import { readPrivate, type Issuers } from './config.ts'

/** The kernel takes no environment entry above 128 KiB; what is larger is not a secret but a file. */
const MAX_SECRET = 64 * 1024

/** The values of declared secrets, all of them or none. A file's bytes are the secret, its last newline too. */
export function readSecrets(names: readonly string[], issuers: Issuers): { name: string; value: string }[] {
  return names.map(name => {
    const refuse = (why: string, remedy: string): never => {
      throw new AmbitError('CREDENTIAL_REFUSED', { attempted: `hand over the secret ${name}`, why, remedy })
    }
    const source = Object.hasOwn(issuers.secrets, name) ? issuers.secrets[name] : undefined
    if (source === undefined) return refuse('the daemon knows no secret of this name', `add it to \`secrets\` in the daemon's issuers file, or take it out of the contract`)
    let value: string | undefined
    if ('environment' in source) {
      value = process.env[source.environment]
      if (value === undefined) return refuse(`the daemon's environment has no ${source.environment}`, 'set it where the daemon is started')
    } else {
      try {
        value = readPrivate(source.file, `the secret ${name}`, MAX_SECRET)
      } catch (error) {
        const { why, remedy } = (error as AmbitError).detail
        return refuse(why, remedy)
      }
    }
    if (value === '') return refuse('it is empty', 'store its value')
    if (value.includes('\0')) return refuse('it holds a NUL, which no environment can', 'store it as text, for instance in base64')
    if (Buffer.byteLength(value) > MAX_SECRET) return refuse(`it has more than ${MAX_SECRET} bytes`, 'store the right value')
    return { name, value }
  })
}
