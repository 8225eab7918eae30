import type { Command } from 'commander'
import { print } from './io.ts'

export function completionCommand(program: Command): void {
  program.command('completion')
    .description('a completion script for bash: source <(ambit completion)')
    .action(() => {
      const commands = program.commands.map(command => command.name())
      const cases = program.commands.map(command => `    ${command.name()}) words="${command.options.map(option => option.long).join(' ')} --help" ;;`)
      print(`_ambit() {
  local current=\${COMP_WORDS[COMP_CWORD]} words
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "${commands.join(' ')}" -- "$current"))
    return
  fi
  case \${COMP_WORDS[1]} in
${cases.join('\n')}
  esac
  if [[ $current == -* ]]; then COMPREPLY=($(compgen -W "$words" -- "$current")); else COMPREPLY=($(compgen -f -- "$current")); fi
}
complete -o filenames -F _ambit ambit`)
    })
}
