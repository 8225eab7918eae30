import { AmbitError } from '../errors.ts'

export type CellEnvironment = {
  /** Of whoever asked for the cell. */
  hostEnv: Readonly<Record<string, string>>
  /** Names to take from it, or `PREFIX*`. */
  pass: readonly string[]
  /** Fixed values. */
  set: Readonly<Record<string, string>>
  credentials: Readonly<Record<string, string>>
}

/**
 * What every cell starts with. HOME and TMPDIR are its own /tmp: the workspace is the job's product, and nothing else in a cell
 * need be writable. USER is root because its id in the cell is 0, which is nobody's on the host.
 */
const BASE: Readonly<Record<string, string>> = {
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  HOME: '/tmp', TMPDIR: '/tmp', USER: 'root', LOGNAME: 'root', SHELL: '/bin/sh', LANG: 'C.UTF-8',
}

/** Variables that make the loader, a shell or an interpreter run what they name. */
const LOADERS = /^(LD_.*|GCONV_PATH|GLIBC_TUNABLES|BASH_ENV|ENV|SHELLOPTS|BASHOPTS|PS4|PROMPT_COMMAND|IFS|NODE_OPTIONS|NODE_PATH|PYTHONSTARTUP|PYTHONPATH|PYTHONHOME|PYTHONINSPECT|PERL5OPT|PERL5LIB|PERL5DB|RUBYOPT|RUBYLIB|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|JDK_JAVA_OPTIONS|MAVEN_OPTS|GRADLE_OPTS|GIT_(SSH|SSH_COMMAND|EXEC_PATH|ASKPASS|EDITOR|PAGER|PROXY_COMMAND|EXTERNAL_DIFF|TEMPLATE_DIR|CONFIG.*)|EDITOR|VISUAL|PAGER|BROWSER|SSH_ASKPASS|SUDO_ASKPASS|OPENSSL_CONF|OPENSSL_MODULES|OPENSSL_ENGINES)$/
/** Variables that carry a credential, or lead to an agent that does. */
const CREDENTIALS = /(TOKEN|SECRET|PASSW(OR)?D|PASSPHRASE|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|SIGNING_?KEY|ENCRYPTION_?KEY|WEBHOOK|COOKIE|SESSION|NETRC|DOCKER_AUTH|_AUTH$|_PAT$|_KEY$|_PWD$|_DSN$|^(AWS|AZURE|ARM|GOOGLE|GCP|CLOUDSDK|ACTIONS|RUNNER_TRACKING|VAULT|KUBE|NPM_CONFIG_.*AUTH|SSH|GPG|GNUPG|DBUS|DOCKER|CONTAINERS|XDG_RUNTIME)(_|CONFIG|$|HOME|DIR))/i

const NAME = /^[A-Za-z_][A-Za-z0-9_]*$/
/** MAX_ARG_STRLEN: execve(2) fails with E2BIG above it. */
const MAX_ENTRY = 128 * 1024

/**
 * NAME=value for all that a cell's command starts with: the base, what `pass` takes from the caller, `set`, the credentials; the
 * later wins. A variable that carries a credential or makes programs load code is taken only if `pass` has its very name, never
 * because a prefix covers it.
 */
export function cellEnvironment({ hostEnv, pass, set, credentials }: CellEnvironment): string[] {
  // Without a prototype: a variable may be called __proto__.
  const env: Record<string, string> = Object.assign(Object.create(null), BASE)
  for (const wanted of pass) {
    const prefix = wanted.endsWith('*') ? wanted.slice(0, -1) : null
    if (!NAME.test(prefix ?? wanted)) throw invalid('environment.pass', wanted, 'it is neither a name nor a name\'s beginning with a *')
    if (prefix === null) {
      if (Object.hasOwn(hostEnv, wanted)) env[wanted] = hostEnv[wanted]!
      continue
    }
    for (const [name, value] of Object.entries(hostEnv)) {
      if (name.startsWith(prefix) && NAME.test(name) && !LOADERS.test(name) && !CREDENTIALS.test(name)) env[name] = value
    }
  }
  for (const [name, value] of Object.entries(set)) {
    if (!NAME.test(name)) throw invalid('environment.set', name, 'it is not a name')
    env[name] = value
  }
  Object.assign(env, credentials)
  return Object.entries(env).map(([name, value]) => {
    if (value.includes('\0')) throw invalid('environment', name, 'its value holds a NUL')
    const entry = `${name}=${value}`
    if (Buffer.byteLength(entry) >= MAX_ENTRY) throw invalid('environment', name, `its value is longer than ${MAX_ENTRY} bytes, which execve(2) does not take`)
    return entry
  })
}

function invalid(part: string, name: string, why: string): AmbitError {
  return new AmbitError('CONTRACT_INVALID', { attempted: `give the cell ${JSON.stringify(name)}`, why: `${part}: ${why}`, remedy: 'names are letters, digits and _, and do not start with a digit' })
}
