import { close, readlinkSync } from 'node:fs'
import { inside } from '../authority/paths.ts'
import { AmbitError } from '../errors.ts'
import type { NativeAddon } from '../native.ts'

/** What comes with a run: three for the command, the caller's directory, and a directory for the evidence if one is wanted. */
export type RunDescriptors = { stdio: [number, number, number]; workspace: number; evidence: number | undefined }

const STDIO = ['standard input', 'standard output', 'standard error']

/**
 * Checks the descriptors that a client sent; the client keeps its own copies and can send anything. `own`: the daemon's
 * directories, which no cell may have as its workspace. Throws USAGE.
 */
export function runDescriptors(native: NativeAddon, fds: readonly number[], withEvidence: boolean, own: readonly string[]): RunDescriptors {
  const refuse = (why: string, remedy = 'use the ambit command to talk to the daemon'): never => { throw new AmbitError('USAGE', { attempted: 'run a cell', why, remedy }) }
  const wanted = withEvidence ? 5 : 4
  if (fds.length !== wanted) refuse(`${fds.length} descriptors came, ${wanted} are needed`)
  const [stdin, stdout, stderr, workspace, evidence] = fds as [number, number, number, number, number?]
  for (const [index, fd] of [stdin, stdout, stderr].entries()) {
    const { kind, pathOnly } = native.descriptorKind(fd)
    // A directory would be a door to the host's files; a network socket can make whoever closes it wait.
    if (pathOnly || !['file', 'pipe', 'character', 'unix-socket'].includes(kind)) refuse(`${STDIO[index]} is a ${pathOnly ? 'path descriptor' : kind}`, 'give the command a file, a pipe or a terminal there')
  }
  for (const [fd, what] of [[workspace, 'the working directory'], [evidence, 'the evidence directory']] as const) {
    if (fd !== undefined && native.descriptorKind(fd).kind !== 'directory') refuse(`${what} is no directory`)
  }
  const path = readlinkSync(`/proc/self/fd/${workspace}`)
  const held = own.find(folder => inside(folder, path) || inside(path, folder))
  if (held !== undefined) refuse(`the working directory ${path} holds the daemon's own ${held}`, 'run ambit in the directory that the job is about')
  return { stdio: [stdin, stdout, stderr], workspace, evidence }
}

/** Closes what a client sent, away from the main thread: a close waits as long as a file system wants it to. */
export function closeLater(fds: readonly number[]): void {
  for (const fd of fds) close(fd, () => {})
}
