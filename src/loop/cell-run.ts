import { spawn } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Contract } from '../contract/schema.ts'
import { writeContract } from '../contract/write.ts'
import { subscribe } from '../daemon/feed-client.ts'
import type { PrivateDaemon } from '../daemon/private-daemon.ts'
import { AmbitError } from '../errors.ts'
import type { EvidenceRecord } from '../evidence/records.ts'
import { verifyBundle, type VerifyReport } from '../evidence/verify.ts'
import { CLIENT } from '../package.ts'
import { judge, type Verdict } from '../verdict/verdict.ts'

export type CellRun = {
  name: string
  bundle: string
  status: number
  records: EvidenceRecord[]
  verdict: Verdict
  verified: VerifyReport
  wallMs: number
}

/**
 * Runs a command in a cell as `ambit run` does, by the native client; then reads the evidence from the daemon's feed,
 * like any other analyzer, and judges it. The bundle is written to `out/NAME`.
 */
export async function runInCell(daemon: PrivateDaemon, options: { name: string; contract: Contract; workspace: string; argv: string[]; out: string; onLine(line: string): void }): Promise<CellRun> {
  mkdirSync(options.out, { recursive: true })
  const contractFile = join(options.out, `${options.name}.contract.yaml`)
  const bundle = join(options.out, options.name)
  writeFileSync(contractFile, writeContract(options.contract))
  const began = performance.now()
  const child = spawn(CLIENT, ['run', '--socket', daemon.socket, '--json', '--contract', contractFile, '--evidence', bundle, '--', ...options.argv], { cwd: options.workspace, stdio: ['ignore', 'pipe', 'pipe'] })
  let summary: { cell: string } | undefined
  const complaint: string[] = []
  createInterface({ input: child.stdout }).on('line', line => options.onLine(line))
  createInterface({ input: child.stderr }).on('line', line => {
    if (line.startsWith('{"cell":')) summary = JSON.parse(line) as { cell: string }
    else {
      if (line.startsWith('ambit: ') || complaint.length > 0) complaint.push(line)
      options.onLine(line)
    }
  })
  const status = await new Promise<number>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) => resolve(code ?? (signal === null ? 1 : 128)))
  })
  const wallMs = performance.now() - began
  if (summary === undefined) {
    throw new AmbitError('LOOP_BROKEN', { attempted: `run the cell "${options.name}"`, why: complaint.join(' ').replace(/^ambit: /, '').replace(/\s+/g, ' ') || `the client ended with ${status}`, remedy: '`ambit doctor` shows what this host offers' })
  }
  const records: EvidenceRecord[] = []
  for await (const record of subscribe({ url: daemon.feed.url, token: daemon.feed.token, cell: summary.cell, from: 0 })) records.push(record)
  return { name: options.name, bundle, status, records, verdict: judge(options.contract, records), verified: await verifyBundle(bundle), wallMs }
}
