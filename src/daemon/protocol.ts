import { z } from 'zod'
import { AmbitError, ERROR_CODES, type ErrorCode, type ErrorDetail } from '../errors.ts'

/**
 * What passes over the control socket. Clients send one JSON object a packet; the daemon answers in NAME=VALUE fields, which the
 * native client reads without a JSON library. A packet is at most 256 KiB in either direction (native/common/unix-address.hpp).
 */
const MAX_PACKET = 256 * 1024
/** Linux's own limit of one argument or variable (MAX_ARG_STRLEN, include/uapi/linux/binfmts.h). */
const MAX_ARGUMENT = 128 * 1024
const MAX_ARGUMENTS = 8192
const MAX_VARIABLES = 4096
const PATH_MAX = 4096

const text = (max: number) => z.string().max(max).refine(value => !value.includes('\0'), 'must not hold a zero byte')

const runMessage = z.strictObject({
  op: z.literal('run'),
  contract: z.strictObject({
    text: z.string().describe('the contract as written'),
    file: text(PATH_MAX).min(1).describe('its name, for messages; never opened'),
    profiles: z.record(text(PATH_MAX), z.string()).optional().describe('what the seccomp profiles hold that it names, read by the client'),
  }),
  argv: z.array(text(MAX_ARGUMENT)).min(1).max(MAX_ARGUMENTS).refine(argv => argv[0] !== '', 'the command must not be empty'),
  env: z.record(text(MAX_ARGUMENT).min(1).refine(name => !name.includes('='), 'a variable\'s name must not hold ='), text(MAX_ARGUMENT))
    .refine(env => Object.keys(env).length <= MAX_VARIABLES, `at most ${MAX_VARIABLES} variables`)
    // Without a prototype, so that a contract that passes `constructor` passes nothing.
    .transform(env => Object.assign(Object.create(null) as Record<string, string>, env)),
  evidence: z.boolean().describe('a directory for the bundle comes as the fifth descriptor'),
})
export type RunMessage = z.infer<typeof runMessage>

const resumeMessage = z.strictObject({
  op: z.literal('resume'),
  cell: z.string().max(64),
  evidence: z.boolean().describe('a directory for the bundle comes as the first descriptor'),
})
export type ResumeMessage = z.infer<typeof resumeMessage>

const message = z.discriminatedUnion('op', [
  runMessage,
  resumeMessage,
  z.strictObject({ op: z.literal('signal'), signal: z.number().int().min(1).max(64) }),
  z.strictObject({ op: z.literal('status') }),
  z.strictObject({ op: z.literal('stop') }),
])
export type ClientMessage = z.infer<typeof message>

/** Reads a client's packet. Throws USAGE: what is wrong with it and where. */
export function clientMessage(packet: Buffer): ClientMessage {
  const refuse = (why: string, cause?: unknown): never => {
    throw new AmbitError('USAGE', { attempted: 'read the request', why, remedy: 'use the ambit command of the same version as the daemon', cause })
  }
  if (packet.length > MAX_PACKET) refuse(`it is ${packet.length} bytes, and ${MAX_PACKET} is the most`)
  let value: unknown
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(packet))
  } catch (error) {
    refuse(error instanceof SyntaxError ? 'it is not JSON' : 'it is not UTF-8', error)
  }
  const parsed = message.safeParse(value)
  if (parsed.success) return parsed.data
  const { path, message: what } = parsed.error.issues[0]!
  return refuse(`${path.length === 0 ? 'the request' : path.join('.')}: ${what}`)
}

export type DaemonMessage =
  /** `lasts`: the cell goes on if the daemon dies, and the next one can be asked for it. */
  | { type: 'started'; cell: string; lasts?: 'yes' }
  /**
   * `code` and `signal` are the command's; `evidence` is the bundle's path at the daemon, `changes` that of what was written to an
   * overlay workspace; `notice` a line for a person.
   */
  | { type: 'ended'; cell: string; code: number | null; signal: number | null; reason: string; evidence: string; notice: string | null; changes?: string | null }
  | { type: 'error'; error: { code: ErrorCode } & Omit<ErrorDetail, 'cause'>; exitCode: number }
  | { type: 'status'; version: string; cells: number; feedPort: number }

/** Longest text of an error that travels: the client needs a person's message, not a dump. */
const MAX_TEXT = 16 * 1024

/** A message as its bytes: NAME=VALUE fields, each ended by a zero byte; what is null is left out. */
export function encodeDaemonMessage(message: DaemonMessage): Buffer {
  const fields: Record<string, string | number | null | undefined> = message.type === 'error'
    ? { type: 'error', code: message.error.code, exitCode: message.exitCode, text: errorText(message.error) }
    : message
  return Buffer.from(Object.entries(fields)
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => `${name}=${String(value).replaceAll('\0', '\ufffd')}\0`).join(''))
}

function errorText({ code, ...detail }: { code: ErrorCode } & ErrorDetail): string {
  const known = code in ERROR_CODES ? code : 'INTERNAL'
  const text = new AmbitError(known, detail).message
  return text.length <= MAX_TEXT ? text : `${text.slice(0, MAX_TEXT)}…`
}
