import { spawnSync } from 'node:child_process'
import { closeSync, constants, existsSync, fstatSync, openSync, readFileSync, rmdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { createTwoFilesPatch } from 'diff'
import type { Command } from 'commander'
import { applyChanges, removeAll } from '../changes/apply.ts'
import { at, CHANGES_DIR, changesOf, entries, openFile, readChangesFile, within, type Change, type ChangesFile, type Folder } from '../changes/changes.ts'
import { AmbitError } from '../errors.ts'
import { native } from '../native.ts'
import { printable } from '../text.ts'
import { counted } from '../authority/words.ts'
import { print, printJson } from './io.ts'

/** A larger file is named in a diff, not shown. */
const TEXT_BYTES_MAX = 1024 * 1024

export function changesCommand(program: Command): void {
  program.command('changes')
    .description('what a job wrote to its overlay workspace: show it, apply it to the workspace, or discard it')
    .argument('<cell>', 'the cell, or the directory that ambit run named')
    .option('--diff', 'as unified diff; files that are no text, and large ones, are only named')
    .option('--json', 'as JSON')
    .option('--apply', 'write the changes to the workspace, as its owner, and forget them')
    .option('--discard', 'forget the changes')
    .option('--to <dir>', 'the workspace, if it is no longer where it was')
    .option('--force', 'apply also where the workspace has changed since the job started')
    .addHelpText('after', `
A job whose contract says "workspace: overlay" leaves the workspace as it was. What it wrote is kept for a week in
${CHANGES_DIR}, for whoever called it alone. Set-id bits, devices, sockets and pipes are never applied.
Example: ambit changes c0123456789ab --diff | less`)
    .action((cell: string, options: { diff?: boolean; json?: boolean; apply?: boolean; discard?: boolean; to?: string; force?: boolean }) => {
      if (options.apply && options.discard) throw new AmbitError('USAGE', { attempted: 'read the command line', why: '--apply and --discard exclude each other', remedy: 'choose one' })
      const path = cell.includes('/') || !existsSync(join(CHANGES_DIR, cell)) ? resolve(cell) : join(CHANGES_DIR, cell)
      const home = openFolder(path, 'the changes', 'name a cell whose contract says "workspace: overlay", or the directory that ambit run named; they are gone once applied or discarded')
      becomeOwner(home)
      const about = readChangesFile(home)
      if (options.discard) {
        discard(home, path)
        print(`discarded what cell ${about.cell} wrote`)
        return
      }
      within(home, Buffer.from('workspace'), store => within(store, Buffer.from('upper'), upper => {
        const workspace = openWorkspace(about, options.to)
        const changes = changesOf(native(), upper, workspace, Date.parse(about.started))
        if (!options.apply) return show(about, changes, upper, workspace, options)
        const conflicts = changes.filter(({ conflict }) => conflict)
        if (conflicts.length > 0 && !options.force) {
          throw new AmbitError('FILE_UNWRITABLE', {
            attempted: 'apply the changes', why: `the workspace has changed since the job started: ${conflicts.slice(0, 3).map(one => printable(one.path)).join(', ')}${conflicts.length > 3 ? ` and ${conflicts.length - 3} more` : ''}`,
            remedy: 'look at them with --diff; --force writes the job\'s over them',
          })
        }
        const left = applyChanges(native(), upper, workspace)
        print(`applied ${counted(changes.length - left.length, 'change')} to ${options.to ?? about.workspace.path}`)
        for (const one of left) print(`left out: ${printable(one)} is neither file, directory nor link`)
      }))
      if (options.apply) discard(home, path)
    })
}

function openFolder(path: string, what: string, remedy: string): Folder {
  try {
    return { fd: openSync(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW) }
  } catch (cause) {
    throw new AmbitError('FILE_UNREADABLE', { attempted: `open ${what}`, why: `${path}: ${(cause as NodeJS.ErrnoException).code}`, remedy, cause })
  }
}

/** Root works with the rights of whoever the changes belong to: what they prepared can make root write nothing of root's. */
function becomeOwner(home: Folder): void {
  const { uid, gid } = fstatSync(home.fd)
  if (process.geteuid!() !== 0 || uid === 0) return
  process.setgroups!([])
  process.setegid!(gid)
  process.seteuid!(uid)
}

function openWorkspace(about: ChangesFile, elsewhere: string | undefined): Folder {
  const folder = openFolder(elsewhere ?? about.workspace.path, 'the workspace', 'name where it is now with --to')
  const { dev, ino } = fstatSync(folder.fd, { bigint: true })
  if (elsewhere === undefined && (String(dev) !== about.workspace.dev || String(ino) !== about.workspace.ino)) {
    throw new AmbitError('FILE_UNREADABLE', { attempted: 'open the workspace', why: `${about.workspace.path} is another directory than the one the job saw`, remedy: 'name the one that is meant with --to' })
  }
  return folder
}

function show(about: ChangesFile, changes: Change[], upper: Folder, workspace: Folder, { diff, json }: { diff?: boolean; json?: boolean }): void {
  if (json) printJson({ ...about, changes })
  else if (diff) for (const change of changes) print(patch(change, upper, workspace))
  else if (changes.length === 0) print('no change')
  else for (const { path: raw, change, type, conflict } of changes) {
    const path = printable(raw)
    print(`${change.padEnd(8)} ${type === 'directory' ? `${path}/` : path}${type === 'link' ? ' (link)' : type === 'other' ? ' (not applied: neither file, directory nor link)' : ''}${conflict ? '  changed in the workspace, too' : ''}`)
  }
}

function patch({ path, change, type }: Change, upper: Folder, workspace: Folder): string {
  const before = change === 'added' ? '' : textBelow(workspace, path)
  const after = change === 'deleted' ? '' : textBelow(upper, path)
  const shown = printable(path)
  if (type !== 'file' || before === null || after === null) return `${change} ${shown}: ${type === 'file' ? 'no text, or too large to show' : type}`
  return createTwoFilesPatch(change === 'added' ? '/dev/null' : `a/${path}`, change === 'deleted' ? '/dev/null' : `b/${path}`, before, after).split('\n').slice(1).join('\n').trimEnd()
}

/** Null: no text, larger than is shown, or no file. */
function textBelow(folder: Folder, path: string): string | null {
  const [first, ...rest] = path.split('/')
  const name = Buffer.from(first!)
  try {
    if (rest.length > 0) return within(folder, name, below => textBelow(below, rest.join('/')))
    const fd = openFile(at(folder, name))
    try {
      if (fstatSync(fd).size > TEXT_BYTES_MAX) return null
      const bytes = readFileSync(fd)
      return bytes.includes(0) ? null : new TextDecoder('utf-8', { fatal: true }).decode(bytes)
    } finally {
      closeSync(fd)
    }
  } catch {
    return null
  }
}

/** The directory itself lies in one of root's; where only root can remove it, the daemon does when it next looks. */
function discard(home: Folder, path: string): void {
  // A job can leave a tree deeper than any path can name, or this program's stack can follow: rm goes down by descriptors. What it
  // may not enter, because the job closed it to its owner, is left for removeAll.
  spawnSync('rm', ['-rf', '--', 'workspace'], { cwd: `/proc/self/fd/${home.fd}`, stdio: 'ignore' })
  for (const name of entries(home)) removeAll(home, name)
  try {
    rmdirSync(path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EACCES') throw error
  }
}
