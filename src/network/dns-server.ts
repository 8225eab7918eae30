import type { Socket as Datagrams } from 'node:dgram'
import type { Server, Socket } from 'node:net'
import { reset } from './reset.ts'
import type { Resolver } from './resolver.ts'

/** One connection's share; a stub resolver opens one and closes it. */
const MAX_CONNECTIONS = 32
const IDLE_MS = 10_000
/** Datagrams being answered at once; a flood beyond it is dropped, as any full queue drops. */
const MAX_DATAGRAMS = 512

export function serveDatagrams(socket: Datagrams, resolver: Resolver): void {
  let underway = 0
  socket.on('message', (query, from) => {
    if (underway >= MAX_DATAGRAMS) return
    underway += 1
    void resolver.answer(query, 'udp').then(reply => {
      underway -= 1
      // The asker may be gone, or the cell; a lost answer is what UDP promises.
      if (reply !== null) try { socket.send(reply, from.port, from.address, () => {}) } catch { /* closed meanwhile */ }
    })
  })
}

/** DNS over TCP (RFC 7766): each message after its length; answered one by one, so that an asker that does not read waits for itself. */
export function serveDnsConnections(server: Server, resolver: Resolver): { close(): void } {
  const open = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    if (open.size >= MAX_CONNECTIONS) {
      reset(socket)
      return
    }
    open.add(socket)
    socket.setTimeout(IDLE_MS, () => socket.destroy())
    socket.on('error', () => {})
    socket.once('close', () => open.delete(socket))
    void converse(socket, resolver).catch(() => {}).finally(() => socket.destroy())
  })
  return {
    close() {
      for (const socket of open) socket.destroy()
    },
  }
}

async function converse(socket: Socket, resolver: Resolver): Promise<void> {
  let held = Buffer.alloc(0)
  for await (const chunk of socket) {
    held = Buffer.concat([held, chunk as Buffer])
    while (held.length >= 2 && held.length >= 2 + held.readUInt16BE(0)) {
      const end = 2 + held.readUInt16BE(0)
      const reply = await resolver.answer(held.subarray(2, end), 'tcp')
      held = held.subarray(end)
      if (reply === null) return
      const length = Buffer.alloc(2)
      length.writeUInt16BE(reply.length)
      await new Promise<void>((resolve, reject) => socket.write(Buffer.concat([length, reply]), error => (error ? reject(error) : resolve())))
    }
  }
  await new Promise<void>(resolve => socket.end(resolve))
}
