import type { RunVerb } from '../cli.ts';
import type { Check } from '../doctor/check.ts';
import { checkHost } from '../doctor/checks.ts';
import { styled } from '../output.ts';
import { reading } from '../session.ts';

/** `stillpoint doctor`: exit 1 when something fails, as all does for which `status` exits with 3; a warning is none. */
export const doctor: RunVerb = (cli) =>
  reading(cli, async (session) => {
    const checks = await checkHost(session, cli.configPath);
    if (cli.terminal.json) cli.terminal.object({ checks });
    else for (const check of checks) print(check);
    return checks.some(({ verdict }) => verdict === 'fail') ? 1 : 0;

    function print({ name, verdict, message, hint }: Check): void {
      const styles = { ok: 'green', warn: 'yellow', fail: 'red' } as const;
      cli.terminal.out(styled(styles[verdict], verdict.padEnd(5)), styled('bold', name), `: ${message}`);
      if (hint === null) return;
      for (const [index, line] of hint.split('\n').entries())
        cli.terminal.out(index === 0 ? '      hint: ' : '        ', line);
    }
  });
