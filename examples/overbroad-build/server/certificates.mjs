import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * A certificate authority and one server certificate, by the openssl command, since Node cannot make X.509.
 * Leaves DIR/ca.pem; the authority's key is removed once it has signed.
 * @returns {{ key: string, cert: string }} PEM, of the server
 */
export function makeCertificates(dir, names, addresses) {
  const at = name => join(dir, name)
  const alternatives = [...names.map(name => `DNS:${name}`), ...addresses.map(address => `IP:${address}`)].join(',')
  // A configuration of our own: the host's openssl.cnf may be missing, or add what we do not want.
  writeFileSync(at('openssl.cnf'), `[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = ${alternatives}
`)
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  openssl('req', '-config', at('openssl.cnf'), '-x509', ...key, '-keyout', at('ca-key.pem'), '-out', at('ca.pem'), '-days', '2', '-subj', '/CN=Ambit example authority', '-extensions', 'authority')
  openssl('req', '-config', at('openssl.cnf'), '-new', ...key, '-keyout', at('server-key.pem'), '-out', at('server.csr'), '-subj', '/CN=Ambit example server')
  openssl('x509', '-req', '-in', at('server.csr'), '-CA', at('ca.pem'), '-CAkey', at('ca-key.pem'), '-set_serial', `0x${randomBytes(15).toString('hex')}`,
    '-days', '2', '-extfile', at('openssl.cnf'), '-extensions', 'server', '-out', at('server.pem'))
  const made = { key: readFileSync(at('server-key.pem'), 'utf8'), cert: readFileSync(at('server.pem'), 'utf8') }
  for (const name of ['openssl.cnf', 'ca-key.pem', 'server-key.pem', 'server.csr', 'server.pem']) rmSync(at(name))
  return made
}

function openssl(...args) {
  try {
    execFileSync('openssl', args, { stdio: ['ignore', 'ignore', 'pipe'] })
  } catch (error) {
    throw new Error(error.code === 'ENOENT' ? 'the openssl command is needed: apt-get install openssl' : `openssl ${args[0]}: ${String(error.stderr).trim()}`)
  }
}
