import type { EvidenceRecord } from '../evidence/records.ts'
import { printable } from '../text.ts'

/** The loop's voice: a heading for each station with the time it took, and indented detail. */
export type Show = {
  station(title: string): void
  line(text: string): void
  block(text: string): void
  done(): void
  promise(text: string, held: boolean): void
  readonly broken: readonly string[]
}

export function openShow(out: (text: string) => void, color: boolean, quiet: boolean): Show {
  const paint = (code: number, text: string): string => (color ? `\u001b[${code}m${text}\u001b[0m` : text)
  const broken: string[] = []
  let number = 0
  let began = 0
  const say = (text: string): void => { if (!quiet) out(text) }
  return {
    station(title) {
      number++
      began = performance.now()
      out(`\n${paint(1, `${number}. ${title}`)}\n`)
    },
    line: text => say(`   ${text}\n`),
    block: text => say(text.replace(/\n+$/, '').split('\n').map(line => `   ${line}\n`).join('')),
    done: () => out(paint(2, `   ${((performance.now() - began) / 1000).toFixed(2)} s`) + '\n'),
    promise(text, held) {
      out(`   ${held ? paint(32, '✓') : paint(31, '✗')} ${text}\n`)
      if (!held) broken.push(text)
    },
    broken,
  }
}

/** What the evidence holds, as a person wants to see it: the most used first. */
export function evidenceSummary(records: readonly EvidenceRecord[]): string {
  const of = <T extends EvidenceRecord['type']>(type: T): Extract<EvidenceRecord, { type: T }>[] => records.filter(record => record.type === type) as Extract<EvidenceRecord, { type: T }>[]
  const calls = of('syscalls').flatMap(record => record.calls).map(call => ({ name: call.name ?? `#${call.nr}`, count: call.succeeded + call.failed + call.unfinished, refused: call.refused }))
  const total = calls.reduce((sum, call) => sum + call.count, 0)
  const top = calls.sort((a, b) => b.count - a.count).slice(0, 12).map(call => `${call.name} ${call.count}`)
  const execs = new Map<string, number>()
  for (const { path } of of('exec')) execs.set(path, (execs.get(path) ?? 0) + 1)
  const files = of('file').filter(file => file.source !== 'name')
  const looked = of('file').length - files.length
  const folders = new Map<string, number>()
  for (const { path } of files) folders.set(path.split('/').slice(0, 3).join('/'), (folders.get(path.split('/').slice(0, 3).join('/')) ?? 0) + 1)
  const flows = of('flow')
  const losses = of('loss')
  const dropped = losses.reduce((sum, loss) => sum + loss.dropped, 0)
  const produced = losses.reduce((sum, loss) => sum + loss.produced, 0)
  return [
    `syscalls      ${calls.length} different, ${total} in all: ${top.join(', ')}`,
    `processes     ${of('exec').length} executions of ${execs.size} programs: ${top12(execs)}`,
    `files         ${files.length} opened or changed, ${looked} only looked at: ${top12(folders)}`,
    `destinations  ${flows.length === 0 ? 'none' : [...new Set(flows.map(flow => `${printable(flow.name ?? flow.address)}:${flow.port} ${flow.decision}`))].join(', ')}`,
    `API calls     ${of('api.request').length}: ${[...new Set(of('api.request').map(call => `${call.method} ${printable(call.path)}`))].join(', ')}`,
    `credentials   ${of('credential').map(one => `${one.kind} ${one.name} ${one.outcome}`).join(', ') || 'none'}`,
    `losses        ${dropped} of ${produced} events dropped`,
  ].join('\n')
}

function top12(counts: ReadonlyMap<string, number>): string {
  const sorted = [...counts].sort((a, b) => b[1] - a[1])
  const shown = sorted.slice(0, 12).map(([name, count]) => `${printable(name)}${count > 1 ? ` ×${count}` : ''}`).join(', ')
  return sorted.length > 12 ? `${shown}, and ${sorted.length - 12} more` : shown
}
