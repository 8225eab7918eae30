import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import type { AmbitError } from '../../src/errors.ts'
import { compile, type Scope } from '../../src/pipeline/github/compile.ts'
import { Evaluator, data } from '@actions/expressions'
import { parseExpression, segments } from '../../src/pipeline/github/expressions.ts'
import { RUNTIME } from '../../src/pipeline/github/runtime.ts'
import { driver } from '../../src/pipeline/github/script.ts'
import { quote, shellOf, unexpandable } from '../../src/pipeline/github/shell.ts'
import { readWorkflow } from '../../src/pipeline/github/workflow.ts'

const dir = realpathSync(mkdtempSync(join(tmpdir(), 'ambit-test-')))
t.teardown(() => rmSync(dir, { recursive: true, force: true }))

let runs = 0
type Ran = { status: number | null; stdout: string; stderr: string; lines: string[]; workspace: string }
/** Runs a job's driver under a real bash, in a workspace of its own, with nothing in the environment but PATH. */
function run(steps: string, options: { top?: string; job?: string; env?: Record<string, string>; repository?: string } = {}): Ran {
  const workspace = join(dir, `run-${runs++}`)
  const directory = join(workspace, '.ambit/job')
  mkdirSync(directory, { recursive: true })
  const made = make(steps, { ...options, directory })
  writeFileSync(join(directory, 'driver.sh'), made.script)
  for (const [name, content] of Object.entries(made.files)) writeFileSync(join(directory, name), content)
  const { status, stdout, stderr } = spawnSync('bash', [join(directory, 'driver.sh')], { cwd: workspace, encoding: 'utf8', env: { PATH: '/usr/local/bin:/usr/bin:/bin', ...options.env } })
  return { status, stdout, stderr, lines: stdout.split('\n').filter(line => !line.startsWith('▶') && line !== ''), workspace }
}

function make(steps: string, options: { top?: string; job?: string; directory?: string; repository?: string }): ReturnType<typeof driver> {
  const text = `on: push\nname: it's\n${options.top ?? ''}jobs:\n  one:\n    runs-on: ubuntu-latest\n${options.job ?? ''}    steps:\n${steps.replace(/^/gm, '      ').trimEnd()}\n`
  const workflow = { ...readWorkflow(text, 'ci.yml'), digest: '' }
  return driver(workflow.jobs[0]!, { repository: options.repository ?? 'own/repo', workflow, directory: options.directory ?? '/d' })
}

function refused(t: Test, steps: string, line: number, why: RegExp, options: { top?: string; job?: string } = {}): void {
  let error: AmbitError | undefined
  try {
    make(steps, options)
  } catch (caught) {
    error = caught as AmbitError
  }
  t.equal(error?.code, 'PIPELINE_INVALID', String(why))
  t.match(error?.detail.why, why)
  t.equal(error?.detail.where?.line, line, `line of ${why}`)
}

t.test('steps run in order, each in the shell that it names, and say who they are', async t => {
  const { status, stdout, lines } = run(`
- name: First
  run: |
    echo "shell $0" "$-"
    false | echo piped
- run: shopt -o pipefail; echo "$-"
  shell: bash
- run: |
    print("from python", __import__("sys").version_info[0])
  shell: python
- run: echo "sh $0"
  shell: sh
- run: print "perl $0\\n";
  shell: perl -w {0}
- run: pwd
  working-directory: sub/folder
- run: cat; echo "no input"
`.trim().replace('- name: First', '- run: mkdir -p sub/folder\n- name: First'))
  t.equal(status, 0)
  t.match(stdout, /▶ Run mkdir -p sub\/folder\n▶ First\nshell .*\/step-2\.sh [a-z]*e[a-zB]*\npiped\n▶ Run shopt/)
  t.match(lines[2], /pipefail\s+on/)
  t.ok(lines.includes('from python 3'))
  t.ok(lines.some(line => /^perl .*step-6$/.test(line)))
  t.ok(lines.some(line => line.endsWith('/sub/folder')))
  t.equal(lines.at(-1), 'no input')
})

t.test('GITHUB_ENV, GITHUB_OUTPUT and GITHUB_PATH reach later steps', async t => {
  const { status, lines, stderr } = run(`
- id: Make
  run: |
    mkdir bin other; printf '#!/bin/sh\\necho mine' > bin/mine; chmod +x bin/mine
    echo "PLAIN=a=b <<c" >> "$GITHUB_ENV"
    printf 'MANY<<END\\none\\n\\n  END\\nthree\\nEND\\nEMPTY=\\nNONE<<X\\nX\\n' >> "$GITHUB_ENV"
    printf 'Name=value\\r\\nmore<<__\\n$(id)\\n"q" \\047\\n__\\n' >> "$GITHUB_OUTPUT"
    printf '%s\\n' "$PWD/other" "$PWD/bin" >> "$GITHUB_PATH"
    echo '# hi' >> "$GITHUB_STEP_SUMMARY"
    echo "GITHUB_ACTOR=evil" >> "$GITHUB_ENV"
    printf 'LAST=no newline' >> "$GITHUB_ENV"
    echo "here PLAIN=$\{PLAIN-unset}"
- run: |
    printf '[%s]\\n' "$PLAIN" "$MANY" "$EMPTY" "$NONE" "$LAST" "$\{GITHUB_ACTOR-none}"
    mine
    echo "\${{ steps.make.outputs.name }}" \${{ steps.MAKE.outputs.NAME }}
    echo "\${{ steps.make.outputs.more }}|\${{ steps.make.outputs.absent }}|\${{ steps.nobody.outcome }}"
- if: env.PLAIN == 'over' && env.LAST == 'NO newline' && steps.make.outputs.name == 'value'
  env: { E: "\${{ env.PLAIN }}/\${{ steps.make.outcome }}", PLAIN: over }
  run: echo "$E $PLAIN \${{ env.PLAIN }}"
- run: echo "$PLAIN"
`.trim())
  t.equal(status, 0, stderr)
  t.same(lines, [
    'here PLAIN=unset', '[a=b <<c]', '[one', '  END', 'three]', '[]', '[]', '[no newline]', '[none]', 'mine', 'value value', '$(id)', '"q" \'||', 'a=b <<c/success over over', 'a=b <<c',
  ])
  t.match(stderr, /GITHUB_ACTOR belongs to the runner/)

  for (const [line, why] of [['A<<EOF\\nnever', /delimiter "EOF" was not found/], ['nonsense', /neither/], ['=x', /no name/], ['A<<', /no delimiter/], ['NODE_OPTIONS=--require=./x.js', /NODE_OPTIONS/]] as const) {
    const bad = run(`- run: printf '${line}\\n' >> "$GITHUB_ENV"\n- run: echo never`)
    t.equal(bad.status, 1, line)
    t.match(bad.stderr, why)
    t.match(bad.stdout, /▷ Run echo never \(skipped\)/)
  }
})

t.test('what fails, what is skipped and what runs all the same', async t => {
  const { status, stdout } = run(`
- id: soft
  continue-on-error: true
  run: exit 7
- run: echo "soft \${{ steps.soft.outcome }} \${{ steps.soft.conclusion }} \${{ job.status }}"
- id: hard
  run: exit 3
- run: printf 'never%s' -success
- if: failure()
  run: echo "on failure \${{ steps.hard.outcome }} \${{ job.status }}"
- if: \${{ always() && steps.hard.conclusion == 'failure' }}
  run: echo always
- if: cancelled()
  run: printf 'never%s' -cancelled
- if: "! success()"
  run: echo not-success
- if: success() || steps.soft.outcome == 'failure'
  run: echo either
- if: "failure() && contains(fromJSON('[\\"x\\", \\"FAILURE\\"]'), steps.hard.outcome)"
  run: echo listed
- if: failure() && (startsWith(steps.hard.outcome, 'FAIL') && endsWith(steps.hard.outcome, 'ure') && contains(format('<{0}>', steps.hard.outcome), 'e>'))
  run: echo functions
- if: failure()
  continue-on-error: \${{ steps.hard.outcome == 'failure' }}
  run: exit 1
`.trim())
  t.equal(status, 1)
  for (const word of ['soft failure success success', 'on failure failure failure', 'always', 'not-success', 'either', 'listed', 'functions']) t.match(stdout, `\n${word}\n`)
  t.notMatch(stdout, /never-/)
  t.match(stdout, /✗ Run exit 3: exit status 3/)
  t.match(stdout, /▷ Run printf 'never%s' -success \(skipped\)/)

  t.equal(run('- run: exit 1\n  continue-on-error: true').status, 0)
  t.equal(run('- run: exit 1\n- if: always()\n  run: "true"').status, 1)
  t.equal(run('- run: no-such-program-here').status, 1)
  t.equal(run('- run: "true"\n  working-directory: nowhere').status, 1)
  t.equal(run('- if: false\n  run: exit 1').status, 0)
  t.equal(run('- if: \'\'\n  run: exit 1').status, 1)
  // A string that is not empty is true, whatever stands in it; GitHub does the same.
  t.match(run('- if: "x ${{ false }}"\n  run: echo ran').stdout, /ran/)
  const slow = run('- run: sleep 20; echo never\n  timeout-minutes: 0.005')
  t.equal(slow.status, 1)
  t.match(slow.stdout, /exit status 124/)
})

t.test('values are data, never code, unless GitHub itself would paste them into a script', async t => {
  const mark = join(dir, 'pwned')
  const hostile = [`$(touch ${mark})`, `\`touch ${mark}\``, `'; touch ${mark}; '`, `"; touch ${mark}; "`, `\\'$(touch ${mark})`, `a\n touch ${mark}\n`, `; touch ${mark} #`, `$\{x:=$(touch ${mark})}`, `%s%n\\x24(touch ${mark})`, `a[$(touch ${mark})]`, '\'', '\'\'\'', '\\', '!!', '*', '~', '-n', '--help', '\u0001\u007f', 'é ☃', ' lead and trail ', '\t']
  const python = (body: string): string => `- shell: python\n  run: ${JSON.stringify(`import json, os\n${body}`)}\n`
  const yaml = (text: string): string => JSON.stringify(text).replace(/\u007f/g, '\\x7f')
  const values = Object.fromEntries(hostile.map((value, i) => [`VALUE_${i}`, value]))
  const mapping = `{ ${Object.entries(values).map(([name, value]) => `${name}: ${yaml(value)}`).join(', ')} }`
  const show = python('print(json.dumps({k: v for k, v in os.environ.items() if k.startswith("VALUE_")}))')
  for (const [level, options, own] of [
    ['workflow', { top: `env: ${mapping}\n` }, ''],
    ['job', { job: `    env: ${mapping}\n` }, ''],
    ['step', {}, `  env: ${mapping}\n`],
    ['secret', { env: Object.fromEntries(Object.entries(values).map(([name, value]) => [name.replace('VALUE', 'HOSTILE'), value])) }, `  env:\n${hostile.map((_, i) => `    VALUE_${i}: \${{ secrets.HOSTILE_${i} }}\n`).join('')}`],
  ] as const) {
    const ran = run(`${show}${own}`, options)
    t.same(ran.status === 0 && JSON.parse(ran.lines[0]!), values, `${level} hands each over as it is ${ran.stderr}`)
  }
  for (const value of hostile) {
    // A secret or an output in a script is a variable: the shell expands it and reads no more. A name is shown, not obeyed.
    const scripted = run(`- name: ${yaml(value)}\n  id: a\n  run: |\n    { echo "o<<_E_"; printf "%s\\n" "$SECRET"; echo _E_; } >> "$GITHUB_OUTPUT"\n  env: { SECRET: "\${{ secrets.HOSTILE }}" }\n- run: printf '%s\\0' "\${{ secrets.HOSTILE }}" "\${{ steps.a.outputs.o }}"\n- if: steps.a.outputs.o == env.none\n  run: echo`, { env: { HOSTILE: value } })
    t.equal(scripted.stdout.slice(scripted.stdout.indexOf('▶ Run printf')).split('\n').slice(1).join('\n').split('\0')[0], value, value)
    t.match(scripted.stdout.slice(scripted.stdout.indexOf('▶ Run printf')).split('\0')[1], value)
  }
  const names = ['a-b', 'x.y', `$(touch ${mark})`, 'a b', '@', '*', 'UID', 'RANDOM', 'name', 'status', 'ambit_env', 'ambit_odd', 'BASH_ENV_', 'V', 'T', 'id', 'IFS']
  const named = Object.fromEntries(names.map(name => [name, `value of ${name}`]))
  const ask = python(`print(json.dumps({k: os.environ.get(k) for k in ${JSON.stringify(names)}}))`)
  t.same(JSON.parse(run(ask, { job: `    env: ${JSON.stringify(named)}\n` }).lines[0]!), named, 'no name of a variable does harm, or is lost')
  const cells = ['name', 'status', 'V', 'T', 'id', 'title', 'file', 'key', 'kind', 'line', 'value']
  const inherited = Object.fromEntries(cells.map(name => [name, 'from the cell']))
  t.same(JSON.parse(run(python(`print(json.dumps({k: os.environ.get(k) for k in ${JSON.stringify(cells)}}))`), { env: inherited }).lines[0]!), inherited, 'the driver\'s own variables do not show')
  t.notOk(existsSync(mark), 'nothing was executed')

  // The attack works where GitHub has it too: what is known beforehand is pasted into the script.
  const pasted = run('- run: echo ${{ github.repository }}', { repository: `o/$(touch ${mark})` })
  t.equal(pasted.status, 0)
  t.ok(existsSync(mark))
  rmSync(mark)

  fc.assert(fc.property(fc.string({ unit: 'binary' }).filter(text => !text.includes('\0') && Buffer.from(text).toString() === text), text => {
    const { stdout } = spawnSync('bash', ['-c', `printf %s ${quote(text)}`], { encoding: 'utf8' })
    return stdout === text
  }), { numRuns: 60 })
})

t.test('a step has a secret or the token only if the workflow hands it over', async t => {
  const ran = run(`
- run: echo "\${GITHUB_TOKEN-none} \${NPM_TOKEN-none} \${OTHER-none}"
- run: echo "$T $N [$M]"
  env: { T: "\${{ github.token }}", N: "\${{ secrets.npm_token }}", M: "\${{ secrets.MISSING }}" }
- run: curl --version > /dev/null; echo "\${{ secrets.GITHUB_TOKEN }}" \${{ secrets.NPM_TOKEN && 'yes' || 'no' }} \${{ secrets.MISSING && 'yes' || 'no' }}
`.trim(), { env: { GITHUB_TOKEN: 'ghs_x', NPM_TOKEN: 'n p m', OTHER: 'stays' } })
  t.equal(ran.status, 0, ran.stderr)
  t.same(ran.lines, ['none none stays', 'ghs_x n p m []', 'ghs_x yes no'])
})

t.test('what GitHub puts in variables is taken from them, and missed before anything runs', async t => {
  const steps = '- run: touch ran\n- run: echo ${{ github.sha }} ${{ github.repository }} ${{ github.repository_owner }} ${{ github.workflow == \'IT\'\'S\' }} ${{ github.job }} ${{ runner.os }} ${{ github.api_url }}'
  const missing = run(steps)
  t.equal(missing.status, 2)
  t.match(missing.stderr, /ci\.yml:8: \$\{\{ github\.sha \}\} needs GITHUB_SHA/)
  t.notOk(existsSync(join(missing.workspace, 'ran')))
  t.same(run(steps, { env: { GITHUB_SHA: 'abc' } }).lines, ['abc own/repo own true one Linux https://api.github.com'])
})

t.test('what cannot be done here is refused with its line, before anything runs', async t => {
  const at = 7
  refused(t, '- run: "true"\n- run: echo ${{ github.event.number }}', at + 1, /the event that starts a workflow/)
  refused(t, '- run: |\n    line\n    echo ${{ vars.X }}', at + 2, /configuration variables/)
  refused(t, '- run: echo ${{ inputs.x }}', at, /inputs/)
  refused(t, '- run: echo\n  if: needs.a.result == \'success\'', at + 1, /another job/)
  refused(t, '- run: echo ${{ toJSON(steps) }}', at, /toJSON/)
  refused(t, '- run: echo ${{ toJSON(steps.a.outputs.b) }}', at, /toJSON/)
  refused(t, '- run: echo ${{ hashFiles(\'x\') }}', at, /hashFiles/)
  refused(t, '- run: |\n    echo \'${{ steps.a.outputs.b }}\'', at + 1, /single quotes/)
  refused(t, '- run: |\n    cat <<\'E\'\n    ${{ secrets.A }}\n    E', at + 2, /here-document/)
  refused(t, '- run: print("${{ env.X }}")\n  shell: python', at, /no shell reads it/)
  refused(t, '- run: echo ::set-output name=a::b', at, /workflow command/)
  refused(t, '- run: echo\n  timeout-minutes: ${{ fromJSON(env.X) }}', at + 1, /fromJSON/)
  refused(t, '- uses: actions/checkout@v4', at, /checkout@v4/)
  refused(t, '- run: dir\n  shell: cmd', at + 1, /Windows/)
  refused(t, '- run: x\n  shell: perl', at + 1, /\{0\}/)
  refused(t, '- run: x\n  env: { "A=B": x }', at + 1, /not a name/)
  refused(t, '- run: x\n  env: { A: "\\0" }', at + 1, /NUL/)
})

t.test('a script\'s quoting is followed as far as it decides what a variable does', async t => {
  const stands = (script: string): boolean => unexpandable(segments(script), part => 'expression' in part) === null
  const E = '${{ x }}'
  for (const good of [E, `"${E}"`, `"'${E}'"`, `'a'${E}`, `$(echo "${E}")`, `"$(echo '${'a'}')${E}"`, `# it's\n${E}`, `a#'b' ${E}`, `\\'${E}`, `$'a\\'b' ${E}`, `cat <<E\n'${E}\nE\n`, `cat <<'E'\n'\nE\n${E}`, `cat <<-"E"\n\t'\n\tE\n${E}`, `: $((1<<2)) ${E}`, `cat <<<'x' ${E}`, `\`echo ${E}\``, `\${x:-'}'} ${E}`, `cat <<A <<'B'\nA\n'\nB\n${E}`]) t.ok(stands(good), good)
  for (const bad of [`'${E}'`, `'a\n${E}'`, `$'${E}'`, `$(echo '${E}')`, `"$(echo '${E}')"`, `cat <<'E'\n${E}\nE\n`, `cat <<\\E\n${E}\nE`, `cat <<"E"\n\n${E}`, `a # it's\n'${E}'`, `cat <<A <<'B'\nA\n${E}\nB\n`]) t.notOk(stands(bad), bad)
  t.match(shellOf('bash -l "a b" {0}'), { words: ['bash', '-l', 'a b', '{0}'], posix: true })
  t.match(shellOf('perl {0}'), { posix: false })
})

t.test('expressions come out in bash as GitHub\'s own evaluator has them', async t => {
  const outputs = { a: 'Yes', n: '007.50', e: '', t: 'true', u: 'ÄÖ', x: '-3' }
  const term = fc.oneof(
    fc.constantFrom(...Object.keys(outputs)).map(name => `steps.s.outputs.${name}`), fc.constant('steps.s.outputs.missing'),
    fc.constantFrom('\'yes\'', '\'\'', 'null', 'true', 'false', '0', '7.5', '-3', '\'7.5\'', '10', '\' -3 \'', '\'b\''),
  )
  const { expr } = fc.letrec<{ expr: string }>(tie => ({
    expr: fc.oneof({ maxDepth: 4 }, term,
      fc.tuple(tie('expr'), fc.constantFrom('==', '!=', '<', '>', '<=', '>=', '&&', '||'), tie('expr')).map(([a, op, b]) => `(${a} ${op} ${b})`),
      tie('expr').map(a => `!(${a})`),
      fc.tuple(fc.constantFrom('contains', 'startsWith', 'endsWith'), tie('expr'), tie('expr')).map(([f, a, b]) => `${f}(${a}, ${b})`),
      fc.tuple(tie('expr'), tie('expr')).map(([a, b]) => `format('<{0}{{}}{1}>', ${a}, ${b})`)),
  }))
  const step = new data.Dictionary({ key: 'outputs', value: new data.Dictionary(...Object.entries(outputs).map(([key, value]) => ({ key, value: new data.StringData(value) }))) })
  const context = new data.Dictionary({ key: 'steps', value: new data.Dictionary({ key: 's', value: step }) })
  const scope: Scope = { job: 'j', file: 'f', known: new Map(), env: 'step', needs: new Map() }
  const sources = fc.sample(expr, { numRuns: 400, seed: 1 })
  const functions = sources.map((source, i) => {
    const compiled = compile(source, 1, scope)
    return `f${i}() {\n${'code' in compiled ? compiled.code : `V=${quote(compiled.value.coerceString())}`}\n}\nf${i}; printf '%s\\0' "$V"`
  })
  const known = Object.entries(outputs).map(([name, value]) => `ambit_outputs[':s/${name}']=${quote(value)}`)
  const { stdout, stderr } = spawnSync('bash', ['-s'], { input: `${RUNTIME}\n${known.join('\n')}\n${functions.join('\n')}\n`, encoding: 'utf8', env: { PATH: '/usr/bin:/bin', LC_ALL: 'C.UTF-8' } })
  t.equal(stderr, '')
  const got = stdout.split('\0')
  sources.forEach((source, i) => t.equal(got[i], new Evaluator(parseExpression(source), context).evaluate().coerceString(), source))
})
