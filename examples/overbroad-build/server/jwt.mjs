// RS256 JSON web tokens (RFC 7515, RFC 7519), as GitHub Apps sign them and GitHub's OIDC provider does.
import { sign, verify } from 'node:crypto'

const encode = value => Buffer.from(JSON.stringify(value)).toString('base64url')

export function signJwt(claims, privateKey, header = {}) {
  const text = `${encode({ alg: 'RS256', typ: 'JWT', ...header })}.${encode(claims)}`
  return `${text}.${sign('sha256', Buffer.from(text), privateKey).toString('base64url')}`
}

/** The claims, or null when the text is not a token that this key signed by RS256. Says nothing about times. */
export function readJwt(text, publicKey) {
  const parts = text.split('.')
  if (parts.length !== 3 || parts.some(part => !/^[\w-]+$/.test(part))) return null
  const [header, claims, signature] = parts
  try {
    // The key decides the algorithm, never the token: "none" and HMAC with the public key are the classic forgeries.
    if (JSON.parse(Buffer.from(header, 'base64url').toString('utf8')).alg !== 'RS256') return null
    if (!verify('sha256', Buffer.from(`${header}.${claims}`), publicKey, Buffer.from(signature, 'base64url'))) return null
    const value = JSON.parse(Buffer.from(claims, 'base64url').toString('utf8'))
    return typeof value === 'object' && value !== null ? value : null
  } catch {
    return null
  }
}
