import { reply } from './http.mjs'

/** The most that one request may bring, bytes. */
const LIMIT = 1_048_576

/** Plays a place to which stolen things are sent: counts what comes and keeps none of it. */
export function collect(request, response) {
  let received = 0
  request.on('data', chunk => {
    received += chunk.length
    if (received > LIMIT) request.destroy()
  })
  request.on('end', () => reply(response, 200, { received }))
  request.on('error', () => response.destroy())
}
