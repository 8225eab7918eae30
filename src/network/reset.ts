import type { Socket } from 'node:net'

/**
 * RST at once, so that nobody waits for a time-out. Node resets only after it has flushed and shut down what was written; while
 * that is under way it may lose the handle unclosed, and a peer that does not read would hold it for ever.
 */
export function reset(socket: Socket): void {
  if (socket.destroyed) return
  if (socket.connecting || socket.writableEnded || socket.writableLength > 0) socket.destroy()
  else socket.resetAndDestroy()
}
