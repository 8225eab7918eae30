import { readFileSync, statSync } from 'node:fs'
import { parseBlock } from '../authority/addresses.ts'
import { grantText, grantWithin, isBroad, isHostGrant, type Grant, type HostGrant } from '../authority/destination.ts'
import { execPaths } from '../authority/exec.ts'
import { covers } from '../authority/paths.ts'
import { AmbitError } from '../errors.ts'
import { barOf, ownAddresses } from '../network/addresses.ts'
import { nameMatches } from '../network/policy.ts'
import { policySchema, type PolicyDocument, type PolicyRule } from './policy-schema.ts'
import { placeIn, readForm } from './read.ts'
import { memoryBytes, ttlSeconds, type Contract } from './schema.ts'

export const DEFAULT_POLICY = '/etc/ambit/policy.yaml'

/** Who asks for a cell, as the kernel says it. */
export type Caller = { uid: number; gid: number }
/** A part of a contract that a rule does not admit: where it stands in both documents, and why. */
export type Excess = { path: readonly PropertyKey[]; bound: readonly PropertyKey[]; why: string }

export type Policy = {
  readonly document: PolicyDocument
  /** Throws POLICY_REFUSED: which rule, and what the contract asks beyond it. */
  admit(contract: Contract, caller: Caller, source: { text: string; file: string }): void
}

/**
 * FILE_UNREADABLE or POLICY_INVALID: a host whose policy cannot be read runs nothing. `obeyed`: the policy is the daemon's own,
 * and nobody but its owner and root may be able to change it.
 */
export function readPolicyFile(path: string, { obeyed = false } = {}): Policy {
  let text: string
  try {
    const { mode, uid } = statSync(path)
    if (obeyed && ((mode & 0o022) !== 0 || ![0, process.getuid?.()].includes(uid))) {
      throw new AmbitError('POLICY_INVALID', { attempted: 'read the policy', why: `${path} can be changed by others than root: its mode is ${(mode & 0o7777).toString(8).padStart(4, '0')}, its owner ${uid}`, remedy: `chown root ${path} && chmod 0644 ${path}` })
    }
    text = new TextDecoder('utf-8', { fatal: true }).decode(readFileSync(path))
  } catch (cause) {
    if (cause instanceof AmbitError) throw cause
    throw new AmbitError('FILE_UNREADABLE', { attempted: 'read the policy', why: `${path}: ${(cause as NodeJS.ErrnoException).code ?? 'it is not UTF-8 text'}`, remedy: 'check the path and that you may read it; without a policy file the daemon admits every contract', cause })
  }
  return readPolicy(text, path)
}

export function readPolicy(text: string, file: string): Policy {
  const document = readForm(text, file, { what: 'policy', code: 'POLICY_INVALID', schema: policySchema, begin: 'a policy starts with "apiVersion: ambit/v1" and "kind: Policy"' }) as PolicyDocument
  return {
    document,
    admit(contract, caller, source) {
      const accounts = accountsOf(caller)
      const mine = document.rules.map((rule, index) => ({ rule, index })).filter(({ rule }) => isFor(rule, accounts))
      const refuse = (why: string, at: readonly PropertyKey[], asked: readonly PropertyKey[]): never => {
        throw new AmbitError('POLICY_REFUSED', {
          attempted: 'admit the contract', why: `${why} (${file}:${placeIn(text, at).line})`,
          remedy: 'ask for less at that place, or have whoever runs this host admit it; `ambit policy check` tries a contract without running it', where: { file: source.file, ...placeIn(source.text, asked) },
        })
      }
      if (mine.length === 0) refuse(`no rule of this host's policy is for user ${accounts.users.at(-1)} (uid ${caller.uid})`, ['rules'], ['metadata', 'name'])
      const beyond = mine.map(({ rule, index }) => ({ rule, index, excess: excessOf(contract, rule) }))
      if (beyond.some(({ excess }) => excess.length === 0)) return
      // The rule that is nearest is the one that the reader can do something about.
      const { rule, index, excess } = beyond.reduce((best, one) => (one.excess.length < best.excess.length ? one : best))
      const more = excess.length === 1 ? '' : `; and ${excess.slice(1, 4).map(one => one.why).join('; ')}${excess.length > 4 ? `; and ${excess.length - 4} more` : ''}`
      refuse(`rule "${rule.name}" does not admit it: ${excess[0]!.why}${more}`, ['rules', index, ...excess[0]!.bound], excess[0]!.path)
    },
  }
}

/** All of a contract that goes beyond a rule; empty: the rule admits it. */
export function excessOf({ spec }: Contract, { bounds, require: narrowness = [] }: PolicyRule): Excess[] {
  const { authority, limits } = spec
  const { filesystem: files, exec, network, syscall, secret, github } = authority
  const found: Excess[] = []
  const bounded = (name: keyof typeof bounds, path: PropertyKey[], why: string): void => { found.push({ path: ['spec', ...path], bound: ['bounds', name], why }) }
  const required = (name: (typeof narrowness)[number], path: PropertyKey[], why: string): void => { if (narrowness.includes(name)) found.push({ path: ['spec', ...path], bound: ['require'], why: `${why}, and "${name}" is required` }) }

  const ofAuthority = [bounds.network, bounds.read, bounds.write, bounds.exec, bounds.profiles, bounds.syscalls].some(one => one !== undefined) || narrowness.length > 0
  const modes = bounds.modes ?? (ofAuthority ? ['enforce'] : ['observe', 'enforce'])
  if (!modes.includes(spec.mode)) bounded('modes', ['mode'], `mode ${spec.mode} is not among ${modes.join(', ')}`)
  if (bounds.ttl !== undefined && ttlSeconds(spec.ttl) > ttlSeconds(bounds.ttl)) bounded('ttl', ['ttl'], `ttl ${spec.ttl} is longer than ${bounds.ttl}`)
  if (bounds.memory !== undefined && memoryBytes(limits.memory) > memoryBytes(bounds.memory)) bounded('memory', ['limits', 'memory'], `memory ${limits.memory} is more than ${bounds.memory}`)
  if (bounds.pids !== undefined && limits.pids > bounds.pids) bounded('pids', ['limits', 'pids'], `${limits.pids} processes are more than ${bounds.pids}`)
  if (bounds.cpus !== undefined && (limits.cpus ?? Infinity) > bounds.cpus) bounded('cpus', ['limits', 'cpus'], limits.cpus === undefined ? `no limit of cpus is set, and ${bounds.cpus} are the most` : `${limits.cpus} cpus are more than ${bounds.cpus}`)
  if (bounds.workspaces !== undefined && !bounds.workspaces.includes(spec.workspace)) bounded('workspaces', ['workspace'], `workspace ${spec.workspace} is not among ${bounds.workspaces.join(', ')}`)
  // Whoever chooses the image chooses what lies at every path of it.
  const paths = (['read', 'write', 'exec'] as const).find(name => bounds[name] !== undefined)
  if (bounds.images === undefined && spec.rootfs !== undefined && paths !== undefined) bounded(paths, ['rootfs'], `${paths} is bounded, and means nothing in an image of the contract's choice: the rule names no images`)
  if (bounds.images !== undefined && spec.rootfs !== undefined && !covers(bounds.images, spec.rootfs)) bounded('images', ['rootfs'], `the image ${spec.rootfs} lies in none of its trees`)

  network.forEach((grant, at) => {
    if (bounds.network !== undefined && !reachWithin(grant, bounds.network)) bounded('network', ['authority', 'network', at], `destination ${grantText(grant)} is not among those that it allows`)
    if (isBroad(grant)) required('named-destinations', ['authority', 'network', at], `destination ${grantText(grant)} names no host`)
  })
  // A fixed address is reached under whatever name the contract gives it: the grant is one of the address.
  for (const [name, address] of bounds.network === undefined ? [] : Object.entries(spec.hosts)) {
    const within = bounds.network!.filter(isHostGrant).filter(outer => reachWithin({ ...outer, host: address }, [outer]))
    const held = (grant: HostGrant): boolean => within.some(({ port, protocol }) => protocol === grant.protocol && (port === '*' || port === grant.port))
    const reached = spec.mode === 'observe' ? [{ host: '*', port: '*' } as const] : network.filter(isHostGrant)
    const beyond = reached.find(grant => nameMatches(grant.host, name) && !held(grant))
    if (beyond !== undefined) bounded('network', ['hosts', name], `${name} stands for ${grantText({ ...beyond, host: address })}, which is not among the destinations that it allows`)
  }
  for (const access of ['read', 'write'] as const) {
    const trees = bounds[access]
    files[access].forEach((path, at) => {
      if (trees !== undefined && !covers(trees, path)) bounded(access, ['authority', 'filesystem', access, at], `${access === 'read' ? 'reading' : 'writing'} ${path} is in none of its trees`)
      if (path === '/') required('listed-paths', ['authority', 'filesystem', access, at], `${access} of / lists nothing`)
    })
  }
  execPaths(exec).forEach((path, at) => {
    if (bounds.exec !== undefined && !bounds.exec.includes('*') && (path === '*' || !covers(bounds.exec, path))) bounded('exec', ['authority', 'exec', at], `executing ${path} is not among what it allows`)
    if (path === '*') required('listed-programs', ['authority', 'exec', at], 'exec "*" lists no program')
  })
  const profile = typeof syscall.profile === 'string' ? syscall.profile : 'oci'
  if (bounds.profiles !== undefined && !bounds.profiles.includes(profile)) bounded('profiles', ['authority', 'syscall', 'profile'], `syscall profile ${profile} is not among ${bounds.profiles.join(', ')}`)
  if (profile !== 'strict') required('listed-calls', ['authority', 'syscall', 'profile'], `syscall profile ${profile} lists no calls`)
  syscall.allow.forEach((grant, at) => {
    const name = typeof grant === 'string' ? grant : grant.name
    if (bounds.syscalls !== undefined && !bounds.syscalls.includes(name)) bounded('syscalls', ['authority', 'syscall', 'allow', at], `system call ${name} may not be added`)
  })
  spec.capabilities.forEach((name, at) => {
    if (bounds.capabilities !== undefined && !bounds.capabilities.includes(name)) bounded('capabilities', ['capabilities', at], `capability ${name} is not among those that it allows`)
  })
  secret.forEach(({ name }, at) => {
    if (bounds.secrets !== undefined && !bounds.secrets.some(one => (one.endsWith('*') ? name.startsWith(one.slice(0, -1)) : name === one))) bounded('secrets', ['authority', 'secret', at], `secret ${name} is not among those that it allows`)
  })
  for (const [name, level] of Object.entries(github.permissions)) {
    const most = bounds.permissions === undefined ? 'admin' : Object.hasOwn(bounds.permissions, name) ? bounds.permissions[name]! : null
    if (most === null || LEVELS.indexOf(level) > LEVELS.indexOf(most)) bounded('permissions', ['authority', 'github', 'permissions', name], `permission ${name}: ${level} is ${most === null ? 'not among those that it allows' : `more than ${most}`}`)
  }
  return found
}

/** As contracts mean it: "*" and a wide block stand for no address that a cell reaches only where it is named. */
function reachWithin(inner: Grant, bounds: readonly Grant[]): boolean {
  const block = isHostGrant(inner) ? parseBlock(inner.host) : null
  const bar = block === null ? null : barOf(block.base, ownAddresses())
  const named = bar !== null && block!.bits >= bar.bits ? bar.bits : -1
  return bounds.some(outer => grantWithin(inner, outer) && (named < 0 || (isHostGrant(outer) && (parseBlock(outer.host)?.bits ?? -1) >= named)))
}

const LEVELS = ['read', 'write', 'admin']

type Accounts = { users: (string | number)[]; groups: (string | number)[] }

function isFor(rule: PolicyRule, { users, groups }: Accounts): boolean {
  return rule.for === undefined || (rule.for.users ?? []).some(one => users.includes(one)) || (rule.for.groups ?? []).some(one => groups.includes(one))
}

/** By passwd(5) and group(5): who is known elsewhere only (LDAP) is known here by number. */
function accountsOf({ uid, gid }: Caller): Accounts {
  const lines = (path: string): string[][] => readFileSync(path, 'utf8').split('\n').map(line => line.split(':'))
  const names = lines('/etc/passwd').filter(([, , id]) => id === String(uid)).map(([name]) => name!)
  const groups = lines('/etc/group').filter(([, , id, members]) => id === String(gid) || (members ?? '').split(',').some(member => names.includes(member)))
  return { users: [uid, ...names], groups: [gid, ...groups.flatMap(([name, , id]) => [name!, Number(id)])] }
}
