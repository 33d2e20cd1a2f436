import type { RunVerb } from '../cli.ts';
import { completionFor } from '../completion.ts';

/** `stillpoint completion SHELL`. */
export const completion: RunVerb = async (cli, [shell = '']) => {
  for (const line of completionFor(shell)) cli.terminal.out(line);
  return 0;
};
