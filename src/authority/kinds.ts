import { exec } from './exec.ts'
import { filesystem } from './filesystem.ts'
import { github } from './github.ts'
import type { AuthorityKind } from './kind.ts'
import { network } from './network.ts'
import { secret } from './secret.ts'
import { syscall } from './syscall.ts'

/** The one list of kinds, in the order in which reports show them. */
export const KIND_BY_NAME = { github, network, filesystem, exec, syscall, secret } as const

/** For all that treats every kind alike: each kind sees only declarations and used sets that are its own. */
export const KINDS: readonly AuthorityKind<any, any>[] = Object.values(KIND_BY_NAME)
