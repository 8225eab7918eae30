import { z } from 'zod'
import type { Coverage } from '../evidence/coverage.ts'
import type { ProcessRef } from '../evidence/records.ts'
import type { AuthorityKind, Comparison } from './kind.ts'
import { pathUnknown } from './paths.ts'
import { repeated, who } from './words.ts'

const schema = z.array(z.strictObject({
  name: z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, 'must be a name of letters, digits and underscores').describe('as the issuers file knows the secret'),
  delivery: z.enum(['environment', 'file']).default('environment').describe('environment: a variable of that name; file: /run/ambit/secrets/NAME, whose reading can be observed'),
})).max(2_000, { error: 'holds more than 2000 entries', abort: true }).superRefine((list, context) => {
  const twice = repeated(list.map(one => one.name))
  if (twice !== undefined) context.addIssue({ code: 'custom', message: `${twice} is listed twice`, path: [list.map(one => one.name).lastIndexOf(twice), 'name'], input: list })
}).default([]).describe('secrets that are handed to the command')

type Declared = z.infer<typeof schema>
type Used = {
  read: Map<string, { count: number; first: ProcessRef }>
  /** A file was opened, and nobody knows which. */
  unknown: boolean
}

const FOLDER = '/run/ambit/secrets/'

function gapOf(used: Used, coverage: Coverage): string | undefined {
  return coverage.gaps('file')[0] ?? (used.unknown ? 'a file was opened under a path that could not be read' : undefined)
}

function unused(one: Declared[number], used: Used, coverage: Coverage): boolean {
  return one.delivery === 'file' && !used.read.has(one.name) && gapOf(used, coverage) === undefined
}

/**
 * Secrets handed to the job. That one was delivered is not that it was used: of a file the reading is seen, of a variable
 * nothing is, so it stays `unobservable` and no evidence ever narrows it away. A job read from a workflow gets variables, since
 * that is what its steps expect; who wants proof changes the contract to `delivery: file`.
 */
export const secret: AuthorityKind<Declared, Used> = {
  name: 'secret',
  schema,
  // The platform's own token is no secret that somebody keeps: the github kind has it.
  fromJob: job => [...new Set(job.secrets)].filter(name => name !== 'GITHUB_TOKEN').map(name => ({ name, delivery: 'environment' })),
  nothingUsed: () => ({ read: new Map(), unknown: false }),

  observe(event, used) {
    if (event.type !== 'file' || event.access === 'write') return
    if (event.source === 'argument' || pathUnknown(event.path)) used.unknown = true
    if (event.source === 'name' || !event.path.startsWith(FOLDER)) return
    const name = event.path.slice(FOLDER.length)
    const known = used.read.get(name)
    if (known === undefined) used.read.set(name, { count: 1, first: event.process })
    else known.count++
  },

  compare(declared, used, coverage) {
    return declared.map((one): Comparison => {
      const grant = `${one.name} (${one.delivery})`
      const seen = used.read.get(one.name)
      if (one.delivery === 'environment') return { grant, outcome: 'unobservable', declared: true, count: null, proof: 'handed over as a variable; reading it leaves no trace' }
      if (seen !== undefined) return { grant, outcome: 'used', declared: true, count: seen.count, proof: `its file was read, first by ${who(seen.first)}` }
      return unused(one, used, coverage)
        ? { grant, outcome: 'unused', declared: true, count: 0, proof: 'its file was never opened' }
        : { grant, outcome: 'unobservable', declared: true, count: 0, proof: gapOf(used, coverage)! }
    })
  },

  narrow: (declared, used, coverage) => declared.filter(one => !unused(one, used, coverage)),
  within: (inner, outer) => inner.every(one => outer.some(other => other.name === one.name && other.delivery === one.delivery)),
  toJob: narrowed => ({ secrets: narrowed.map(one => one.name) }),
}
