import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { open, readdir, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join, relative, resolve, sep } from 'node:path'
import { AmbitError } from '../errors.ts'
import { readWorkflow } from './github/workflow.ts'
import { LIMITS } from './github/yaml.ts'
import type { PipelineFile } from './graph.ts'

const FOLDER = join('.github', 'workflows')

/**
 * Reads a workflow file, or every `*.yml` and `*.yaml` in a directory's .github/workflows, by name. A file's name is
 * relative to the directory that holds .github, however it was named, so that a ledger's entries meet it again.
 * Throws FILE_UNREADABLE, or PIPELINE_INVALID with file, line and column; nothing is returned if one file is bad.
 */
export async function readPipelines(path: string): Promise<PipelineFile[]> {
  const info = await stat(path).catch((cause: NodeJS.ErrnoException) => { throw unreadable(path, cause) })
  if (!info.isDirectory()) return [await readOne(path, rootOf(path))]
  const folder = resolve(path).endsWith(sep + FOLDER) ? path : join(path, FOLDER)
  const names = await readdir(folder).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT' || cause.code === 'ENOTDIR') return []
    throw unreadable(folder, cause)
  })
  const wanted = names.filter(name => /\.ya?ml$/.test(name)).sort()
  if (wanted.length === 0) {
    throw new AmbitError('PIPELINE_INVALID', {
      attempted: 'find workflows', why: `there is no .yml or .yaml file in ${folder}`, remedy: 'name a workflow file, or a directory that holds .github/workflows', where: { file: path },
    })
  }
  const files: PipelineFile[] = []
  for (const name of wanted) files.push(await readOne(join(folder, name), rootOf(join(folder, name))))
  return files
}

/** The directory that holds .github where the file lies in .github/workflows; otherwise its own directory. */
function rootOf(path: string): string {
  const folder = dirname(resolve(path))
  return folder.endsWith(sep + FOLDER) ? dirname(dirname(folder)) : folder
}

async function readOne(path: string, root: string): Promise<PipelineFile> {
  const bytes = await readWithin(path, root)
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes)
  } catch (cause) {
    throw new AmbitError('PIPELINE_INVALID', { attempted: 'read the workflow', why: 'it is not UTF-8 text', remedy: 'save it as UTF-8', where: { file: path }, cause })
  }
  const workflow = readWorkflow(text, relative(root, resolve(path)).split(sep).join('/'), path)
  return { ...workflow, digest: createHash('sha256').update(bytes).digest('hex') }
}

/** A repository may hold links and pipes that its author made to be followed; what lies outside its tree is not read. */
async function readWithin(path: string, root: string): Promise<Buffer> {
  const refuse = (why: string, remedy: string): AmbitError => new AmbitError('PIPELINE_INVALID', { attempted: 'read the workflow', why, remedy, where: { file: path } })
  const real = await realpath(path).catch((cause: NodeJS.ErrnoException) => { throw unreadable(path, cause) })
  const realRoot = await realpath(root)
  if (!real.startsWith(realRoot === sep ? sep : realRoot + sep)) throw refuse(`it is a link that leads out of its tree, to ${real}`, 'put the file itself in its place')
  const handle = await open(real, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch((cause: NodeJS.ErrnoException) => { throw unreadable(path, cause) })
  try {
    if (!(await handle.stat()).isFile()) throw refuse('it is not a regular file', `${basename(path)} must be a file`)
    const buffer = Buffer.alloc(LIMITS.bytes + 1)
    let length = 0
    for (;;) {
      const { bytesRead } = await handle.read(buffer, length, buffer.length - length, length)
      length += bytesRead
      if (bytesRead === 0 || length === buffer.length) break
    }
    if (length > LIMITS.bytes) throw refuse(`it has more than ${LIMITS.bytes / 1024} KiB`, 'no workflow needs that much: split it')
    return buffer.subarray(0, length)
  } finally {
    await handle.close()
  }
}

function unreadable(path: string, cause: NodeJS.ErrnoException): AmbitError {
  return new AmbitError('FILE_UNREADABLE', { attempted: 'read the pipeline', why: `${path}: ${cause.code ?? cause.message}`, remedy: 'check the path and that you may read it', cause })
}
