import { CliError } from './errors.ts';
import { globalOptions, type VerbOption, verbs } from './verbs.ts';

/** The long form of an option, such as `--all`. */
function longOf({ flags }: VerbOption): string {
  return /--[a-z-]+/.exec(flags)?.[0] ?? flags;
}

const globals = globalOptions.map(longOf);
const firstWords = [...new Set(verbs.map(({ name }) => name.split(' ')[0] ?? name))];
/** Verbs of two words: what may come after the first. */
function secondWords(word: string): readonly string[] {
  return verbs
    .filter(({ name }) => name.startsWith(`${word} `))
    .map(({ name }) => name.slice(word.length + 1));
}
const groups = firstWords.filter((word) => secondWords(word).length > 0);

/** Options of all verbs that begin with a word. */
function optionsOf(word: string): readonly string[] {
  const own = verbs
    .filter(({ name }) => name.split(' ')[0] === word)
    .flatMap(({ options }) => options.map(longOf));
  return [...new Set([...own, ...globals, '--help'])];
}

/** The lines of a completion script. @throws CliError USAGE */
export function completionFor(shell: string): readonly string[] {
  switch (shell) {
    case 'bash':
      return bash();
    case 'zsh':
      // zsh runs bash's completions; one script less that can be wrong.
      return ['#compdef stillpoint', 'autoload -U +X bashcompinit && bashcompinit', ...bash()];
    case 'fish':
      return fish();
    default:
      throw new CliError(
        'USAGE',
        `there are no completions for "${shell}"`,
        'stillpoint completion bash, zsh or fish',
      );
  }
}

function bash(): readonly string[] {
  return [
    '_stillpoint() {',
    // No `local -a`, no `mapfile`: zsh and old bash run this too.
    '  local word="${COMP_WORDS[COMP_CWORD]}" verb="" index words',
    '  for ((index = 1; index < COMP_CWORD; index++)); do',
    '    case "${COMP_WORDS[index]}" in -*) ;; *) verb="${COMP_WORDS[index]}"; break ;; esac',
    '  done',
    '  case "$verb" in',
    `    "") words="${[...firstWords, ...globals, '--version', '--help'].join(' ')}" ;;`,
    ...firstWords.map(
      (word) => `    ${word}) words="${[...secondWords(word), ...optionsOf(word)].join(' ')}" ;;`,
    ),
    '  esac',
    '  COMPREPLY=($(compgen -W "$words" -- "$word"))',
    '}',
    'complete -o default -F _stillpoint stillpoint',
  ];
}

function fish(): readonly string[] {
  const say = (text: string): string => text.replaceAll("'", String.raw`\'`);
  const option = (condition: string, item: VerbOption): string =>
    `complete -c stillpoint${condition} -l ${longOf(item).slice(2)} -d '${say(item.description)}'`;
  return [
    'complete -c stillpoint -f',
    ...globalOptions.map((item) => option('', item)),
    ...firstWords.map(
      (word) =>
        `complete -c stillpoint -n __fish_use_subcommand -a ${word} -d '${say(verbs.find(({ name }) => name === word)?.summary ?? `${word}: ${secondWords(word).join(', ')}`)}'`,
    ),
    ...groups.map(
      (word) =>
        `complete -c stillpoint -n '__fish_seen_subcommand_from ${word}' -a '${secondWords(word).join(' ')}'`,
    ),
    ...verbs.flatMap(({ name, options }) =>
      options.map((item) =>
        option(` -n '__fish_seen_subcommand_from ${name.split(' ').at(-1) ?? name}'`, item),
      ),
    ),
  ];
}
