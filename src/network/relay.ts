import { connect, type Server, type Socket } from 'node:net'
import type { EvidenceBody } from '../evidence/records.ts'
import { parseAddress, type Address } from '../authority/addresses.ts'
import { MAX_FIRST_BYTES, readFirstBytes, type FirstBytes } from './first-bytes.ts'
import { httpGuard } from './http-guard.ts'
import type { Objection } from './http-requests.ts'
import type { Journal } from './journal.ts'
import { isSynthetic, type Names } from './names.ts'
import type { Policy } from './policy.ts'
import { reset } from './reset.ts'

type Flow = Extract<EvidenceBody, { type: 'flow' }>
export type Ruling = { decision: 'allowed' | 'refused'; name: string | null; nameSource: Flow['nameSource']; reason: string; hidden?: true }

/** Connections of one cell at once: each takes two descriptors of the daemon, which other cells need too. */
const MAX_CONNECTIONS = 512
/** How long a client may take over its first message, once it has begun it. */
const FIRST_BYTES_MS = 10_000
const CONNECT_MS = 30_000
/** How long a connection that is cut may take to close, ms. */
const CUT_MS = 500

export type RelayOptions = {
  policy: Policy
  names: Names
  journal: Journal
  /** Where the accepted connection was headed: its own name, unless a test stands in for sk_lookup. */
  dialled?: (client: Socket) => { address: string | undefined; port: number | undefined }
  maxConnections?: number
  firstBytesMs?: number
}

export type Relay = {
  serve(server: Server): void
  /** Cuts what is still open and tells it; resolves when every flow is told. */
  close(): Promise<void>
}

/** Where a connection may go, before a byte of it was read. */
export type Route = Ruling & {
  candidates: string[]
  target: string
  byAddress: boolean
  /** The contract itself gives the name this address: no other site shares it but by the contract's will. */
  mapped: boolean
}

/**
 * Rules on an address as it was dialled. The name comes only from what this cell's resolver gave: never from the address,
 * which may serve many names, and never from what the client says alone.
 */
export function ruleOnAddress({ policy, names }: Pick<RelayOptions, 'policy' | 'names'>, address: Address, port: number): Route {
  const text = address.toString()
  const mapped = names.mappedAt(address)
  const candidates = mapped === undefined ? names.of(address) : [mapped.name]
  const route = { candidates, target: mapped?.target ?? text, byAddress: false, mapped: mapped !== undefined, name: candidates[0] ?? null, nameSource: candidates.length > 0 ? 'resolver' : 'none' } as const
  const refused = (reason: string): Route => ({ ...route, decision: 'refused', reason })
  const allowed = (reason: string): Route => ({ ...route, decision: 'allowed', reason })

  if (mapped === undefined) {
    if (isSynthetic(address)) return refused(`${text} stands for no name in this cell`)
    // Reached only by dialling the relay's own socket, since loopback in a cell is the cell's own.
    if (address.range() === 'loopback') return refused('the relay is not to be dialled itself')
    const bar = policy.barred(address, port)
    if (bar !== null) return refused(bar)
    if (policy.address(address, port)) return { ...allowed('declared by address'), byAddress: true }
  }
  const granted = candidates.filter(name => policy.name(name, port))
  if (granted.length > 0) {
    const others = granted.length > 1 ? `; the address stands for ${list(granted)}` : ''
    return { ...allowed(`declared${others}`), name: granted[0]! }
  }
  const open = policy.open(port)
  if (open !== null) return allowed(candidates.length === 0 ? `${open}; the address was not resolved in this cell` : open)
  if (candidates.length > 0) return refused(`${list(candidates)} is not declared at port ${port}`)
  return refused('this cell\'s resolver did not give the address, and no address is declared that covers it')
}

/** Rules again, once the client has said which server it means. */
export function ruleOnFirstBytes(policy: Policy, route: Route, port: number, first: FirstBytes): Ruling {
  const { candidates } = route
  const own: Ruling = { decision: route.decision, name: route.name, nameSource: route.nameSource, reason: route.reason }
  if (route.byAddress) return own
  const open = policy.open(port)
  const doubt = (why: string, of = own): Ruling => (open === null ? { ...own, decision: 'refused', reason: why } : { ...of, reason: `${of.reason}; ${why}` })

  if (first.kind === 'unclear') return doubt(first.why)
  if (first.kind === 'other') return own
  if (first.kind === 'tls' && first.ech && first.sni !== null && policy.hiddenName(first.sni, port)) {
    const shown = ruleOnFirstBytes(policy, route, port, { ...first, ech: false })
    return shown.decision === 'refused' ? shown : { ...shown, reason: `${shown.reason}; its ClientHello may hide another name, as declared`, hidden: true }
  }
  if (first.kind === 'tls' && first.ech) return doubt('an encrypted ClientHello can hide another name (browsers: turn EncryptedClientHello off; or declare `encryptedClientHello: true`)', open === null ? own : { ...ruleOnFirstBytes(policy, route, port, { ...first, ech: false }), hidden: true })
  // Its requests name their servers in compressed frames, each its own.
  if (first.kind === 'http2') return route.mapped ? own : doubt('HTTP/2 in clear can name another server in each request')
  const claimed = first.kind === 'tls' ? first.sni : first.host
  const what = first.kind === 'tls' ? 'TLS' : 'HTTP'
  if (claimed === null) return candidates.length === 1 ? own : doubt(`${what} without a name, at an address that stands for ${list(candidates)}`)
  const nameSource = first.kind === 'tls' ? 'sni' : 'host'
  if (candidates.includes(claimed)) {
    if (policy.name(claimed, port)) return { decision: 'allowed', name: claimed, nameSource, reason: 'declared' }
    return open === null
      ? { decision: 'refused', name: claimed, nameSource, reason: `${claimed} is not declared at port ${port}` }
      : { decision: 'allowed', name: claimed, nameSource, reason: open }
  }
  const shown = printable(claimed)
  const mismatch = `${what} names ${shown}, but the address was resolved for ${list(candidates)}`
  // Allowed, it keeps the name that was resolved: else a job could pass any server off as a declared one.
  return open === null ? { decision: 'refused', name: shown, nameSource, reason: mismatch } : { ...own, reason: `${own.reason}; ${mismatch}` }
}

/**
 * Why a request may not follow on a connection that was ruled on by its first one. Even a declared name may not, if it is another
 * one: a flow is told by one name. Clients keep a connection to each name.
 */
export function objectionTo(route: Route, ruling: Ruling, host: string | null): Objection | null {
  if (host === null ? route.candidates.length === 1 : host === ruling.name) return null
  const named = host === null ? 'no server' : printable(host)
  return { why: `a later HTTP request names ${named}, on a connection to ${ruling.name ?? 'an address without a name'}`, host }
}

/**
 * Takes every TCP connection of one cell. The server is dialled at once, but of the client's bytes none leaves before the first
 * ones were read: so servers that speak first do, nobody waits, and a client cannot talk its way past the check by being slow.
 */
export function openRelay(options: RelayOptions): Relay {
  const { policy, journal } = options
  const live = new Set<{ cut(why: string): void; told: Promise<void> }>()
  let count = 0
  let closed = false

  const accept = (client: Socket): void => {
    const began = performance.now()
    const number = count++
    const { address: text, port } = options.dialled?.(client) ?? { address: client.localAddress, port: client.localPort }
    const address = text === undefined ? null : parseAddress(text)
    client.on('error', () => {})
    // A client that is gone already has no address any more; nothing was relayed.
    if (address === null || port === undefined) {
      client.destroy()
      return
    }
    const tell = (ruling: Ruling, bytesOut: number, bytesIn: number): void =>
      journal.flow({ type: 'flow', flow: number, name: ruling.name, nameSource: ruling.nameSource, address: address.toString(), port, decision: ruling.decision, reason: ruling.reason, bytesOut, bytesIn, durationMs: performance.now() - began, ...(ruling.hidden ? { encryptedClientHello: true } : {}) })
    const route = ruleOnAddress(options, address, port)
    const most = options.maxConnections ?? MAX_CONNECTIONS
    const full = live.size >= most ? `more than ${most} connections at once` : null
    if (closed || full !== null || route.decision === 'refused') {
      reset(client)
      tell(full === null ? route : { ...route, decision: 'refused', reason: full }, 0, 0)
      return
    }
    const held = carry(client, route, port, policy, options.firstBytesMs ?? FIRST_BYTES_MS)
    const entry = { cut: held.cut, told: held.done.then(end => {
      live.delete(entry)
      tell(end.ruling, end.bytesOut, end.bytesIn)
      // What was used was used, and what was refused is told too: one connection, two acts.
      if (end.refused !== null) tell(end.refused, 0, 0)
    }) }
    live.add(entry)
  }

  return {
    serve: server => { server.on('connection', accept) },
    async close() {
      closed = true
      const open = [...live]
      for (const one of open) one.cut('still open when the cell ended')
      await Promise.all(open.map(one => one.told))
    },
  }
}

type End = {
  ruling: Ruling
  /** What a connection that was allowed tried later on. */
  refused: Ruling | null
  bytesOut: number
  bytesIn: number
}

/** Carries one connection to its end. */
function carry(client: Socket, route: Route, port: number, policy: Policy, firstBytesMs: number): { cut(why: string): void; done: Promise<End> } {
  let ruling: Ruling = route
  let refused: Ruling | null = null
  let sent = frozen(0)
  const note = (why: string): void => { ruling = { ...ruling, reason: `${ruling.reason}; ${why}` } }
  client.setNoDelay(true)
  const server = connect({ host: route.target, port, allowHalfOpen: true, noDelay: true, keepAlive: true })
  server.pipe(client)
  const late = setTimeout(() => server.destroy(Object.assign(new Error(), { code: 'ETIMEDOUT' })), CONNECT_MS)
  let connected = false
  server.once('connect', () => {
    connected = true
    clearTimeout(late)
  })

  const both = (): void => {
    reset(client)
    reset(server)
  }
  const failed = (side: 'client' | 'server') => (error: NodeJS.ErrnoException): void => {
    note(side === 'client' ? `the client broke it off: ${error.code}` : `${connected ? 'the server broke it off' : 'the server could not be reached'}: ${error.code}`)
    if (side === 'client' || client.destroyed) both()
    // What the server had sent before it broke off is the client's to read.
    else client.write('', both)
  }
  server.on('error', failed('server'))
  client.on('error', failed('client'))

  const objected = ({ why, host }: Objection): 'cut' | 'pass' => {
    note(why)
    if (policy.open(port) !== null) return 'pass'
    refused = { decision: 'refused', name: host === null ? ruling.name : printable(host), nameSource: host === null ? ruling.nameSource : 'host', reason: why }
    both()
    return 'cut'
  }

  gate(client, firstBytesMs, (first, bytes) => {
    ruling = ruleOnFirstBytes(policy, route, port, first)
    if (ruling.decision === 'refused') {
      both()
      return
    }
    if (server.destroyed) return
    sent = () => (connected ? Math.max(0, server.bytesWritten - server.writableLength) : 0)
    server.once('close', () => { sent = frozen(sent()) })
    // At an address that was dialled by name, HTTP/1 can ask for another name in each request.
    if (first.kind === 'http' && !route.byAddress && objectionTo(route, ruling, first.host) === null) {
      const guard = httpGuard(server, { admit: head => objectionTo(route, ruling, head.host), hidden: route.mapped, objected })
      guard.pipe(server)
      guard.write(bytes)
      client.pipe(guard)
      return
    }
    if (bytes.length > 0) server.write(bytes)
    client.pipe(server)
  })

  const closings = [client, server].map(socket => new Promise<void>(resolve => { socket.once('close', () => resolve()) }))
  let giveUp = (): void => {}
  const waited = new Promise<void>(resolve => { giveUp = resolve })
  const done = Promise.race([Promise.all(closings), waited]).then((): End => {
    clearTimeout(late)
    return { ruling, refused, bytesOut: sent(), bytesIn: server.bytesRead }
  })
  return {
    done,
    cut(why) {
      note(why)
      both()
      // Node was seen to destroy a socket without ever telling that it is closed; a cell's end must not wait for that.
      setTimeout(giveUp, CUT_MS)
    },
  }
}

function frozen(value: number): () => number {
  return () => value
}

/** Holds the client's bytes back until they say which server is meant; `pass` then gets them all. */
function gate(client: Socket, limitMs: number, pass: (first: FirstBytes, bytes: Buffer) => void): void {
  let bytes = Buffer.alloc(0)
  let over = false
  let timer: NodeJS.Timeout | undefined
  const settle = (first: FirstBytes): void => {
    if (over) return
    over = true
    clearTimeout(timer)
    client.off('data', more).off('end', ended).off('close', drop)
    if (!client.destroyed) pass(first, bytes)
  }
  const read = async (end: boolean): Promise<void> => {
    client.pause()
    const first = await readFirstBytes(bytes.subarray(0, MAX_FIRST_BYTES), end)
    if (first !== null) settle(first)
    else if (!over) client.resume()
  }
  const more = (chunk: Buffer): void => {
    timer ??= setTimeout(() => settle({ kind: 'unclear', why: 'its first message stayed incomplete' }), limitMs)
    bytes = Buffer.concat([bytes, chunk])
    void read(false)
  }
  const ended = (): void => void read(true)
  const drop = (): void => {
    over = true
    clearTimeout(timer)
  }
  client.on('data', more).once('end', ended).once('close', drop)
}

function list(names: readonly string[]): string {
  const shown = names.slice(0, 3).join(', ')
  return names.length === 0 ? 'no name' : names.length > 3 ? `${shown} and ${names.length - 3} more` : shown
}

/** A name that a client made up, fit for evidence. */
function printable(name: string): string {
  return name.slice(0, 253).replace(/[^!-~]/g, '?')
}
