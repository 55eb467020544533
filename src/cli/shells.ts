/** Completion: small scripts for the shells, which ask `nexusctl __complete` for the words that fit. */
import { Fault } from '../api/fault.ts';
import { out } from './cli.ts';

const SCRIPTS: Record<string, string> = {
  bash: `_nexusctl() {
  local IFS=$'\\n'
  COMPREPLY=($(nexusctl __complete "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _nexusctl nexusctl
`,
  zsh: `#compdef nexusctl
_nexusctl() {
  local -a found
  found=("\${(@f)$(nexusctl __complete "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -a found
}
compdef _nexusctl nexusctl
`,
  fish: `function __nexusctl_complete
  set -l words (commandline -opc) (commandline -ct)
  nexusctl __complete $words[2..-1] 2>/dev/null
end
complete -c nexusctl -f -a '(__nexusctl_complete)'
`,
};

export const printScript = (shell: string): void => {
  const script = SCRIPTS[shell];
  if (script === undefined) {
    throw new Fault('invalid', `Cannot print a completion script for ${shell}: it must be bash, zsh or fish.`);
  }
  out(script);
};
