// Counts what a TAP stream says, by the assertions that have none below them.
import { Parser } from 'tap-parser'

/**
 * A parser to write TAP into; `counts`, `failures`, `skips` and `comments` grow as it goes. A skip whose reason is not expected is a failure:
 * a test that quietly does not run proves nothing. `onTop(result)` hears of each assertion of the outermost level.
 */
export function tapResults(expectedSkips, onTop = () => {}) {
  const counts = { passed: 0, failed: 0, skipped: 0 }
  const failures = []
  const skips = []
  const comments = []

  function follow(parser, trail) {
    let children = 0
    parser.on('child', sub => { children++; follow(sub, [...trail, sub.name]) })
    parser.on('comment', text => comments.push(text.replace(/^#\s*/, '').trim()))
    parser.on('assert', result => {
      if (trail.length === 0) onTop(result)
      // A subtest reports itself once more to its parent: only what has no children of its own counts.
      if (children > 0) { children--; return }
      const name = [...trail, result.name].join(' > ')
      if (result.skip) {
        counts.skipped++
        const reason = `${name}: ${result.skip}`
        skips.push(reason)
        if (!expectedSkips.some(expected => reason.includes(expected))) { counts.failed++; failures.push(`unexpected skip: ${reason}`) }
      } else if (result.todo) {
        counts.failed++
        failures.push(`todo: ${name}`)
      } else if (result.ok) counts.passed++
      else {
        counts.failed++
        failures.push(`${name}\n${JSON.stringify(result.diag, null, 2)}`)
      }
    })
  }

  const parser = new Parser()
  follow(parser, [])
  return { parser, counts, failures, skips, comments }
}
