import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { readPolicy } from '../../src/contract/policy.ts'
import { readContract } from '../../src/contract/read.ts'
import { AmbitError } from '../../src/errors.ts'

// Good contracts, changed at random. `npm run test:fuzz` does it for AMBIT_FUZZ_SECONDS; AMBIT_FUZZ_SEED repeats a run.
const seconds = Number(process.env['AMBIT_FUZZ_SECONDS'] ?? 5)
const seed = Number(process.env['AMBIT_FUZZ_SEED'] ?? Date.now() % 0x7fff_ffff)
const folder = join(import.meta.dirname, '../../examples/contracts')
const GOOD = [
  ...readdirSync(folder).map(name => readFileSync(join(folder, name), 'utf8')),
  'apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: enforce\n  ttl: 1m\n  authority:\n    syscall: { profile: build, deny: [kill, { name: socket, args: [{ index: 0, op: eq, value: AF_NETLINK }] }] }\n',
  'apiVersion: ambit/v1\nkind: Policy\nrules:\n  - name: all\n    for: { users: [root] }\n    bounds: { ttl: 1h, network: [{ host: "*", port: 443 }] }\n',
]
const PIECES = ['- ', ': ', '{', '}', '[', ']', '"', '\'', '#', '&a ', '*a', '!!binary ', '|\n', '>-\n', '? ', '---\n', '%YAML 1.1\n', '\t', '\0', '\u2028', '\ud800', '__proto__: ', '<<: ', 'null', '~', '1e999', '0x', '-0', 'oci:x', '/..', '*', '2000000000000', 'args: [{ index: 9 }]']
type Edit = { at: number; drop: number; put: string; copy: number }
const edit: fc.Arbitrary<Edit> = fc.record({ at: fc.double({ min: 0, max: 1, noNaN: true }), drop: fc.nat(12), put: fc.oneof(fc.constantFrom(...PIECES), fc.string({ maxLength: 6, unit: 'binary' })), copy: fc.nat(40) })
const text = fc.tuple(fc.constantFrom(...GOOD), fc.array(edit, { maxLength: 6 })).map(([good, edits]) => edits.reduce((now, { at, drop, put, copy }) => {
  const place = Math.floor(at * now.length)
  return now.slice(0, place) + put + now.slice(place, place + copy) + now.slice(place + drop)
}, good))
const profile = fc.oneof(fc.json(), fc.constant('{"defaultAction":"SCMP_ACT_ALLOW"}'), fc.string())

t.test(`whatever is read as a contract or a policy is one, or an error that says where (seed ${seed})`, async t => {
  let [read, refused] = [0, 0]
  const result = fc.check(fc.property(text, profile, (given, oci) => {
    for (const reader of [() => readContract(given, 'c.yaml', () => oci), () => readPolicy(given, 'p.yaml')]) {
      try {
        reader()
        read++
      } catch (error) {
        if (!(error instanceof AmbitError) || !['CONTRACT_INVALID', 'POLICY_INVALID'].includes(error.code)) throw error
        if (error.detail.where?.line === undefined) throw new Error(`no line: ${error.message}`)
        refused++
      }
    }
  }), { seed, numRuns: 1_000_000, interruptAfterTimeLimit: seconds * 1000, markInterruptAsFailure: false })
  t.notOk(result.failed, fc.defaultReportMessage(result) ?? '')
  t.ok(read > 10 && refused > 10, `${read} read, ${refused} refused`)
  t.comment(`seed ${seed}: ${result.numRuns} texts, ${read} read, ${refused} refused`)
})
