import { constants } from 'node:os'
import { AmbitError } from '../errors.ts'

/** A step of cell-init that failed, told by its exit. */
export function launchFailure(failed: { step: string; errno: number }): AmbitError {
  return new AmbitError('CELL_FAILED', {
    attempted: `build the cell (${failed.step})`, why: errnoName(failed.errno),
    remedy: 'run `ambit doctor` to see what this kernel offers; the step that failed is named above',
  })
}

/** What the addon threw, as whoever asked for the cell reads it; anything else stays as it is. */
export function asCellError(error: unknown): unknown {
  const failure = error as { code?: string; errno?: number; syscall?: string; message?: string }
  if (error instanceof AmbitError || failure.code !== 'NATIVE') return error
  return new AmbitError('CELL_FAILED', {
    attempted: `build the cell (${failure.syscall ?? 'native step'})`,
    why: failure.message ?? 'unknown',
    remedy: failure.errno === constants.errno.ELOOP
      ? 'a path that the contract grants leads through a link: name where it leads'
      : 'check the paths that the contract names; `ambit doctor` shows what this kernel offers',
    cause: error,
  })
}

function errnoName(errno: number): string {
  return Object.entries(constants.errno).find(([, value]) => value === errno)?.[0] ?? `errno ${errno}`
}
