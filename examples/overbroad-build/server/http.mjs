/** An answer as a thrown value: the quickest way out of a request that may not go on. */
export class Refusal extends Error {
  constructor(status, message, headers = {}) {
    super(message)
    this.status = status
    this.headers = headers
  }
}

/** GitHub's form of an answer. A null body has no content. */
export function reply(response, status, body, headers = {}) {
  if (body === null) {
    response.writeHead(status, headers).end()
    return
  }
  const raw = Buffer.isBuffer(body)
  response.writeHead(status, { 'content-type': raw ? 'application/vnd.github.raw+json; charset=utf-8' : 'application/json; charset=utf-8', 'x-github-media-type': 'github.v3', ...headers })
  response.end(raw ? body : JSON.stringify(body))
}

/**
 * Reads a JSON object of at most `limit` bytes; an empty body is an empty object. A larger one is read to its end
 * without being kept, or its sender would see a broken connection instead of the answer; a much larger one is cut off.
 */
export async function readJson(request, limit = 65_536) {
  const chunks = []
  let size = 0
  for await (const chunk of request) {
    size += chunk.length
    if (size <= limit) chunks.push(chunk)
    else if (size > 16 * limit) request.destroy()
  }
  if (size > limit) throw new Refusal(413, `Payload Too Large: more than ${limit} bytes`)
  if (size === 0) return {}
  let value
  try {
    value = JSON.parse(Buffer.concat(chunks).toString('utf8'))
  } catch {
    throw new Refusal(400, 'Problems parsing JSON')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Refusal(400, 'Body should be a JSON object')
  return value
}
