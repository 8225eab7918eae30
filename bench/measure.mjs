// What the benches share: interleaved rounds, so that a drift of the machine meets every candidate alike.
import { spawnSync } from 'node:child_process'

/** @returns {number[]} sorted */
const sorted = values => [...values].sort((a, b) => a - b)
export const quantile = (values, q) => sorted(values)[Math.min(values.length - 1, Math.floor(values.length * q))]

/** Runs one command; its wall time in ms. Throws when it fails: a failed launch is not a fast one. */
export function time(command, options = {}) {
  const began = process.hrtime.bigint()
  const { status, stderr, error } = spawnSync(command[0], command.slice(1), { stdio: ['ignore', 'ignore', 'pipe'], ...options })
  const ms = Number(process.hrtime.bigint() - began) / 1e6
  if (error !== undefined || status !== 0) throw new Error(`${command.join(' ')}: ${error?.message ?? `status ${status}: ${stderr}`}`)
  return ms
}

/** What the one before left to do in the background must not be paid for by the next. */
function settle() {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 30)
}

/** candidates: {name, run(round): number (ms) | null} – prints minimum, median, p90 and the ratio to the reference's median. */
export function compare(title, candidates, rounds, reference) {
  const times = new Map(candidates.map(({ name }) => [name, []]))
  for (let round = -1; round < rounds; round++) {
    for (const { name, run } of candidates) {
      settle()
      const ms = run(round)
      if (round >= 0) times.get(name).push(ms)
    }
  }
  const base = quantile(times.get(reference), 0.5)
  process.stdout.write(`\n${title} (${rounds} interleaved rounds, one more to warm up)\n`)
  process.stdout.write(`${''.padEnd(40)}${['floor', 'median', 'p90'].map(text => text.padStart(10)).join('')}   median against ${reference}\n`)
  for (const [name, values] of times) {
    const [floor, median, p90] = [Math.min(...values), quantile(values, 0.5), quantile(values, 0.9)]
    process.stdout.write(`${name.padEnd(40)}${[floor, median, p90].map(ms => `${ms.toFixed(2)} ms`.padStart(10)).join('')}   ${(median / base).toFixed(2)}\n`)
  }
}

export const rounds = fallback => Number(process.env.AMBIT_BENCH_ROUNDS ?? fallback)
