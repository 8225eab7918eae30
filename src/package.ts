import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** The folder that holds package.json, from src/ and dist/ alike. */
export const PACKAGE_ROOT = dirname(dirname(fileURLToPath(import.meta.url)))
export const VERSION = (JSON.parse(readFileSync(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as { version: string }).version
/** The native client, which hands its own descriptors to the daemon. */
export const CLIENT = join(PACKAGE_ROOT, 'build/Release/ambit-client')
