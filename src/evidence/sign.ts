import { createPrivateKey, createPublicKey, generateKeyPairSync, sign, verify, type KeyObject } from 'node:crypto'
import { join } from 'node:path'
import { z } from 'zod'
import { AmbitError } from '../errors.ts'
import { digest } from './chain.ts'
import { readOrCreatePrivate } from './private-file.ts'

/** Payload type of in-toto statements in DSSE envelopes (github.com/in-toto/attestation, spec/v1/envelope.md). */
const PAYLOAD_TYPE = 'application/vnd.in-toto+json'

export type SigningKey = {
  /** SHA-256 of the public key's SPKI form, hex. */
  keyid: string
  /** The public key as PEM. */
  publicPem: string
  sign(bytes: Buffer): Buffer
}

/** The daemon's Ed25519 key, `stateDir/signing-key.pem` (PKCS #8, mode 0600); made on the first start. Throws FILE_UNREADABLE. */
export function loadOrCreateKey(stateDir: string): SigningKey {
  const path = join(stateDir, 'signing-key.pem')
  const pem = readOrCreatePrivate(path, 'the signing key', newKey)
  let key: KeyObject
  try {
    key = createPrivateKey(pem)
  } catch (cause) {
    throw badKey('read the signing key', `${path}: it is not a private key in PEM`, cause)
  }
  if (key.asymmetricKeyType !== 'ed25519') throw badKey('read the signing key', `${path}: it is a ${key.asymmetricKeyType} key, not Ed25519`)
  const publicKey = createPublicKey(key)
  return { keyid: keyId(publicKey), publicPem: publicPem(publicKey), sign: bytes => sign(null, bytes, key) }
}

// Exporting a KeyObject just after its generation can deadlock with its finalizer in Node 20: the text is asked for at once.
function newKey(): string {
  return generateKeyPairSync('ed25519', { privateKeyEncoding: { type: 'pkcs8', format: 'pem' }, publicKeyEncoding: { type: 'spki', format: 'pem' } }).privateKey
}

/** Reads a public key in PEM. Throws FILE_UNREADABLE: it is none, or not an Ed25519 one. */
export function readPublicKey(pem: string): { keyid: string; key: KeyObject; pem: string } {
  let key: KeyObject
  try {
    key = createPublicKey(pem)
  } catch (cause) {
    throw badKey('read the public key', 'it is not a public key in PEM', cause)
  }
  // A private key's PEM would be taken as well.
  if (key.asymmetricKeyType !== 'ed25519' || pem.includes('PRIVATE')) throw badKey('read the public key', 'it is not an Ed25519 public key')
  return { keyid: keyId(key), key, pem: publicPem(key) }
}

function badKey(attempted: string, why: string, cause?: unknown): AmbitError {
  return new AmbitError('FILE_UNREADABLE', { attempted, why, remedy: 'give the `public-key.pem` or `signing-key.pem` that ambit wrote', cause })
}

function keyId(key: KeyObject): string {
  return digest(key.export({ type: 'spki', format: 'der' }) as Buffer)
}

function publicPem(key: KeyObject): string {
  return key.export({ type: 'spki', format: 'pem' }) as string
}

const envelope = z.strictObject({
  payload: z.string(),
  payloadType: z.literal(PAYLOAD_TYPE),
  signatures: z.tuple([z.strictObject({ keyid: z.string(), sig: z.string() })]),
})

/** What DSSE signs: type and body with their lengths, so that no two pairs give the same bytes (secure-systems-lab/dsse, protocol.md). */
export function preAuthEncoding(type: string, body: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`DSSEv1 ${Buffer.byteLength(type)} ${type} ${body.length} `), body])
}

/** Signs a statement; the result is the envelope as one line of JSON. */
export function sealStatement(key: SigningKey, statement: object): string {
  const body = Buffer.from(JSON.stringify(statement))
  const sig = key.sign(preAuthEncoding(PAYLOAD_TYPE, body)).toString('base64')
  return `${JSON.stringify({ payload: body.toString('base64'), payloadType: PAYLOAD_TYPE, signatures: [{ keyid: key.keyid, sig }] })}\n`
}

/** Opens an envelope that `key` must have signed. Returns the payload, or what is wrong with it. Its bytes must be exactly what `sealStatement` writes. */
export function openEnvelope(text: string, key: { keyid: string; key: KeyObject }): { payload: unknown } | { problem: string } {
  let parsed
  try {
    parsed = envelope.parse(JSON.parse(text))
  } catch {
    return { problem: 'the statement is not a DSSE envelope with one signature' }
  }
  const { payload, signatures: [{ keyid, sig }] } = parsed
  const body = Buffer.from(payload, 'base64')
  const signature = Buffer.from(sig, 'base64')
  if (keyid !== key.keyid) return { problem: `the statement names key ${keyid}, and ${key.keyid} is expected` }
  if (!verify(null, preAuthEncoding(PAYLOAD_TYPE, body), key.key, signature)) return { problem: 'the statement\'s signature does not hold' }
  // Base64 and JSON have many forms of one value: only the one that was written passes for unchanged.
  const canonical = JSON.stringify({ payload: body.toString('base64'), payloadType: PAYLOAD_TYPE, signatures: [{ keyid, sig: signature.toString('base64') }] })
  if (`${canonical}\n` !== text) return { problem: 'the statement\'s envelope is not in the form that was written' }
  try {
    return { payload: JSON.parse(body.toString('utf8')) }
  } catch {
    return { problem: 'the statement is not JSON' }
  }
}
