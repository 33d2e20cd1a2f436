import { releaseMachine } from '../../agent/release.ts';
import type { RunVerb } from '../cli.ts';
import { styled } from '../output.ts';
import { changing } from '../session.ts';

/** `stillpoint release MACHINE`: takes our checkpoints off a machine. */
export const release: RunVerb = (cli, [machine = '']) =>
  changing(cli, async ({ agent }) => {
    const { terminal } = cli;
    const released = await releaseMachine(agent.parts, machine);
    if (terminal.json) {
      terminal.object(released);
      return released.left.length === 0 ? 0 : 3;
    }
    const { checkpoints, bitmaps, left } = released;
    terminal.out(
      styled('green', 'released '),
      styled('bold', released.machine.name),
      `: ${checkpoints.length} checkpoint(s) deleted${bitmaps.length === 0 ? '' : `, ${bitmaps.length} bitmap(s) removed from its images`}`,
    );
    if (checkpoints.length > 0) terminal.remark('its next backup in mode disk reads everything');
    for (const { image, name, reason } of left)
      terminal.warning(`bitmap ${name} is left in ${image}: ${reason}`);
    return left.length === 0 ? 0 : 3;
  });
