import { request, type Agent } from 'node:https'

const MAX_REPLY = 1024 * 1024

/**
 * The part of `fetch` that Octokit uses, over node:https, whose agent can hold certificates of its own (Node 20's fetch cannot).
 * Follows no redirect, reads at most 1 MiB and gives up `timeoutMs` after it began, whatever the server does meanwhile.
 */
export function httpsFetch(agent: Agent, timeoutMs: number): typeof fetch {
  return async (url, init = {}) => {
    const { method = 'GET', headers = {}, body } = init
    const signal = AbortSignal.timeout(timeoutMs)
    return new Promise<Response>((resolve, fail) => {
      // A call that is cut off by its time-out fails in several ways, depending on how far it had come.
      const reject = (error: Error): void => fail(signal.aborted ? new Error(`it did not answer within ${timeoutMs / 1000} s`) : error)
      const call = request(String(url), { method, headers: headers as Record<string, string>, agent, signal }, reply => {
        const parts: Buffer[] = []
        let length = 0
        reply.on('data', (part: Buffer) => {
          length += part.length
          if (length > MAX_REPLY) reply.destroy(new Error(`its reply is longer than ${MAX_REPLY} bytes`))
          else parts.push(part)
        })
        reply.once('error', reject)
        reply.once('end', () => {
          const status = reply.statusCode!
          const fields = Object.entries(reply.headers).flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)] as [string, string]]))
          // A Response takes no other status, and no body with these (fetch standard, 2.2.3).
          if (status < 200 || status > 599) reject(new Error(`it answered with status ${status}`))
          else resolve(new Response([204, 205, 304].includes(status) ? null : Buffer.concat(parts), { status, headers: fields }))
        })
      })
      call.once('error', reject)
      call.end(body as string | undefined)
    })
  }
}
