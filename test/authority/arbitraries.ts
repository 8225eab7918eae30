import fc from 'fast-check'
import type { EvidenceBody, Family } from '../../src/evidence/records.ts'
import { exec, execFailed, connect, dns, file, fileFailed, flow, oidcHanded, request, response, script, socket, startedWith, syscalls, unreadable } from './evidence.ts'

/** For each kind: what may be declared (before parsing), what may be observed, and an independent word on what a declaration allows. */
export type KindCase = {
  /** Families whose gaps make the kind's silence mean nothing. */
  families: readonly Family[]
  declared: fc.Arbitrary<unknown>
  /** Evidence without a gap of its own. */
  events: fc.Arbitrary<EvidenceBody[]>
  /** Whether the act that the record tells of is one that the declaration allows; null: it tells of none. */
  allows(declared: never, event: EvidenceBody): boolean | null
}

const some = <T>(items: fc.Arbitrary<T>, maxLength: number): fc.Arbitrary<T[]> => fc.array(items, { maxLength })
const unique = <T>(items: fc.Arbitrary<T>, maxLength: number): fc.Arbitrary<T[]> => fc.uniqueArray(items, { maxLength, selector: item => JSON.stringify(item) })

const FOLDERS = ['/usr/lib/gcc', '/usr/lib/x86_64-linux-gnu', '/usr/lib', '/usr/libx', '/usr', '/usr/share/git-core', '/usr/include', '/etc', '/opt/a', '/opt/ab', '/workspace', '/workspace/src', '/tmp', '/var/lib/x', '/home/u/.cache']
const folder = fc.constantFrom(...FOLDERS)
const filePath = fc.tuple(folder, fc.array(fc.constantFrom('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'x y', 'ü', '..x'), { maxLength: 3 })).map(([base, parts]) => [base, ...parts].join('/'))
const grantPath = fc.oneof({ weight: 1, arbitrary: fc.constant('/') }, { weight: 4, arbitrary: folder }, { weight: 3, arbitrary: filePath })
const strange = fc.constantFrom('/proc/self/maps', '/dev/null', '/', '/etc/hosts', '(unreachable)pipe:[1]', '/sys/kernel/x', '/run/ambit/secrets/A')
const access = fc.constantFrom('read' as const, 'write' as const, 'readwrite' as const)

const below = (path: string, grant: string): boolean => `${path}/`.startsWith(grant === '/' ? '/' : `${grant}/`)
const mine = (path: string): boolean => !/^\/(proc|sys|dev|run)(\/|$)|^\/$|^\(|^\/etc\/(hosts|hostname|resolv.conf|ld.so.cache)$/.test(path)

const filesystem: KindCase = {
  families: ['file'],
  declared: fc.record({ read: unique(grantPath, 5), write: unique(grantPath, 3) }),
  events: some(fc.oneof(
    { weight: 8, arbitrary: fc.tuple(filePath, access, fc.boolean()).map(([path, how, made]) => file(path, how, made && how !== 'read')) },
    { weight: 1, arbitrary: fc.tuple(strange, access).map(([path, how]) => file(path, how)) },
    { weight: 2, arbitrary: fc.tuple(filePath, fc.constantFrom('ENOENT', 'EACCES', 'EROFS', 'EEXIST'), fc.boolean(), access).map(args => fileFailed(...args)) },
  ), 40),
  allows(declared: { read: string[]; write: string[] }, event) {
    if (event.type !== 'file' || !mine(event.path)) return null
    const write = declared.write.some(grant => below(event.path, grant))
    return event.access === 'read' ? write || declared.read.some(grant => below(event.path, grant)) : write
  },
}

const program = fc.constantFrom('/usr/bin/gcc', '/usr/bin/git', '/usr/bin/gitk', '/workspace/build/x', '/tmp/a.out', '/usr/lib/gcc/cc1')
const digest = fc.constantFrom('a'.repeat(64), 'b'.repeat(64))
const ofHost = fc.constantFrom('/usr/bin/gcc', '/usr/bin/git', '/usr/bin/gitk', '/usr/lib/gcc/cc1')
const execGrant = fc.oneof({ weight: 3, arbitrary: program }, { weight: 1, arbitrary: fc.record({ path: ofHost, sha256: digest }) })
/** Of all programs the same content was found. */
const checked = fc.subarray(['/usr/bin/gcc', '/usr/bin/git', '/usr/bin/gitk', '/usr/lib/gcc/cc1']).chain(paths => fc.subarray(paths).map(loaders => startedWith({ loaders, programs: paths.map((path, n) => ({ path, sha256: 'a'.repeat(64), dev: '8:1', ino: `9${n}` })) })))
type DeclaredExec = (string | { path: string; sha256: string })[]
const execKind: KindCase = {
  families: ['exec'],
  declared: fc.oneof(fc.constant(['*']), fc.uniqueArray(execGrant, { maxLength: 4, selector: one => (typeof one === 'string' ? one : one.path) })),
  events: fc.tuple(fc.option(checked, { freq: 4 }), some(fc.oneof(
    { weight: 8, arbitrary: program.map(path => [exec(path)]) },
    { weight: 1, arbitrary: fc.constantFrom([exec('/memfd:x', true)], [exec('(unreachable)/memfd:y', true)], [exec('/dev/shm/p')]) },
    { weight: 1, arbitrary: fc.tuple(program, program, fc.boolean()).map(([path, before, opened]) => [...script(path, ['/usr/bin/git', before, path]), ...(opened ? [file(path)] : [])]) },
    { weight: 2, arbitrary: fc.tuple(program, fc.constantFrom('ENOENT', 'EACCES', 'ENOEXEC'), fc.boolean()).map(args => [execFailed(...args)]) },
  ), 20)).map(([first, rest]) => [...(first === null ? [] : [first]), ...rest.flat()]),
  allows: (declared: DeclaredExec, event) => (event.type !== 'exec' ? null : declared.includes('*') || (!event.unlinked && declared.some(one => (typeof one === 'string' ? one === event.path : one.path === event.path && one.sha256 === 'a'.repeat(64))))),
}

const HOSTS = ['example.com', 'a.example.com', 'b.a.example.com', 'evil-example.com', 'other.test', 'api.github.com']
const ADDRESSES = ['198.51.100.7', '10.1.2.3', '2001:db8::1', '203.0.113.9']
const grantHost = fc.constantFrom(...HOSTS, '*', '*.example.com', '*.a.example.com', '10.0.0.0/8', '198.51.100.7', '2001:db8::/32')
const at = fc.constantFrom(443, 80, 8443)
const SOCKETS = ['/run/postgresql/.s.PGSQL.5432', '/var/lib/x/y.sock']
const hostGrant = fc.record({ host: grantHost, port: fc.oneof(at, fc.constant('*' as const)), protocol: fc.constantFrom(undefined, undefined, 'tcp' as const, 'udp' as const), hidden: fc.boolean(), proxy: fc.boolean() })
  .map(({ host, port, protocol, hidden, proxy }) => ({ host, port, ...(protocol === undefined ? {} : { protocol }), ...(hidden && protocol !== 'udp' && /^(?:\*\.)?[a-z]/.test(host) && !host.includes(':') ? { encryptedClientHello: true } : {}), ...(proxy && protocol !== 'udp' && host !== '*' ? { proxy: true } : {}) }))
type DeclaredNetwork = ({ host: string; port: number | '*'; protocol?: 'udp'; encryptedClientHello?: true } | { unix: string })[]
const networkKind: KindCase = {
  families: ['network'],
  declared: fc.uniqueArray(fc.oneof({ weight: 4, arbitrary: hostGrant }, { weight: 1, arbitrary: fc.constantFrom(...SOCKETS).map(unix => ({ unix })) }), {
    maxLength: 5, selector: one => JSON.stringify({ ...one, ...('protocol' in one && one.protocol === 'tcp' ? { protocol: undefined } : {}) }),
  }),
  events: some(fc.oneof(
    { weight: 6, arbitrary: fc.tuple(fc.constantFrom(...HOSTS, 'EXAMPLE.com.', null), at, fc.constantFrom(...ADDRESSES), fc.constantFrom('allowed' as const, 'allowed' as const, 'refused' as const), fc.constantFrom({}, {}, { protocol: 'udp' as const }, { encryptedClientHello: true as const })).map(([name, port, address, decision, more]) => flow(name, port, { address, decision, ...more })) },
    { weight: 2, arbitrary: fc.tuple(fc.constantFrom(...HOSTS), fc.constantFrom('allowed' as const, 'refused' as const), fc.subarray(ADDRESSES)).map(([name, decision, answers]) => dns(name, decision, decision === 'allowed' ? answers : [])) },
    { weight: 2, arbitrary: fc.tuple(fc.constantFrom(...ADDRESSES, '127.0.0.1', '::1'), at, fc.constantFrom('tcp' as const, 'udp' as const)).map(args => connect(...args)) },
    { weight: 1, arbitrary: fc.tuple(fc.constantFrom(...SOCKETS, '/tmp/own.sock'), fc.boolean()).map(([path, reached]) => socket(path, reached)) },
  ), 20),
  allows(declared: DeclaredNetwork, event) {
    if (event.type === 'file') return /^\/tmp\//.test(event.path) ? null : declared.some(one => 'unix' in one && one.unix === event.path)
    if (event.type !== 'flow' || event.decision === 'refused') return null
    const name = event.name?.toLowerCase().replace(/\.$/, '') ?? null
    const inBlock = (host: string): boolean => host === event.address || (host === '10.0.0.0/8' && event.address.startsWith('10.')) || (host === '2001:db8::/32' && event.address.startsWith('2001:db8:'))
    return declared.some(one => {
      if ('unix' in one || one.protocol !== event.protocol || (one.port !== '*' && one.port !== event.port)) return false
      const { host } = one
      const named = name !== null && (host === name || (host.startsWith('*.') && name.endsWith(host.slice(1))))
      return host === '*' || inBlock(host) || (named && (event.encryptedClientHello !== true || one.encryptedClientHello === true))
    })
  },
}

const call = fc.constantFrom('read', 'openat', 'open', 'mkdir', 'mkdirat', 'connect', 'socket', 'memfd_create', 'ptrace', 'mount', 'rename', 'renameat2', 'exit_group', 'execve', 'clone3')
const BUILD_SAMPLE = new Set(['read', 'openat', 'open', 'mkdir', 'mkdirat', 'connect', 'socket', 'memfd_create', 'rename', 'renameat2', 'exit_group', 'execve'])
const MINIMAL_SAMPLE = new Set(['read', 'openat', 'open', 'exit_group', 'execve'])
const counts = fc.record({ succeeded: fc.nat(3), failed: fc.nat(2), refused: fc.nat(2), unfinished: fc.nat(1) })
const compared = fc.record({ index: fc.constantFrom(0, 2), op: fc.constantFrom('eq', 'ne'), value: fc.constantFrom(1, 2, 'AF_NETLINK') })
const ruled = fc.tuple(fc.constantFrom('socket', 'connect', 'rename'), compared).map(([name, arg]) => ({ name, args: [arg] }))
const deniedCall = fc.oneof(fc.constantFrom('swapon', 'kill'), fc.tuple(fc.constantFrom('socket', 'openat', 'mount'), compared).map(([name, arg]) => ({ name, args: [arg] })))
const ociAction = fc.constantFrom('SCMP_ACT_ALLOW', 'SCMP_ACT_ALLOW', 'SCMP_ACT_KILL_PROCESS')
const ociBase = fc.array(fc.tuple(fc.subarray(['openat', 'mkdir', 'socket', 'connect', 'rename']), ociAction, fc.nat(9)), { maxLength: 3 }).map(rules => ({
  oci: { defaultAction: 'SCMP_ACT_ERRNO', syscalls: [{ names: ['execve', 'read', 'exit_group'], action: 'SCMP_ACT_ALLOW' }, ...rules.map(([names, action, value]) => ({ names, action, args: [{ index: 0, op: 'SCMP_CMP_EQ', value }] }))] },
}))
const syscallKind: KindCase = {
  families: ['syscall'],
  declared: fc.oneof(
    { weight: 3, arbitrary: fc.record({ profile: fc.constantFrom('build', 'strict'), allow: unique(fc.constantFrom('ptrace', 'mkdir', 'connect', 'socket', 'read', 'mount', 'renameat', 'memfd_create'), 4), deny: unique(deniedCall, 2) }) },
    { weight: 1, arbitrary: fc.record({ profile: fc.constant('strict'), allow: unique(fc.oneof(fc.constantFrom('mkdir', 'ptrace'), ruled), 4), deny: unique(deniedCall, 2) }) },
    { weight: 1, arbitrary: fc.record({ profile: ociBase, allow: unique(fc.oneof(fc.constantFrom('mkdir', 'ptrace'), ruled), 3), deny: unique(deniedCall, 2) }) },
  ),
  events: fc.dictionary(call, counts, { maxKeys: 10, noNullPrototype: true }).map(calls => [syscalls(calls)]),
  // One record tells of many calls, some allowed and some not: `allowedCalls` says which.
  allows: () => null,
}
/** The calls of a record that reached the kernel and that a declaration allows, some arguments at least. */
export function allowedCalls({ profile, allow, deny }: { profile: string | { oci: { syscalls: { names: string[]; action: string }[] } }; allow: (string | { name: string })[]; deny: unknown[] }, events: readonly EvidenceBody[]): string[] {
  const sample = typeof profile !== 'string' ? new Set(profile.oci.syscalls.filter(rule => rule.action === 'SCMP_ACT_ALLOW').flatMap(rule => rule.names)) : profile === 'build' ? BUILD_SAMPLE : MINIMAL_SAMPLE
  const more = allow.map(one => (typeof one === 'string' ? one : one.name))
  return events.flatMap(event => (event.type === 'syscalls' ? event.calls : [])).filter(one => one.succeeded + one.failed + one.unfinished > 0)
    .map(one => one.name!).filter(name => (sample.has(name) || more.includes(name)) && !deny.includes(name))
}

const secretName = fc.constantFrom('NPM_TOKEN', 'KEY', 'A')
const secretKind: KindCase = {
  families: ['file'],
  declared: fc.uniqueArray(fc.record({ name: secretName, delivery: fc.constantFrom('environment', 'file') }), { maxLength: 3, selector: one => one.name }),
  events: some(fc.tuple(secretName, access).map(([name, how]) => file(`/run/ambit/secrets/${name}`, how)), 6),
  allows: (declared: { name: string }[], event) => (event.type !== 'file' || event.access === 'write' ? null : declared.some(one => event.path.endsWith(`/${one.name}`))),
}

/** Requests with any one of what GitHub's documentation says they need. */
export const CALLS: readonly { method: string; path: string; needs: readonly [string, string][] }[] = [
  { method: 'GET', path: '/repos/o/r/releases/latest', needs: [['contents', 'read']] },
  { method: 'PUT', path: '/repos/o/r/contents/a/b.txt', needs: [['contents', 'write']] },
  { method: 'POST', path: '/repos/o/r/issues', needs: [['issues', 'write']] },
  { method: 'GET', path: '/repos/o/r/issues?state=open', needs: [['issues', 'read']] },
  { method: 'POST', path: '/repos/o/r/issues/7/comments', needs: [['issues', 'write'], ['pull_requests', 'write']] },
  { method: 'GET', path: '/repos/o/r/actions/runs', needs: [['actions', 'read']] },
  { method: 'DELETE', path: '/orgs/o/packages/npm/p', needs: [['packages', 'admin']] },
]
const OIDC_URL = 'https://oidc.example/token?api-version=2'
const LEVEL = { read: 0, write: 1, admin: 2 } as const
const level = fc.constantFrom('read', 'write', 'admin')
const githubKind: KindCase = {
  families: ['api', 'network'],
  declared: fc.dictionary(fc.constantFrom('contents', 'issues', 'pull_requests', 'actions', 'packages', 'metadata', 'id_token'), level, { maxKeys: 6, noNullPrototype: true })
    .map(permissions => ({ permissions, repositories: ['o/r'] })),
  events: fc.tuple(
    some(fc.record({ call: fc.constantFrom(...CALLS), status: fc.constantFrom(200, 201, 304, 403, 404, 422, 500, null), connection: fc.constantFrom('c1', 'c2', 'c3') }), 12),
    fc.boolean(), fc.boolean(),
  ).map(([calls, oidc, elsewhere]) => {
    const events = calls.flatMap(({ call: { method, path }, status, connection }, index) => {
      // An answer that never came ends the connection: what follows is on another.
      const name = status === null ? `${connection}-${index}` : connection
      return [request(method, path, { connection: name }), ...(status === null ? [] : [response(status, name)])]
    })
    const connections = new Set(events.map(event => (event.type === 'api.request' ? event.connection : null)).filter(name => name !== null))
    for (const _ of connections) events.push(flow('api.github.com', 443))
    if (oidc) events.push(oidcHanded(OIDC_URL), request('GET', '/token?api-version=2&audience=x', { host: 'oidc.example', connection: 'o' }), response(200, 'o'), flow('oidc.example', 443))
    // What cannot be read leads elsewhere: every connection to the API is accounted for.
    if (elsewhere) events.push(unreadable('HTTP/2'), flow('registry.example', 443))
    return events
  }),
  allows(declared: { permissions: Record<string, keyof typeof LEVEL> }, event) {
    if (event.type !== 'api.request') return null
    if (event.host === 'oidc.example') return declared.permissions['id_token'] !== undefined
    const needs = CALLS.find(one => one.method === event.method && one.path === event.path)!.needs
    return needs.some(([name, least]) => declared.permissions[name] !== undefined && LEVEL[declared.permissions[name]] >= LEVEL[least as keyof typeof LEVEL])
  },
}

export const CASES: Record<string, KindCase> = { github: githubKind, network: networkKind, filesystem, exec: execKind, syscall: syscallKind, secret: secretKind }
