// Example and test material, not a product part and not GitHub: a local HTTPS server that behaves like GitHub's API for
// the handful of routes that the example's job and its attackers call, so that the loop can run without a network and
// without anybody's account. What it checks is real: App JWTs, installation tokens with their permissions, expiry,
// revocation. Keys and certificates are made at each start and live as long as the state directory.
//
//   node main.mjs --state DIR --repository OWNER/NAME [--host NAME]...
//
// Two listeners on 127.0.0.1, each on a free port: the API, and the "collector", which plays a place to which a
// compromised job sends what it stole. Writes DIR/server.json, DIR/ca.pem and DIR/app-key.pem, then prints one line
// with "ready":true. Ends on SIGTERM, or when its parent is gone.
import { generateKeyPair, randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:https'
import { join } from 'node:path'
import { parseArgs, promisify } from 'node:util'
import { openApi } from './api.mjs'
import { makeCertificates } from './certificates.mjs'
import { collect } from './collector.mjs'

const parent = process.ppid
const { state, repository, host } = readArguments()
mkdirSync(state, { recursive: true, mode: 0o700 })
chmodSync(state, 0o700)

// Begun before openssl is, since they take as long and run beside it. As text, not as key objects: Node 20 hangs when it
// exports such an object while the collector frees the job that made it (both take the key's one mutex).
const encoding = { privateKeyEncoding: { type: 'pkcs1', format: 'pem' }, publicKeyEncoding: { type: 'spki', format: 'pem' } }
const keys = [1, 2].map(() => promisify(generateKeyPair)('rsa', { modulusLength: 2048, ...encoding }))
const certificates = makeCertificates(state, [...host, 'localhost'], ['127.0.0.1', '::1'])
const [app, oidc] = await Promise.all(keys)
const appId = 271828
const installationId = 31415926
const requestToken = randomBytes(32).toString('base64url')

const limits = { requestTimeout: 30_000, headersTimeout: 10_000, maxHeaderSize: 16_384 }
const api = createServer({ ...limits, key: certificates.key, cert: certificates.cert })
const collector = createServer({ ...limits, key: certificates.key, cert: certificates.cert }, collect)
const [port, collectorPort] = [await listen(api), await listen(collector)]
api.on('request', openApi({ appId, installationId, appPublicKey: app.publicKey, oidcKeys: oidc, requestToken, repository, origin: `https://${host[0] ?? 'localhost'}:${port}` }))

// PKCS#1, as GitHub hands out the keys of its Apps.
writeFileSync(join(state, 'app-key.pem'), app.privateKey, { mode: 0o600 })
writeFileSync(join(state, 'server.json'), JSON.stringify({ port, collectorPort, appId, installationId, requestToken }), { mode: 0o600 })
process.stdout.write(`${JSON.stringify({ ready: true, port, collectorPort })}\n`)

const stop = () => {
  for (const server of [api, collector]) {
    server.close()
    server.closeAllConnections()
  }
  clearInterval(watch)
}
for (const signal of ['SIGTERM', 'SIGINT']) process.once(signal, stop)
// Standard input is /dev/null under the loop, so its end says nothing: the parent's id does.
const watch = setInterval(() => { if (process.ppid !== parent) stop() }, 500)

function listen(server) {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => resolve(server.address().port))
  })
}

function readArguments() {
  try {
    const { values } = parseArgs({ options: { state: { type: 'string' }, repository: { type: 'string' }, host: { type: 'string', multiple: true, default: [] } } })
    if (values.state === undefined) throw new Error('--state is missing')
    if (!/^[\w.-]+\/[\w.-]+$/.test(values.repository ?? '')) throw new Error('--repository must be OWNER/NAME')
    const odd = values.host.find(name => !/^[A-Za-z0-9.-]+$/.test(name))
    if (odd !== undefined) throw new Error(`--host: "${odd}" is not a host name`)
    return values
  } catch (error) {
    process.stderr.write(`server: ${error.message}\nusage: node main.mjs --state DIR --repository OWNER/NAME [--host NAME]...\n`)
    process.exit(2)
  }
}
