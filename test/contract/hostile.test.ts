import t from 'tap'
import { parseDocument } from 'yaml'
import { NAMES } from '../../src/authority/syscall-profiles.ts'
import { readContract } from '../../src/contract/read.ts'
import { contractSchema, ENTRIES_MAX } from '../../src/contract/schema.ts'
import { AmbitError } from '../../src/errors.ts'

const HEAD = 'apiVersion: ambit/v1\nkind: Cell\nmetadata: { name: x }\nspec:\n  mode: enforce\n  ttl: 1m\n'
const BYTES = 256 * 1024

/** As many units as the largest text holds. */
function filled(head: string, unit: (index: number) => string, tail = ''): string {
  let text = head
  for (let index = 0; ; index++) {
    const next = unit(index)
    if (text.length + next.length + tail.length > BYTES) return text + tail
    text += next
  }
}

function many(count: number, unit: (index: number) => string): string {
  return Array.from({ length: count }, (_, index) => unit(index)).join('')
}

function outcome(text: string): string {
  t.ok(Buffer.byteLength(text) <= BYTES, 'it is not refused for its length alone')
  try {
    readContract(text, 'c.yaml')
    return 'read'
  } catch (error) {
    if (error instanceof AmbitError && error.code === 'CONTRACT_INVALID') return error.message
    throw error
  }
}

const authority = (inner: string): string => `${HEAD}  authority: { ${inner} }\n`
const TOO_MUCH = /more than 120000 words and marks/
const TOO_DEEP = /nested too deeply: more than 32/
const TOO_MANY_BLANKS = /too many empty lines or comments/

t.test('a text that would make the YAML library work for seconds ends before that', async t => {
  let compared = 0
  parseDocument(many(1_000, index => `k${index}: 1\n`), { uniqueKeys: () => compared++ < 0 })
  t.equal(compared, 1_000 * 999 / 2, 'the library compares each key with each: the attack is real')

  const texts: [string, string, RegExp][] = [
    ['keys', filled('', index => `k${index}: 1\n`), TOO_MUCH],
    ['long keys', filled('', index => `k${index}${'x'.repeat(40)}: 1\n`), /2001:1: .*the document holds 5\d\d\d entries: 2000 is the most/],
    ['keys in a flow map', filled(`${HEAD}  x: {`, index => `k${index}: 1,`, '}\n'), TOO_MUCH],
    ['the same key', filled('', () => 'a: 1\n'), TOO_MUCH],
    ['the same long key', filled('', () => `${'a'.repeat(40)}: 1\n`), /c\.yaml:2:1: .*map keys must be unique/],
    ['open lists', '['.repeat(BYTES), /1:34: .*nested too deeply/],
    ['closed lists', '['.repeat(BYTES / 2) + ']'.repeat(BYTES / 2), TOO_DEEP],
    ['open maps', '{a: '.repeat(BYTES / 4), TOO_DEEP],
    ['maps in one line', 'a: '.repeat(80_000), TOO_DEEP],
    ['items in one line', '- '.repeat(BYTES / 2), TOO_DEEP],
    ['indented items', many(700, index => `${' '.repeat(index)}-\n`), TOO_DEEP],
    ['indented maps', many(700, index => `${' '.repeat(index)}a:\n`), TOO_DEEP],
    ['explicit keys', '? '.repeat(BYTES / 2), TOO_DEEP],
    ['wide and not too deep', filled('[', () => `${'['.repeat(30)}${']'.repeat(30)},`, ']'), TOO_MUCH],
    ['comments', filled(HEAD, () => '# c\n'), TOO_MANY_BLANKS],
    ['empty lines', '\n'.repeat(BYTES), TOO_MANY_BLANKS],
    ['comments behind empty lines', `a: |4\n     x\n${'\n'.repeat(130_000)}${'  #\n'.repeat(30_000)}`, TOO_MANY_BLANKS],
    ['comments between items', filled('', () => '#\n- a\n'), TOO_MUCH],
    ['anchors', '&a '.repeat(BYTES / 3), TOO_MANY_BLANKS],
    ['faults', filled('a: 1\n', () => 'b\n'), TOO_MUCH],
    ['faults in a flow list', `[${','.repeat(BYTES - 2)}]`, TOO_MUCH],
    ['faults in a text', `a: "${'\\q'.repeat(BYTES / 2 - 10)}"`, /1:5: .*invalid escape sequence/],
    ['documents', filled('', () => '---\n'), TOO_MUCH],
    ['directives', filled('', index => `%TAG !${index}! x\n`), /directives-end/],
    ['a plain text', `a: ${'x'.repeat(BYTES - 3)}`, /a text of 262141 characters/],
    ['a plain text in many lines', `a: x\n${' y\n'.repeat(BYTES / 3 - 3)}`, /a text of \d+ characters/],
    ['digits', `a: ${'1'.repeat(BYTES - 3)}`, /the key "a" is not known/],
    ['a long line of blanks', `a: x\n${' '.repeat(BYTES / 2)}${'y'.repeat(BYTES / 2 - 10)}\n`, /a text of/],
    ['a block of lines', `a: |\n${' y\n'.repeat(BYTES / 3 - 5)}`, /a text of/],
    ['a long key', `${'k'.repeat(BYTES - 10)}: 1`, /at most 1024 chars/],
    ['a long key in a flow map', `{"${'k'.repeat(BYTES - 10)}": 1}`, /a text of/],
    ['lists below a long key', `{"${'k'.repeat(4_000)}": [${`[${'[],'.repeat(1_000)}],`.repeat(20)}]}`, /is not known/],
    ['NULs', '\0'.repeat(BYTES), /a text of|expected object/],
  ]
  for (const [name, text, why] of texts) t.match(outcome(text), why, name)
})

t.test('no list and no map of a contract grows without limit', async t => {
  const texts: [string, string, RegExp][] = [
    ['write', filled(`${HEAD}  authority:\n    filesystem:\n      write:\n`, index => `        - /a${index}\n`), /2010:11: .*spec\.authority\.filesystem\.write holds 1\d{4} entries: 2000 is the most/],
    ['set', filled(`${HEAD}  environment:\n    set:\n`, index => `      K${index}: "1"\n`), /2009:7: .*spec\.environment\.set holds/],
    ['repositories', authority(`github: { repositories: [${many(5_000, index => `o/${index},`)}] }`), /github\.repositories holds 5000/],
    ['permissions', authority(`github: { repositories: [o/r], permissions: {${many(5_000, index => `p${index}: read,`)}} }`), /github\.permissions holds 5000/],
    ['unknown calls', authority(`syscall: { allow: [${many(2_000, index => `${String(index).padStart(64, 'a')},`)}] }`), /7:35: .*syscall\.allow: 2000 entries, from this one on/],
    ['a call many times', authority(`syscall: { allow: [${'read,'.repeat(2_000)}] }`), /7:40: .*1999 entries, from this one on/],
    ['a URL of slashes', authority(`github: { apiUrl: "https://a/${'/'.repeat(200_000)}x" }`), /7:34: .*a text of 200011 characters.* only the value of a variable/],
    ['a URL of many letters', authority(`github: { apiUrl: "https://${Array.from({ length: 20_000 }, (_, index) => String.fromCodePoint(0x4e00 + index)).join('')}" }`), /a text of 20008 characters/],
  ]
  for (const [name, text, why] of texts) t.match(outcome(text), why, name)

  t.match(outcome(authority(`syscall: { allow: [${[...NAMES].join(', ')}] }`)), /^read$/, 'all calls at once are no attack')
  t.match(outcome(authority('syscall: { allow: [reed, read, read] }')), /7:35: .*"reed" is no system call.*did you mean read\?/, 'nor is a slip')
  const long = `${HEAD}  environment: { set: { A: "${'x'.repeat(131_071)}" } }\n`
  t.match(outcome(long), /^read$/, 'a variable may be as long as the kernel lets it')
  t.match(outcome(long.replace('x"', 'xx"')), /longer than the kernel lets/)
})

t.test('each list takes 2000 entries and not one more', async t => {
  const base = contractSchema.parse({ apiVersion: 'ambit/v1', kind: 'Cell', metadata: { name: 'x' }, spec: { mode: 'enforce', ttl: '1m' } })
  const lists: Record<string, (count: number) => object> = {
    pass: count => ({ environment: { pass: Array.from({ length: count }, (_, index) => `A${index}`) } }),
    set: count => ({ environment: { set: Object.fromEntries(Array.from({ length: count }, (_, index) => [`A${index}`, ''])) } }),
    hosts: count => ({ hosts: Object.fromEntries(Array.from({ length: count }, (_, index) => [`a${index}.test`, '::1'])) }),
    read: count => ({ authority: { filesystem: { read: Array.from({ length: count }, (_, index) => `/a${index}`) } } }),
    write: count => ({ authority: { filesystem: { write: Array.from({ length: count }, (_, index) => `/a${index}`) } } }),
    exec: count => ({ authority: { exec: Array.from({ length: count }, (_, index) => `/a${index}`) } }),
    network: count => ({ authority: { network: Array.from({ length: count }, (_, index) => ({ host: `a${index}`, port: 1 })) } }),
    secret: count => ({ authority: { secret: Array.from({ length: count }, (_, index) => ({ name: `A${index}` })) } }),
  }
  for (const [name, list] of Object.entries(lists)) {
    const of = (count: number): object => ({ ...base, spec: { ...base.spec, ...list(count) } })
    t.ok(contractSchema.safeParse(of(ENTRIES_MAX)).success, name)
    const refused = contractSchema.safeParse(of(ENTRIES_MAX + 1))
    t.same(refused.error?.issues.map(issue => issue.message), [`holds more than ${ENTRIES_MAX} entries`], `${name}, by the schema`)
    t.match(outcome(JSON.stringify(of(ENTRIES_MAX + 1))), new RegExp(`${name} holds 2001 entries: 2000 is the most`), `${name}, by the reader`)
  }

  const spec = { ...base.spec, environment: { pass: [] as string[] }, authority: {} }
  for (const list of Object.values(lists)) {
    const part = list(ENTRIES_MAX) as { environment?: object; authority?: object; hosts?: object }
    Object.assign(spec, { ...part, environment: { ...spec.environment, ...part.environment }, authority: { ...spec.authority, ...part.authority } })
  }
  const full = readContract(JSON.stringify({ ...base, spec }), 'c.json')
  t.same(readContract(JSON.stringify(full), 'c.json'), full, 'a contract with all lists full reads back, with its defaults written out')
})

t.test('of many faults the first are told and the others counted', async t => {
  t.match(outcome(`${HEAD}${many(1_000, index => `  k${index}: 1\n`)}`), /c\.yaml:7:3: .*the key "k0" is not known in spec; also line 8: .*"k1".*; line 9: .*; line 10: .*"k3".*; and 996 more/)
  t.match(outcome(authority(`exec: [${many(1_500, index => `a${index},`)}]`)), /exec\[0\]: must be an absolute path.*exec\[3\].*and 1496 more/)
  t.match(outcome(`a: 1\nb: { c: 1, d: { e: 1 }, c: 2 }\na: 2\n`), /c\.yaml:2:25: .*map keys must be unique/, 'a key that is there twice is told where it is')
  t.match(outcome('a: 1\n"a": 2\n'), /c\.yaml:2:1: .*map keys must be unique/, 'however it is written')
  t.match(outcome('[{ a: 1, ? a : 2 }]'), /map keys must be unique/)
  const { stackTraceLimit } = Error
  outcome('[,,,')
  t.equal(Error.stackTraceLimit, stackTraceLimit, 'what reading sets aside is put back')
})
