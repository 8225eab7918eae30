import { createHash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage } from 'node:http'

export const FEED_PATH = '/v1/feed'

/** One cell from a record on; or every cell that is written now, begins later, or was last written at or after `since` (ms since the epoch). */
export type FeedRequest = { cell: string; from: number } | { cell: null; since: number | null }

export type Refusal = { status: 400 | 401 | 403 | 404; reason: string }

/** Reads an upgrade request: the path, who asks, what for. Whether the cell exists is for the caller, who by then knows that it may tell. */
export function feedRequest(request: IncomingMessage, token: string): FeedRequest | Refusal {
  const address = request.url ?? ''
  const url = URL.canParse(address, 'http://feed') ? new URL(address, 'http://feed') : null
  if (url === null || url.pathname !== FEED_PATH) return { status: 404, reason: `the feed is at ${FEED_PATH}` }
  // Browsers always send it and nobody else does: no page of the web may use this host's token.
  if (request.headers.origin !== undefined) return { status: 403, reason: 'the feed is not for web pages: a request with an Origin header is refused' }
  const [, given] = /^Bearer ([\x21-\x7e]{1,256})$/.exec(request.headers.authorization ?? '') ?? []
  if (given === undefined) return { status: 401, reason: 'send the feed\'s token: Authorization: Bearer TOKEN' }
  if (!sameSecret(given, token)) return { status: 401, reason: 'this is not the feed\'s token' }
  return query(url.searchParams)
}

function query(params: URLSearchParams): FeedRequest | Refusal {
  for (const name of params.keys()) {
    if (!['cell', 'from', 'since'].includes(name)) return { status: 400, reason: `there is no parameter "${name}": cell, from, since` }
    if (params.getAll(name).length > 1) return { status: 400, reason: `"${name}" comes twice` }
  }
  const cell = params.get('cell')
  const from = params.get('from')
  const since = params.get('since')
  if (cell === null) {
    if (from !== null) return { status: 400, reason: '"from" counts the records of one cell: it needs "cell"' }
    const time = since === null ? null : Date.parse(since)
    if (Number.isNaN(time)) return { status: 400, reason: '"since" is not a time (RFC 3339)' }
    return { cell: null, since: time }
  }
  if (since !== null) return { status: 400, reason: '"since" is for every cell: with "cell" take "from"' }
  if (from !== null && !/^\d{1,15}$/.test(from)) return { status: 400, reason: '"from" is not a record\'s number' }
  return { cell, from: from === null ? 0 : Number(from) }
}

/** Compared as digests, so that neither content nor length shows in the time it takes. */
function sameSecret(given: string, token: string): boolean {
  const hash = (text: string): Buffer => createHash('sha256').update(text).digest()
  return timingSafeEqual(hash(given), hash(token))
}
