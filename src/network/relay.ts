import { connect, type Server, type Socket } from 'node:net'
import type { EvidenceBody } from '../evidence/records.ts'
import { parseAddress, type Address } from '../authority/addresses.ts'
import { isName } from '../authority/destination.ts'
import { openCarrier, type Carrier, type Flow as Carried } from './carrier.ts'
import { MAX_FIRST_BYTES, readFirstBytes, type FirstBytes } from './first-bytes.ts'
import { httpGuard, type Answer } from './http-guard.ts'
import { readHead, type Asks, type Objection, type RequestHead } from './http-requests.ts'
import type { Journal } from './journal.ts'
import { isSynthetic, type Names } from './names.ts'
import type { Policy } from './policy.ts'
import { reset } from './reset.ts'

type Flow = Extract<EvidenceBody, { type: 'flow' }>
export type Ruling = { decision: 'allowed' | 'refused'; name: string | null; nameSource: Flow['nameSource']; reason: string; hidden?: true; proxied?: true }

/** Connections of one cell at once: each takes up to four descriptors of the daemon, which other cells need too. */
const MAX_CONNECTIONS = 512
/** How long a client may take over its first message, once it has begun it. */
const FIRST_BYTES_MS = 10_000
const CONNECT_MS = 30_000

export type RelayOptions = {
  policy: Policy
  names: Names
  journal: Journal
  /** Numbers of flows: the cell's own sequence. */
  nextNumber?: () => number
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
  /** The contract says that a proxy is there. */
  proxy: boolean
}

/**
 * Rules on an address as it was dialled. The name comes only from what this cell's resolver gave: never from the address,
 * which may serve many names, and never from what the client says alone.
 */
export function ruleOnAddress({ policy, names }: Pick<RelayOptions, 'policy' | 'names'>, address: Address, port: number): Route {
  const text = address.toString()
  const mapped = names.mappedAt(address)
  const candidates = mapped === undefined ? names.of(address) : [mapped.name]
  const route = { candidates, target: mapped?.target ?? text, byAddress: false, proxy: candidates.some(name => policy.proxy(name, port)), mapped: mapped !== undefined, name: candidates[0] ?? null, nameSource: candidates.length > 0 ? 'resolver' : 'none' } as const
  const refused = (reason: string): Route => ({ ...route, decision: 'refused', reason })
  const allowed = (reason: string): Route => ({ ...route, decision: 'allowed', reason })

  if (mapped === undefined) {
    if (isSynthetic(address)) return refused(`${text} stands for no name in this cell`)
    // Reached only by dialling the relay's own socket, since loopback in a cell is the cell's own.
    if (address.range() === 'loopback') return refused('the relay is not to be dialled itself')
    const bar = policy.barred(address, port)
    if (bar !== null) return refused(bar)
    if (policy.address(address, port)) return { ...allowed('declared by address'), byAddress: true, proxy: policy.proxy(address, port) }
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
  const open = policy.open(port)
  const doubt = (why: string, of = own): Ruling => (open === null ? { ...own, decision: 'refused', reason: why } : { ...of, reason: `${of.reason}; ${why}` })

  if (first.kind === 'socks') return doubt('a SOCKS proxy leads to any other server')
  if (first.kind === 'http' && first.asks !== undefined && (first.asks.tunnel || route.byAddress || route.proxy)) {
    return route.proxy ? { ...own, proxied: true } : doubt(`it asks a proxy for ${place(first.asks)}, and the contract does not say that one is there (\`proxy: true\`)`, { ...own, proxied: true })
  }
  if (route.byAddress) {
    // What is declared by its address has no name to be held to: all that matters is that it leads nowhere else.
    if (first.kind === 'http2') return doubt('HTTP/2 in clear can ask a proxy for any other server (where it is no proxy: give it a name in `hosts`)')
    return first.kind === 'unclear' && first.tls !== true ? doubt(first.why) : own
  }
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

/** Rules on a server that a declared proxy is asked for. What the proxy's own resolver makes of a name is not to be seen here. */
export function ruleOnAsked(policy: Policy, asks: Asks): Ruling {
  const address = parseAddress(asks.host.replace(/^\[|\]$/g, ''))
  const ruling = { name: address === null ? printable(asks.host) : null, nameSource: 'host' } as const
  const bar = address === null ? null : policy.barred(address, asks.port)
  if (bar !== null) return { ...ruling, decision: 'refused', reason: `a proxy was asked for it, and ${bar}` }
  if (address === null ? isName(asks.host) && policy.name(asks.host, asks.port) : policy.address(address, asks.port)) return { ...ruling, decision: 'allowed', reason: 'declared; through a proxy' }
  const open = policy.open(asks.port)
  return open === null
    ? { ...ruling, decision: 'refused', reason: `a proxy was asked for it, and ${place(asks)} is not declared` }
    : { ...ruling, decision: 'allowed', reason: `${open}; through a proxy` }
}

/**
 * Why a request may not follow on a connection that was ruled on by its first one. Even a declared name may not, if it is another
 * one: a flow is told by one name. Clients keep a connection to each name.
 */
export function objectionTo(route: Route, ruling: Ruling, { host, asks }: Pick<RequestHead, 'host' | 'asks'>): Objection | null {
  if (asks !== undefined && (asks.tunnel || route.byAddress)) return { why: `a later HTTP request asks a proxy for ${place(asks)}`, host: asks.host, port: asks.port }
  if (route.byAddress || (host === null ? route.candidates.length === 1 : host === ruling.name)) return null
  const named = host === null ? 'no server' : printable(host)
  return { why: `a later HTTP request names ${named}, on a connection to ${ruling.name ?? 'an address without a name'}`, host }
}

/**
 * Takes every TCP connection of one cell. The server is dialled at once, but of the client's bytes none leaves before the first
 * ones were read: so servers that speak first do, nobody waits, and a client cannot talk its way past the check by being slow.
 * Only the first bytes are read here: what follows them, and all that servers send, is carried natively. Requests of HTTP in clear
 * are the exception, for each is checked.
 */
export function openRelay(options: RelayOptions): Relay {
  const { policy, journal } = options
  const live = new Set<{ cut(why: string): void; told: Promise<void> }>()
  let count = 0
  let closed = false
  let carrier: Carrier | undefined

  const accept = (client: Socket): void => {
    const began = performance.now()
    const number = options.nextNumber?.() ?? count++
    const { address: text, port } = options.dialled?.(client) ?? { address: client.localAddress, port: client.localPort }
    const address = text === undefined ? null : parseAddress(text)
    client.on('error', () => {})
    // A client that is gone already has no address any more; nothing was relayed.
    if (address === null || port === undefined) {
      client.destroy()
      return
    }
    const tell = (ruling: Ruling, bytesOut: number, bytesIn: number, to = { address: address.toString(), port }): void =>
      journal.flow({ type: 'flow', flow: number, name: ruling.name, nameSource: ruling.nameSource, ...to, decision: ruling.decision, reason: ruling.reason, bytesOut, bytesIn, durationMs: performance.now() - began, ...(ruling.hidden ? { encryptedClientHello: true } : {}), ...(ruling.proxied ? { proxy: true } : {}) })
    const route = ruleOnAddress(options, address, port)
    const most = options.maxConnections ?? MAX_CONNECTIONS
    const full = live.size >= most ? `more than ${most} connections at once` : null
    if (closed || full !== null || route.decision === 'refused') {
      reset(client)
      tell(full === null ? route : { ...route, decision: 'refused', reason: full }, 0, 0)
      return
    }
    const held = carry(client, route, port, policy, options.firstBytesMs ?? FIRST_BYTES_MS, () => carrier ??= openCarrier())
    const entry = { cut: held.cut, told: held.done.then(end => {
      live.delete(entry)
      // What was used was used, and what was refused is told too: one connection, several acts. Its bytes are told once.
      for (const act of end.acts) {
        const mine = act === end.last
        tell(act.ruling, mine ? end.bytesOut : 0, mine ? end.bytesIn : 0, { address: act.address ?? address.toString(), port: act.port })
      }
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
      carrier?.close()
      carrier = undefined
    },
  }
}

/** What a connection was used for, or tried to be. `address` null: the one that was dialled. */
type Act = { ruling: Ruling; port: number; address: string | null }
type End = {
  /** The connection itself, then what a proxy was asked for on it, and what it tried beyond. */
  acts: Act[]
  /** The one that the bytes went to. */
  last: Act
  bytesOut: number
  bytesIn: number
}

/** Carries one connection to its end. */
function carry(client: Socket, route: Route, port: number, policy: Policy, firstBytesMs: number, carrier: () => Carrier): { cut(why: string): void; done: Promise<End> } {
  const acts: Act[] = [{ ruling: route, port, address: null }]
  let last = acts[0]!
  /** Bytes that went to the server before it was handed over. */
  let ahead = 0
  let flow: Carried | undefined
  /** What goes on once the client's first bytes are allowed and the server is there. */
  let go: ((flow: Carried) => void) | undefined
  let sent: (() => number) | undefined
  let broken = false
  let over = false
  let end: (end: End) => void
  const done = new Promise<End>(resolve => { end = resolve })

  const note = (why: string): void => { last.ruling = { ...last.ruling, reason: `${last.ruling.reason}; ${why}` } }
  const finish = (bytesOut: number, bytesIn: number): void => {
    if (over) return
    over = true
    clearTimeout(late)
    end({ acts, last, bytesOut: sent?.() ?? bytesOut + ahead, bytesIn })
    // Natively they were closed in order, or are to be reset.
    if (flow === undefined) reset(client)
    client.destroy()
    server.destroy()
  }
  const stop = (): void => {
    if (flow === undefined) finish(0, 0)
    else flow.cut()
  }
  const failed = (side: 'client' | 'server') => (error: { code?: string; errno?: number }): void => {
    if (over || broken) return
    broken = true
    note(side === 'client' ? `the client broke it off: ${error.code}` : `${flow !== undefined ? 'the server broke it off' : 'the server could not be reached'}: ${error.code}`)
    // What the server had sent before it broke off is the client's to read.
    if (side === 'server' && flow !== undefined) flow.sent(error)
    else stop()
  }

  client.setNoDelay(true)
  const server = connect({ host: route.target, port, allowHalfOpen: true, noDelay: true, keepAlive: true })
  // Nothing is read of it here, ever.
  server.pause()
  const late = setTimeout(() => server.destroy(Object.assign(new Error(), { code: 'ETIMEDOUT' })), CONNECT_MS)
  client.on('error', failed('client'))
  server.on('error', failed('server')).once('connect', () => {
    if (over) return
    clearTimeout(late)
    try {
      flow = carrier().carry(client, server)
    } catch (error) {
      note(`it could not be carried: ${(error as Error).message}`)
      stop()
      return
    }
    void flow.ended.then(({ bytesOut, bytesIn, brokenBy, code }) => {
      if (code !== null && !broken) note(brokenBy === null ? `it could not be carried: ${code}` : `the ${brokenBy} broke it off: ${code}`)
      finish(bytesOut, bytesIn)
    })
    go?.(flow)
  })

  const objected = ({ why, host, port: asked }: Objection): 'cut' | 'pass' => {
    note(why)
    if (policy.open(last.port) !== null) return 'pass'
    const { name, nameSource } = last.ruling
    acts.push({ ...last, port: asked ?? last.port, ruling: { decision: 'refused', ...(host === null ? { name, nameSource } : { name: printable(host), nameSource: 'host' }), reason: why } })
    stop()
    return 'cut'
  }
  const handOver = (flow: Carried, bytes: Buffer): void => {
    const parts = [bytes]
    // Read off in the same turn as the socket is let go: nothing can arrive between.
    for (let part = client.read() as Buffer | null; part !== null; part = client.read() as Buffer | null) parts.push(part)
    flow.send(Buffer.concat(parts))
    client.destroy()
    server.destroy()
  }
  const guard = (to: Route, flow: Carried, bytes: Buffer, answer: Answer | null): void => {
    if (over) return
    const before = ahead
    sent = () => Math.max(before, server.bytesWritten - server.writableLength)
    server.once('close', () => {
      const final = sent!()
      sent = () => final
    }).once('finish', () => flow.sent(null))
    const admit = ({ host, asks }: RequestHead): Objection | null => {
      if (!to.proxy || asks === undefined || asks.tunnel) return objectionTo(to, last.ruling, asks === undefined ? { host } : { host, asks })
      const act = actOn(asks)
      if (act.ruling.decision === 'refused') return { why: act.ruling.reason, host: asks.host, port: asks.port }
      last.ruling = { ...last.ruling, proxied: true }
      if (!acts.some(one => one.port === act.port && one.ruling.name === act.ruling.name && one.address === act.address)) acts.push(act)
      return null
    }
    const guarded = httpGuard({ admit, hidden: to.mapped, objected, answer })
    guarded.pipe(server)
    guarded.write(bytes)
    client.pipe(guarded)
  }
  const actOn = (asks: Asks): Act => {
    const ruling = ruleOnAsked(policy, asks)
    return { ruling, port: asks.port, address: ruling.name === null ? parseAddress(asks.host.replace(/^\[|\]$/g, ''))!.toString() : null }
  }

  /** Sends a request for a tunnel on, and rules on what goes into the tunnel as on a connection to its end. */
  const tunnel = (bytes: Buffer, asks: Asks, act: Act): void => {
    const head = bytes.indexOf('\r\n\r\n') + 4
    ahead = head
    last = act
    const { name } = act.ruling
    const inner: Route = { ...act.ruling, candidates: name === null ? [] : [name], target: '', byAddress: name === null, mapped: false, proxy: false }
    server.write(bytes.subarray(0, head), error => {
      if (!error) gate(client, firstBytesMs, (first, rest) => enter(inner, asks.port, first, rest), bytes.subarray(head))
    })
  }

  /** The first bytes of a connection, or of a tunnel in it. */
  const enter = (to: Route, at: number, first: FirstBytes, bytes: Buffer): void => {
    if (over) return
    const ruling = ruleOnFirstBytes(policy, to, at, first)
    if (ruling.decision === 'refused' && to !== route) {
      note(ruling.reason)
      acts.push({ ...last, ruling })
      return stop()
    }
    last.ruling = ruling
    if (ruling.decision === 'refused') return stop()
    const asks = first.kind === 'http' && (to.byAddress || to.proxy || first.asks?.tunnel === true) ? first.asks : undefined
    if (asks !== undefined) {
      const act = actOn(asks)
      if (act.ruling.decision === 'refused' || asks.tunnel || !to.proxy) acts.push(act)
      if (act.ruling.decision === 'refused') return stop()
      if (asks.tunnel) go = () => tunnel(bytes, asks, act)
    }
    if (asks?.tunnel !== true) go = flow => {
      // What was dialled by name can be asked for another name in each request of HTTP/1, and any proxy for other servers.
      const checked = first.kind === 'http' && (to.proxy || (to.byAddress ? policy.open(at) === null : objectionTo(to, ruling, first) === null))
      if (!checked) return handOver(flow, bytes)
      const read = readHead(bytes)
      if (read === null || 'why' in read || read.head.upgrade === 'none') return guard(to, flow, bytes, null)
      // A server that spoke first has not answered a request.
      void flow.watch().then(({ before, answer }) => guard(to, flow, bytes, before === 0 ? answer : null))
    }
    if (flow !== undefined) go!(flow)
  }
  gate(client, firstBytesMs, (first, bytes) => enter(route, port, first, bytes))

  return {
    done,
    cut(why) {
      note(why)
      stop()
    },
  }
}

/** Holds the client's bytes back until they say which server is meant; `pass` then gets them all. */
function gate(client: Socket, limitMs: number, pass: (first: FirstBytes, bytes: Buffer) => void, before: Buffer = Buffer.alloc(0)): void {
  let bytes = before
  let over = false
  let timer: NodeJS.Timeout | undefined
  const settle = (first: FirstBytes): void => {
    if (over) return
    over = true
    clearTimeout(timer)
    client.off('data', more).off('end', ended).off('close', drop).pause()
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
  if (before.length > 0) more(Buffer.alloc(0))
  else if (client.readableEnded) ended()
  else client.resume()
}

function place({ host, port }: Asks): string {
  return `${printable(host)}:${port}`
}

function list(names: readonly string[]): string {
  const shown = names.slice(0, 3).join(', ')
  return names.length === 0 ? 'no name' : names.length > 3 ? `${shown} and ${names.length - 3} more` : shown
}

/** A name that a client made up, fit for evidence. */
function printable(name: string): string {
  return name.slice(0, 253).replace(/[^!-~]/g, '?')
}
