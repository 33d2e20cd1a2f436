import { randomInt } from 'node:crypto';
import t from 'tap';
import { randomFrom } from '../sim/history.ts';
import { HistoryStage, type Mode, type Victim } from './history/stage.ts';

const seed = Number(process.env['STILLPOINT_HISTORY_SEED'] ?? randomInt(2 ** 31));
const rounds = Number(process.env['STILLPOINT_HISTORY_ROUNDS'] ?? 8);
const victims: readonly Victim[] = ['agent', 'libvirtd', 'qemu'];
const whenRunning: readonly Mode[] = ['disk', 'disk', 'disk', 'live', 'save'];
/** Mostly into the one that has a backup already: an increment. */
const choices = [['plain'], ['plain'], ['reflink'], ['plain', 'reflink'], ['plain', 'reflink']] as const;

void t.test(
  `random histories of a real guest: every backup and every restore is, byte for byte, what was there (STILLPOINT_HISTORY_SEED=${seed})`,
  async (t) => {
    t.comment(`STILLPOINT_HISTORY_SEED=${seed} STILLPOINT_HISTORY_ROUNDS=${rounds}`);
    const random = randomFrom(seed);
    const pick = <T>(from: readonly T[]): T => {
      const one = from[Math.floor(random() * from.length)];
      if (one === undefined) throw new Error('nothing to choose from');
      return one;
    };
    await using stage = await HistoryStage.start(random);
    for (let round = 0; round < rounds && t.passing(); round += 1) {
      await t.test(`round ${round}`, async (t) => {
        if (random() < ((await stage.isRunning()) ? 0.1 : 0.8)) t.comment(await stage.switch());
        const running = await stage.isRunning();
        t.comment(await stage.change());
        if (random() < 0.15) t.comment(await stage.resize());
        if (!running && random() < 0.4) t.comment(await stage.cut());
        if (!running && random() < 0.5) t.comment(await stage.attachOrDetach());
        const mode: Mode = running ? pick(whenRunning) : 'offline';
        const storages = pick(choices);
        if (random() < 0.2) {
          const victim = pick(mode === 'offline' ? ['agent' as const] : victims);
          t.comment(`${mode} into ${storages.join(' and ')}, ${victim} killed`);
          await stage.backUpWithKill(t, mode, storages, victim);
        } else {
          t.comment(`${mode} into ${storages.join(' and ')}`);
          await stage.backUp(t, mode, storages);
        }
        const thinned = await stage.thin(t);
        if (thinned !== undefined) t.comment(thinned);
        if (stage.hasBackup && random() < 0.15) t.comment(`restored ${await stage.restore(t)}`);
      });
    }
    t.comment(`${stage.increments} volumes were compared as increments`);
    await t.test('at the end every backup still holds what it held', (t) => stage.compareAll(t));
  },
);
