import { existsSync, readFileSync } from 'node:fs'
import { release } from 'node:os'
import { join } from 'node:path'
import type { Command } from 'commander'
import { tlsLibraries } from '../cell/cell.ts'
import { openCgroups } from '../cell/cgroup.ts'
import { AmbitError } from '../errors.ts'
import { runCanaries } from '../evidence/canary.ts'
import { openProbes } from '../evidence/probes.ts'
import type { HookReport } from '../evidence/records.ts'
import { native } from '../native.ts'
import { PACKAGE_ROOT, VERSION } from '../package.ts'
import { colour, print, printJson } from './io.ts'

type Check = { name: string; state: 'ok' | 'reduced' | 'missing'; found: string; cost: string; remedy: string }

export function doctorCommand(program: Command): void {
  program.command('doctor')
    .description('what this host can enforce and observe: every hook is loaded, attached and fired, not assumed')
    .option('--json', 'the report as JSON')
    .action(async options => {
      if (process.getuid?.() !== 0) throw new AmbitError('NOT_ROOT', { attempted: 'examine this host', why: 'eBPF programs can only be tried by root', remedy: 'run `ambit doctor` as root' })
      const report = await examine()
      if (options.json) printJson(report)
      else print(page(report, colour(process.stdout)))
      if (report.checks.some(check => check.state === 'missing')) process.exitCode = 1
    })
}

export type DoctorReport = { version: string; kernel: string; checks: Check[]; hooks: HookReport[] }

/** Tries everything on this host; leaves nothing behind. */
export async function examine(): Promise<DoctorReport> {
  const addon = native()
  const cgroups = openCgroups()
  try {
    const probes = openProbes({
      native: addon, objectDir: join(PACKAGE_ROOT, 'build/Release/bpf'), level: cgroups.level, parentCgroup: cgroups.parentV2,
      tls: tlsLibraries([process.execPath]),
    })
    try {
      const hooks = await runCanaries(probes, cgroups)
      return { version: VERSION, kernel: release(), checks: [...kernelChecks(addon.landlockAbi(), cgroups), ...hookChecks(hooks)], hooks }
    } finally {
      probes.close()
    }
  } finally {
    await cgroups.close()
  }
}

function kernelChecks(landlock: number, cgroups: ReturnType<typeof openCgroups>): Check[] {
  const btf = existsSync('/sys/kernel/btf/vmlinux')
  const lsms = readable('/sys/kernel/security/lsm')
  const namespaces = ['user', 'mnt', 'pid', 'net', 'ipc', 'uts', 'cgroup'].filter(name => !existsSync(`/proc/self/ns/${name}`))
  const userLimit = Number(readable('/proc/sys/user/max_user_namespaces') ?? 0)
  return [
    { name: 'BTF', state: btf ? 'ok' : 'missing', found: btf ? '/sys/kernel/btf/vmlinux' : 'none', cost: 'no eBPF program loads: nothing is observed', remedy: 'use a kernel built with CONFIG_DEBUG_INFO_BTF' },
    { name: 'namespaces', state: namespaces.length === 0 && userLimit > 0 ? 'ok' : 'missing', found: namespaces.length === 0 ? `all seven, ${userLimit} user namespaces allowed` : `lacks ${namespaces.join(', ')}`, cost: 'no cell can be built', remedy: 'raise user.max_user_namespaces; use a kernel with all namespaces' },
    { name: 'cgroups', state: 'ok', found: cgroups.layout, cost: 'limits are set on the hierarchies named', remedy: '' },
    { name: 'Landlock', state: landlock === 0 ? 'missing' : landlock >= 6 ? 'ok' : 'reduced', found: landlock === 0 ? 'none' : `ABI ${landlock}`, cost: landlock === 0 ? 'the exec part of a contract is held by the cell\'s root alone' : landlock >= 6 ? '' : 'signals and abstract sockets are not scoped; other namespaces hold them', remedy: 'add landlock to the lsm= boot parameter; 6.12 has ABI 6' },
    { name: 'security modules', state: 'ok', found: lsms ?? 'unknown: securityfs is not mounted', cost: '', remedy: '' },
  ]
}

/** Functions of one library that are in one state make one line: a page, not a list of symbols. */
function hookChecks(hooks: readonly HookReport[]): Check[] {
  const grouped = new Map<string, { hook: HookReport; functions: string[] }>()
  for (const hook of hooks) {
    const [, library, name] = /^(uprobe\/[^:]+):(.+)$/.exec(hook.name) ?? []
    const key = library === undefined ? hook.name : `${library} ${hook.state}`
    const known = grouped.get(key)
    if (known === undefined) grouped.set(key, { hook: library === undefined ? hook : { ...hook, name: library }, functions: name === undefined ? [] : [name] })
    else if (name !== undefined && !known.functions.includes(name)) known.functions.push(name)
  }
  return [...grouped.values()].map(({ hook, functions }) => ({
    name: hook.name,
    state: hook.state === 'attached' ? 'ok' : hook.state === 'fallback' ? 'reduced' : 'missing',
    found: hook.state + (functions.length > 0 ? `${hook.state === 'attached' ? ' to' : ':'} ${functions.join(', ')}` : '') + (hook.detail === undefined ? '' : `: ${hook.detail}`),
    cost: hook.state === 'attached' ? '' : hook.state === 'fallback' ? `${hook.family} evidence comes by another way` : `${hook.family} evidence has a gap: verdicts that rest on it say unobservable`,
    remedy: hook.state === 'attached' || hook.state === 'fallback' ? '' : 'see the reason; a newer kernel, or one without lockdown, may take it',
  }))
}

function page(report: DoctorReport, color: boolean): string {
  const paint = (state: Check['state'], text: string): string => (color ? `\u001b[${{ ok: 32, reduced: 33, missing: 31 }[state]}m${text}\u001b[0m` : text)
  const width = Math.max(...report.checks.map(check => check.name.length))
  const lines = report.checks.flatMap(check => [
    `${paint(check.state, check.state.padEnd(8))} ${check.name.padEnd(width)}  ${check.found}`,
    ...(check.state !== 'ok' && check.cost !== '' ? [`${' '.repeat(10)}${' '.repeat(width)} costs: ${check.cost}${check.remedy === '' ? '' : `; ${check.remedy}`}`] : []),
  ])
  return [`ambit ${report.version} on Linux ${report.kernel}`, '', ...lines].join('\n')
}

function readable(path: string): string | null {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch {
    return null
  }
}
