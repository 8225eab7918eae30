import { createSocket } from 'node:dgram'
import { promises as dns } from 'node:dns'
import { readFileSync, statSync } from 'node:fs'
import { parseAddress, type Address } from '../authority/addresses.ts'
import { canonicalName } from './policy.ts'

export type Looked =
  | { outcome: 'found'; addresses: Address[]; ttl: number }
  | { outcome: 'no-data' }
  | { outcome: 'no-name' }
  | { outcome: 'failed'; why: string }

export type Upstream = {
  /** The host's own idea of a name: its hosts file, then the servers of its resolv.conf. Never rejects. */
  lookup(name: string, type: 'A' | 'AAAA'): Promise<Looked>
  /** The host could send to the IPv6 internet: asked of the kernel's routes, nothing is sent. */
  ipv6(): Promise<boolean>
  close(): void
}

const HOSTS_FILE = '/etc/hosts'
const HOSTS_TTL = 60
/** Any address of the global unicast range tells whether there is a default route. */
const ROUTE_PROBE = '2600::'

/**
 * c-ares and not getaddrinfo: a job that asks for names whose servers never answer would fill libuv's four threads, on which
 * the whole daemon's file work waits. So name services other than files and DNS, and the host's search list, do not count.
 */
export function hostUpstream(): Upstream {
  const resolver = new dns.Resolver({ timeout: 2000, tries: 3 })
  return {
    async lookup(name, type) {
      const listed = hostsFile().get(name)?.filter(one => one.kind() === (type === 'A' ? 'ipv4' : 'ipv6'))
      if (listed !== undefined) return listed.length === 0 ? { outcome: 'no-data' } : { outcome: 'found', addresses: listed, ttl: HOSTS_TTL }
      try {
        const answers = await (type === 'A' ? resolver.resolve4(name, { ttl: true }) : resolver.resolve6(name, { ttl: true }))
        const addresses = answers.map(one => parseAddress(one.address)).filter(one => one !== null)
        return addresses.length === 0 ? { outcome: 'no-data' } : { outcome: 'found', addresses, ttl: Math.min(...answers.map(one => one.ttl)) }
      } catch (error) {
        const code = (error as NodeJS.ErrnoException).code ?? 'unknown'
        if (code === 'ENODATA') return { outcome: 'no-data' }
        if (code === 'ENOTFOUND') return { outcome: 'no-name' }
        return { outcome: 'failed', why: `the host's resolver says ${code}` }
      }
    },
    ipv6: () => new Promise(resolve => {
      const socket = createSocket('udp6')
      const settle = (reached: boolean): void => {
        socket.close()
        resolve(reached)
      }
      socket.once('error', () => settle(false))
      socket.connect(53, ROUTE_PROBE, () => settle(true))
    }),
    close: () => resolver.cancel(),
  }
}

let read: { stamp: string; names: ReadonlyMap<string, Address[]> } | undefined

/** hosts(5), read again when it has changed. */
function hostsFile(): ReadonlyMap<string, Address[]> {
  const names = new Map<string, Address[]>()
  try {
    const { mtimeMs, size, ino } = statSync(HOSTS_FILE)
    const stamp = `${mtimeMs} ${size} ${ino}`
    if (read?.stamp === stamp) return read.names
    for (const line of readFileSync(HOSTS_FILE, 'utf8').split('\n')) {
      const [first, ...rest] = line.replace(/#.*$/, '').trim().split(/\s+/) as [string, ...string[]]
      const address = parseAddress(first)
      if (address === null) continue
      for (const name of rest.map(canonicalName)) names.set(name, [...(names.get(name) ?? []), address])
    }
    read = { stamp, names }
  } catch {
    // A host may have no such file: then DNS alone counts.
  }
  return names
}
