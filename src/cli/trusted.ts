import { existsSync } from 'node:fs'
import { AmbitError } from '../errors.ts'
import { verifyBundle, type VerifyReport } from '../evidence/verify.ts'
import { readText } from '../text.ts'

/** The key of the daemon on this host, as it leaves it for readers of its evidence. */
export const HOST_KEY = '/var/lib/ambit/public-key.pem'

/**
 * Verifies a bundle before it is judged. A bundle brings the key that signed it, so by itself it proves only that nothing was
 * changed since; who signed is known where a key is given, or this host's daemon has one. `lasting`: what is derived is kept
 * (a ledger, a changed file), which needs a signer that is known.
 */
export async function trustedBundle(dir: string, options: { key?: string; lasting: boolean; attempted: string }): Promise<VerifyReport> {
  const key = options.key ?? (existsSync(HOST_KEY) ? HOST_KEY : undefined)
  if (key === undefined && options.lasting) {
    throw new AmbitError('USAGE', {
      attempted: options.attempted, why: 'nobody can say who signed the evidence: it would be kept on its own word',
      remedy: 'name the public key that must have signed with --key (the daemon writes it to public-key.pem in its state directory)',
    })
  }
  const report = await verifyBundle(dir, key === undefined ? {} : { publicKey: readText(key, 'the public key') })
  if (!report.valid) throw new AmbitError('EVIDENCE_INVALID', { attempted: options.attempted, why: report.problems[0] ?? 'it does not verify', remedy: '`ambit verify` tells more; evidence that was changed proves nothing' })
  if (key === undefined) process.stderr.write('ambit: note: the evidence is whole, but signed by a key that came with it; --key FILE says whose it must be\n')
  return report
}
