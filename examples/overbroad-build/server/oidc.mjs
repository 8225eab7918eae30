// The runner's side door to GitHub's OIDC provider: an id token for an audience, to whoever holds the request token.
import { createPublicKey, randomUUID, timingSafeEqual } from 'node:crypto'
import { Refusal } from './http.mjs'
import { signJwt } from './jwt.mjs'

const LIFE_S = 300

export function openOidc({ origin, repository, requestToken, privateKey, publicKey }) {
  const issuer = `${origin}/_apis/oidc`
  const kid = randomUUID()
  const [owner] = repository.split('/')
  const jwks = { keys: [{ ...createPublicKey(publicKey).export({ format: 'jwk' }), kid, use: 'sig', alg: 'RS256' }] }

  return {
    '/_apis/oidc/token': ({ bearer, query }) => {
      if (bearer === null || !same(bearer, requestToken)) throw new Refusal(401, 'Bad credentials')
      const now = Math.floor(Date.now() / 1000)
      const value = signJwt({
        iss: issuer, sub: `repo:${repository}:ref:refs/heads/main`, aud: query.get('audience') || `https://github.com/${owner}`,
        jti: randomUUID(), iat: now, nbf: now, exp: now + LIFE_S, repository, repository_owner: owner, ref: 'refs/heads/main', event_name: 'push', runner_environment: 'self-hosted',
      }, privateKey, { kid })
      return { count: value.length, value }
    },
    '/_apis/oidc/.well-known/openid-configuration': () => ({ issuer, jwks_uri: `${issuer}/jwks`, id_token_signing_alg_values_supported: ['RS256'], response_types_supported: ['id_token'], subject_types_supported: ['public'] }),
    '/_apis/oidc/jwks': () => jwks,
  }
}

function same(a, b) {
  const [left, right] = [Buffer.from(a), Buffer.from(b)]
  return left.length === right.length && timingSafeEqual(left, right)
}
