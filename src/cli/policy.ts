import { Option, type Command } from 'commander'
import { DEFAULT_POLICY, readPolicyFile } from '../contract/policy.ts'
import { readContractFile } from '../contract/read.ts'
import { AmbitError } from '../errors.ts'
import { readText } from '../text.ts'
import { print, printJson } from './io.ts'

export function policyCommand(program: Command): void {
  program.command('policy')
    .description('look at the admission policy of a host: what contracts may ask for, and who may run them')
    .argument('<action>', 'check')
    .argument('[file]', 'the policy', DEFAULT_POLICY)
    .option('--contract <file>', 'say whether the policy admits this contract')
    .addOption(new Option('--uid <n>', 'for whom; without it, for who asks').argParser(idNumber))
    .addOption(new Option('--gid <n>', 'and of which group').argParser(idNumber))
    .option('--json', 'the answer as JSON')
    .addHelpText('after', `
ambitd reads its policy once, when it starts, and does not start with one that it cannot read.
Example: ambit policy check policy.yaml --contract build.yaml
Exit status: 0 the policy is one, and admits the contract; 125 it does not admit it; 2 one of both cannot be read.`)
    .action((action: string, file: string, options) => {
      if (action !== 'check') throw new AmbitError('USAGE', { attempted: 'look at the policy', why: `"${action}" is no action`, remedy: 'write: ambit policy check [FILE] [--contract FILE]' })
      const policy = readPolicyFile(file)
      const rules = policy.document.rules.map(({ name }) => name)
      if (options.contract === undefined) {
        if (options.json) printJson({ valid: true, rules })
        else print(`${file}: ${rules.length} ${rules.length === 1 ? 'rule' : 'rules'}: ${rules.join(', ')}`)
        return
      }
      const contract = readContractFile(options.contract)
      const caller = { uid: options.uid ?? process.getuid!(), gid: options.gid ?? process.getgid!() }
      try {
        policy.admit(contract, caller, { text: readText(options.contract, 'the contract'), file: options.contract })
      } catch (error) {
        if (!options.json || !(error instanceof AmbitError)) throw error
        printJson({ valid: true, rules, admitted: false, error })
        process.exitCode = error.exitCode
        return
      }
      if (options.json) printJson({ valid: true, rules, admitted: true })
      else print(`${file} admits ${options.contract}`)
    })
}

function idNumber(text: string): number {
  if (/^\d{1,10}$/.test(text)) return Number(text)
  throw new AmbitError('USAGE', { attempted: 'read the options', why: `"${text}" is no id`, remedy: 'give a number, as `id -u` and `id -g` print it' })
}
