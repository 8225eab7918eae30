import { closeSync, existsSync, mkdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import type { Logger } from 'pino'
import { isHostGrant } from '../authority/destination.ts'
import { inside } from '../authority/paths.ts'
import { refuseMissing } from '../cell/missing.ts'
import { dropChanges, openOverlays, pruneChanges } from '../cell/overlays.ts'
import { CELL_SLOTS, hostWrites, isCellId } from '../cell/plan.ts'
import { closePrograms, namesContent, openPrograms, type Program } from '../cell/programs.ts'
import { startCell, tlsLibraries } from '../cell/cell.ts'
import type { Cell, CellEnd, EndReason } from '../cell/follow.ts'
import { openCgroups } from '../cell/cgroup.ts'
import { heldLimits } from '../cell/limits.ts'
import type { CellHost } from '../cell/reserve.ts'
import { openSlots } from '../cell/slots.ts'
import { openSpares } from '../cell/spares.ts'
import type { Policy } from '../contract/policy.ts'
import { readRecentContract } from '../contract/recent.ts'
import { ttlSeconds, type Contract } from '../contract/schema.ts'
import { grantCredentials } from '../credentials/grant.ts'
import type { Issuers } from '../credentials/config.ts'
import { AmbitError } from '../errors.ts'
import { openProbes } from '../evidence/probes.ts'
import { removeOld, type Retention } from '../evidence/retention.ts'
import { loadOrCreateKey } from '../evidence/sign.ts'
import { EvidenceStore, type CellLog } from '../evidence/store.ts'
import { native, type CellExit, type PeerCredentials } from '../native.ts'
import { PACKAGE_ROOT, VERSION } from '../package.ts'
import { closeLater, runDescriptors } from './descriptors.ts'
import { openFeed } from './feed.ts'
import { phases } from './phases.ts'
import { nextSocket, takeFormer } from './former.ts'
import { bootMs, handedProfile, holdCell, objectsDigest } from './hold.ts'
import { endFormer, resume, type Resumed } from './recovery.ts'
import { clientMessage, encodeDaemonMessage, type DaemonMessage, type ResumeMessage, type RunMessage } from './protocol.ts'

export type DaemonOptions = {
  /** Evidence, key, token: mode 0700. */
  stateDir: string
  /** What jobs write to overlay workspaces waits there for their callers. */
  changesDir: string
  socketPath: string
  /** Group that may use the socket; null: root alone. */
  socketGroup: number | null
  feedPort: number
  issuers: Issuers
  /** Null: the host has none. */
  policy: Policy | null
  /** Another daemon may follow on the same state: cells whose contracts say so outlive this one. Otherwise it is private, and who started it takes its evidence. */
  followed: boolean
  /** How many cells are made ahead of being asked for. */
  spareCells: number
  /** How much evidence stays. */
  keepEvidence: Retention
  /** How long a cell of a former daemon waits for the client that was there, ms. */
  claimMs: number
  log: Logger
  /** The daemon can build no more cells: end it, and whoever supervises it starts another. */
  onFatal(error: unknown): void
}

export type Daemon = {
  feedPort: number
  /** Ends every cell with the reason daemon-stopped, then everything else. Resolves when nothing is left. */
  stop(): Promise<void>
}

/** How long after a cell was let go the next spare is made, ms: a short command has ended by then, and was not held up. */
const REFILL_MS = 20
/** How long the end of a former daemon's cell is remembered for its client, ms. */
const REMEMBER_MS = 10 * 60_000
/** How often it is looked for evidence that is too old, ms. */
const RETENTION_MS = 3_600_000
/** How long the daemon waits for its cells to be gone when it stops, ms. */
const STOP_MS = 10_000

/** The host daemon: owns cells, probes, credentials and evidence; answers the control socket; serves the feed. */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  if (process.getuid?.() !== 0) {
    throw new AmbitError('NOT_ROOT', { attempted: 'start the daemon', why: 'it builds cells and loads eBPF programs, which needs root', remedy: 'run it as root, for instance with sudo' })
  }
  const { log } = options
  const addon = native()
  mkdirSync(options.stateDir, { recursive: true, mode: 0o700 })
  if (addon.lockFile(join(options.stateDir, 'lock')) === null) {
    throw new AmbitError('DAEMON_FAILED', { attempted: `keep state in ${options.stateDir}`, why: 'another daemon does', remedy: 'end that one, or choose another directory with --state' })
  }
  const key = loadOrCreateKey(options.stateDir)
  writeFileSync(join(options.stateDir, 'public-key.pem'), key.publicPem)
  const store = new EvidenceStore(join(options.stateDir, 'evidence'), key)
  const release = join(PACKAGE_ROOT, 'build/Release')
  const objectDir = join(release, 'bpf')
  const exits = new Map<string, (exit: CellExit) => void>()
  /** Of former cells, before anybody asked. */
  const ahead = new Map<string, CellExit>()
  const former = await takeFormer(addon, options.stateDir, exit => {
    const told = exits.get(exit.id)
    if (told === undefined) ahead.set(exit.id, exit)
    else told(exit)
  }, log)
  const cgroups = openCgroups(undefined, former.shared?.place)
  cgroups.adopt(former.cells.map(({ record }) => record.id))
  const objects = objectsDigest(objectDir)
  const handedOn = former.shared?.objects === objects
  if (!handedOn) for (const fd of Object.values(former.kept)) closeSync(fd)
  const probes = openProbes({
    native: addon, objectDir, level: cgroups.level, parentCgroup: cgroups.parentV2, tls: tlsLibraries([process.execPath]),
    ...(handedOn && { inherited: { kept: former.kept, cells: former.cells.map(({ record, progress }) => ({ cgroupId: BigInt(record.cgroup.id), progress })) } }),
  })
  let stopping = false
  const lost = (): void => {
    if (!stopping) options.onFatal(new AmbitError('DAEMON_FAILED', { attempted: 'keep ambit-spawner running', why: 'it was killed or ended, and its cells with it', remedy: 'start the daemon again; the kernel\'s log may tell why (out of memory?)' }))
  }
  const spawner = new addon.Spawner(join(release, 'ambit-spawner'), join(release, 'ambit-init'), exit => exits.get(exit.id)?.(exit), lost, ...(options.followed ? [nextSocket(options.stateDir)] : []))
  const host: CellHost = {
    native: addon, spawner, cgroups, probes,
    exitOf: id => new Promise(resolve => {
      const known = ahead.get(id)
      if (known === undefined) exits.set(id, exit => { exits.delete(id); resolve(exit) })
      else resolve(known)
    }),
    forget: id => exits.delete(id),
  }
  const undo: (() => unknown)[] = [() => cgroups.close(), () => probes.close(), () => spawner.close(), () => store.close()]
  const opened = async <T>(open: () => T | Promise<T>, attempted: string, remedy: string): Promise<T> => {
    try {
      return await open()
    } catch (cause) {
      for (const step of undo.reverse()) await step()
      throw cause instanceof AmbitError ? cause : new AmbitError('DAEMON_FAILED', { attempted, why: (cause as Error).message, remedy, cause })
    }
  }
  const feed = await opened(() => openFeed({ host: '127.0.0.1', port: options.feedPort, tokenFile: join(options.stateDir, 'feed-token'), store, log }),
    `open the feed on port ${options.feedPort}`, 'choose another port with --feed-port, or 0 for a free one')
  undo.push(() => feed.close())

  const slots = openSlots(CELL_SLOTS)
  const spares = openSpares(host, slots, options.spareCells, error => log.warn({ err: error }, 'no spare cell'))
  const cells = new Map<number, Cell>()
  const running = new Set<Promise<void>>()
  /** Connections with a cell, built or being built, that went away meanwhile. */
  const gone = new Set<number>()
  const busy = new Set<number>()
  /** Cells of a former daemon, by id, until their client has heard of their end. */
  const claims = new Map<string, Resumed & { claimed: boolean }>()
  let closed = false

  const send = (connection: number, message: DaemonMessage): void => {
    if (!gone.has(connection) && !closed) control.send(connection, encodeDaemonMessage(message))
  }
  const fail = (connection: number, error: unknown): void => {
    const known = error instanceof AmbitError ? error : new AmbitError('INTERNAL', { attempted: 'serve the request', why: String((error as Error)?.message ?? error), remedy: 'this is a defect in ambit: the daemon\'s log has the details', cause: error })
    if (known.code === 'INTERNAL') log.error({ err: error }, 'request failed')
    send(connection, { type: 'error', error: { code: known.code, ...known.detail }, exitCode: known.exitCode })
  }

  const failedToBuild = (error: unknown): unknown => {
    if (spawnerGone(error)) options.onFatal(error)
    return error
  }

  const run = async (connection: number, peer: PeerCredentials, message: RunMessage, fds: number[]): Promise<void> => {
    if (stopping) throw new AmbitError('CELL_FAILED', { attempted: 'build the cell', why: 'the daemon is stopping', remedy: 'try again later' })
    const clock = phases()
    const { stdio, workspace, evidence } = runDescriptors(addon, fds, message.evidence, own)
    const contract: Contract = readRecentContract(message.contract.text, message.contract.file, handedProfile(message.contract))
    options.policy?.admit(contract, peer, message.contract)
    const owner = { uid: peer.uid, gid: peer.gid }
    refuseOwn(contract, own)
    refuseMissing(contract, owner, { workspace, native: addon, ...message.contract })
    const held = heldLimits(contract, cgroups, contract.spec.workspace === 'none' ? null : workspace)
    clock.mark('admitted')
    const reserved = await spares.take(peer.uid, held.limits).catch((error: unknown) => { throw failedToBuild(error) })
    clock.mark('reserved')
    const { id } = reserved
    const lasts = options.followed && contract.spec.onDaemonLoss === 'continue'
    let letGo = (): void => {}
    let programs: Program[] = []
    try {
      const released = async (error: unknown): Promise<never> => {
        await reserved.release()
        throw error
      }
      if (namesContent(contract)) programs = await openPrograms(contract, owner, message.contract).catch(released)
      const overlays = await openOverlays(addon, options.changesDir, { id, slot: reserved.slot, contract, owner, workspace, own }).catch(released)
      const credentials = await grantCredentials(contract, options.issuers, message).catch(async (error: unknown) => {
        await overlays.discard()
        return released(error)
      })
      let begun: CellLog | undefined
      let cell: Cell
      try {
        cell = await startCell(host, reserved, {
          contract, argv: message.argv, env: credentials.env, stdio, workspace,
          owner, handed: credentials.handed, credentials: credentials.events, credentialHooks: credentials.hooks,
          apiHosts: credentials.apiHosts, overlays, programs, limitEnforcers: held.enforcers, lasts,
        }, () => begun = store.begin(id), credentials.revoke, clock.mark, started => {
          if (lasts) letGo = holdCell(host, reserved, {
            id, slot: reserved.slot, contract: message.contract.text, profiles: message.contract.profiles ?? {}, uid: peer.uid, gid: peer.gid, cgroup: { ...reserved.cgroup, id: String(reserved.cgroup.id) },
            started, deadline: bootMs() + ttlSeconds(contract.spec.ttl) * 1000, apis: credentials.apiHosts.length > 0, tokens: credentials.tokens,
          }, { place: cgroups.place, objects }, overlays.workspace === null ? null : workspace)
        })
      } catch (error) {
        await credentials.revoke()
        if (begun !== undefined) await store.abandon(begun)
        await overlays.discard()
        throw failedToBuild(error)
      } finally {
        closePrograms(programs.splice(0))
      }
      const cellLog = begun!
      // The command has its own: who reads its output reads the end when the command's processes have closed it.
      closeLater(fds.splice(0, stdio.length))
      cells.set(connection, cell)
      send(connection, { type: 'started', cell: id, ...(lasts && { lasts: 'yes' }) })
      log.info({ cell: id, contract: contract.metadata.name, uid: peer.uid }, 'cell started')
      if (gone.has(connection)) cell.kill('client-gone')
      let changes: string | null = null
      const sealAndExport = async (): Promise<void> => {
        await store.finish(cellLog, contract)
        if (evidence === undefined) return
        try {
          await store.exportTo(id, evidence, { uid: peer.uid, gid: peer.gid })
        } catch (cause) {
          // Whoever asked for evidence must not take a run without it for a good one.
          throw new AmbitError('EVIDENCE_UNREADABLE', {
            attempted: 'hand the evidence over', why: (cause as Error).message.split('\n')[0]!,
            remedy: options.followed ? `the command has ended; its evidence stays at the daemon: ${store.pathOf(id)}` : 'the command has ended; its evidence is kept', cause,
          })
        }
      }
      const close = async (): Promise<void> => {
        // Nothing that a job wrote keeps its evidence from being sealed.
        try {
          changes = await overlays.keep()
        } finally {
          await sealAndExport()
        }
      }
      spares.refill(REFILL_MS)
      const tell = (end: CellEnd): void => {
        clock.mark('ended')
        send(connection, { type: 'ended', cell: id, code: end.code, signal: end.signal, reason: end.reason, evidence: store.pathOf(id), notice: end.notice, changes })
      }
      // Who did not ask for the evidence is not held up by its sealing.
      const early = evidence === undefined && overlays.workspace === null
      if (early) void cell.exited.then(tell, () => {})
      let end
      try {
        end = await cell.ended
      } catch (error) {
        await close()
        throw error
      }
      await close()
      clock.mark('sealed')
      log.info({ cell: id, ...end }, 'cell ended')
      log.debug({ cell: id, phases: clock.told() }, 'where its time went, in microseconds')
      if (!early) tell(end)
    } finally {
      closePrograms(programs)
      letGo()
      spares.give(reserved.slot)
      spares.refill(0)
      cells.delete(connection)
    }
  }

  const goOn = async (connection: number, peer: PeerCredentials, message: ResumeMessage, fds: number[]): Promise<void> => {
    const claim = claims.get(message.cell)
    if (claim === undefined || (peer.uid !== 0 && peer.uid !== claim.uid) || claim.claimed) {
      throw new AmbitError('FORBIDDEN', { attempted: `go on with cell ${message.cell}`, why: 'no such cell of yours waits here', remedy: 'it ended with the former daemon, or its evidence could not be gone on with: the daemon\'s log tells more' })
    }
    claim.claimed = true
    const { cell, done } = claim
    cells.set(connection, cell)
    try {
      send(connection, { type: 'started', cell: cell.id, lasts: 'yes' })
      if (gone.has(connection)) cell.kill('client-gone')
      const end = await done
      if (message.evidence) await store.exportTo(cell.id, fds[0] ?? -1, { uid: peer.uid, gid: peer.gid })
      send(connection, { type: 'ended', cell: cell.id, code: end.code, signal: end.signal, reason: end.reason, evidence: store.pathOf(cell.id), notice: end.notice, changes: end.changes })
    } finally {
      cells.delete(connection)
      claims.delete(cell.id)
    }
  }

  const receive = (connection: number, peer: PeerCredentials, packet: Buffer, fds: number[]): void => {
    const close = (): void => closeLater(fds)
    let message
    try {
      if (isCellId(peer.uid)) throw new AmbitError('FORBIDDEN', { attempted: 'answer the request', why: 'it comes from a cell', remedy: 'a job can ask the daemon for nothing' })
      message = clientMessage(packet)
    } catch (error) {
      close()
      fail(connection, error)
      return
    }
    if (message.op === 'run' || message.op === 'resume') {
      if (busy.has(connection)) {
        close()
        fail(connection, new AmbitError('USAGE', { attempted: 'run a cell', why: 'this connection has one already', remedy: 'use the ambit command to talk to the daemon' }))
        return
      }
      busy.add(connection)
      const work = (message.op === 'run' ? run(connection, peer, message, fds) : goOn(connection, peer, message, fds)).catch(error => fail(connection, error)).finally(() => {
        close()
        busy.delete(connection)
        gone.delete(connection)
      })
      running.add(work)
      void work.finally(() => running.delete(work))
      return
    }
    close()
    if (message.op === 'signal') cells.get(connection)?.signal(message.signal)
    if (message.op === 'status') send(connection, { type: 'status', version: VERSION, cells: cells.size, feedPort: feed.port })
    if (message.op === 'stop') {
      if (peer.uid === 0) process.kill(process.pid, 'SIGTERM')
      else fail(connection, new AmbitError('FORBIDDEN', { attempted: 'stop the daemon', why: 'only root may', remedy: 'ask as root' }))
    }
  }
  const left = (connection: number): void => {
    if (busy.has(connection)) gone.add(connection)
    cells.get(connection)?.kill('client-gone')
  }
  const served = new Set(former.cells)
  const leave = ({ spawner: one, path }: (typeof former.spawners)[number]): void => {
    one.close()
    rmSync(path, { force: true })
  }
  /** A spawner without cells of its own time waits for nobody. */
  const leaveServed = (): void => {
    for (const other of former.spawners) if (![...served].some(({ spawner: of }) => of === other.spawner)) leave(other)
  }
  for (const one of former.cells) {
    const { record } = one
    slots.move(record.slot, record.uid)
    try {
      const resumed = await resume(host, one, { store, issuers: options.issuers, changesDir: options.changesDir, log })
      claims.set(record.id, { ...resumed, claimed: false })
      log.info({ cell: record.id, ended: one.exit !== null }, 'cell taken back')
      const unclaimed = setTimeout(() => { if (claims.get(record.id)?.claimed === false) resumed.cell.kill('client-gone') }, options.claimMs).unref()
      const over = resumed.done.then(() => {}, () => {}).then(() => {
        clearTimeout(unclaimed)
        slots.give(record.slot)
        running.delete(over)
        served.delete(one)
        leaveServed()
        setTimeout(() => claims.delete(record.id), REMEMBER_MS).unref()
      })
      running.add(over)
    } catch (error) {
      log.error({ err: error, cell: record.id }, 'a former daemon\'s cell could not be taken back')
      served.delete(one)
      // Its ids are another's only once nothing has them any more.
      await endFormer(host, one, options.issuers).then(() => slots.give(record.slot), (cause: unknown) => log.error({ err: cause, cell: record.id }, 'it could not be ended either: its ids stay taken'))
    }
  }
  leaveServed()

  mkdirSync(dirname(options.socketPath), { recursive: true, mode: 0o755 })
  const untidy = (path: string, error: unknown): void => log.warn({ path, err: error }, 'changes that nobody came back for could not be removed')
  for (const id of store.ids()) if (!claims.has(id) && store.view(id)?.state === 'unsealed') await dropChanges(options.changesDir, id).catch((error: unknown) => untidy(join(options.changesDir, id), error))
  await pruneChanges(options.changesDir, untidy)
  const tidy = (): void => {
    void removeOld(store, options.keepEvidence, Date.now(), (cell, error) => log.warn({ cell, err: error }, 'old evidence could not be removed'))
      .then(removed => { for (const one of removed) log.info(one, 'old evidence removed') }, (error: unknown) => log.error({ err: error }, 'old evidence could not be looked for'))
  }
  const tidying = options.keepEvidence.ageMs === null && options.keepEvidence.bytes === null ? null : setInterval(tidy, RETENTION_MS).unref()
  if (tidying !== null) tidy()
  const own = [...new Set([options.stateDir, dirname(options.socketPath), options.changesDir])].map(folder => (existsSync(folder) ? realpathSync(folder) : resolve(folder)))
  const control = await opened(() => new addon.Control(options.socketPath, options.socketGroup === null ? 0o600 : 0o660, options.socketGroup ?? 0, receive, left),
    `open the control socket ${options.socketPath}`, 'another daemon may answer there: end it, or choose another path with --socket')
  // Whoever waits for the daemon reads this file; it appears whole or not at all.
  const ready = join(options.stateDir, 'daemon.json')
  writeFileSync(ready, JSON.stringify({ pid: process.pid, version: VERSION, socket: options.socketPath, feedPort: feed.port }), { mode: 0o600 })
  log.info({ socket: options.socketPath, feedPort: feed.port, hooks: probes.hooks().map(hook => `${hook.name}: ${hook.state}`) }, 'ready')

  const endAll = (reason: EndReason): void => {
    for (const cell of cells.values()) cell.kill(reason)
    for (const { cell } of claims.values()) cell.kill(reason)
  }
  return {
    feedPort: feed.port,
    async stop() {
      if (stopping) return
      stopping = true
      if (tidying !== null) clearInterval(tidying)
      endAll('daemon-stopped')
      await Promise.race([Promise.allSettled(running), new Promise(resolve => setTimeout(resolve, STOP_MS).unref())])
      await spares.close()
      closed = true
      control.close()
      for (const one of former.spawners) leave(one)
      spawner.close()
      await feed.close()
      probes.close()
      await cgroups.close()
      store.close()
      rmSync(ready, { force: true })
      if (options.followed) rmSync(nextSocket(options.stateDir), { force: true })
    },
  }
}

/** A tree that a job may write, and an image, is shown with its owner's rights: never one that holds the daemon's key. */
function refuseOwn(contract: Contract, own: readonly string[]): void {
  for (const grant of contract.spec.authority.network) {
    if (!isHostGrant(grant) && own.some(folder => inside(grant.unix, folder))) throw new AmbitError('FORBIDDEN', { attempted: 'build the cell', why: `the contract grants the socket ${grant.unix}, and the daemon keeps its own there`, remedy: 'take the grant out of the contract' })
  }
  const { rootfs } = contract.spec
  for (const path of [...hostWrites(contract), ...(rootfs === undefined ? [] : [rootfs])]) {
    const held = own.find(folder => inside(folder, path) || inside(path, folder))
    if (held !== undefined) throw new AmbitError('FORBIDDEN', { attempted: 'build the cell', why: `the contract ${path === rootfs ? 'names' : 'grants writing to'} ${path}, and the daemon keeps its own in ${held}`, remedy: 'grant a directory that has nothing of the daemon in it' })
  }
}

/** The spawner's socket is closed: it was killed, and took its cells along. */
function spawnerGone(error: unknown): boolean {
  const { cause } = error as { cause?: { code?: string; errno?: number } }
  return cause?.code === 'NATIVE' && [constants.errno.EPIPE, constants.errno.ECHILD, ESHUTDOWN].includes(cause.errno ?? 0)
}

/** Node's list of errors lacks it (include/uapi/asm-generic/errno.h). */
const ESHUTDOWN = 108

