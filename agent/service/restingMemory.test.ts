import t from 'tap';
import { createLogger } from '../../common/log.ts';
import { eventually } from '../../test/lab/eventually.ts';
import { JobSignals } from '../api/jobSignals.ts';
import { giveBackAtRest } from './restingMemory.ts';

const log = createLogger({ level: 'silent' });

void t.test('memory is given back after the start, and each time that the last job has ended', async (t) => {
  const ending = new AbortController();
  const engine = { atWork: ['a'], looks: 0 };
  const looked = {
    get atWork() {
      engine.looks++;
      return engine.atWork;
    },
  };
  let given = 0;
  const giveBack = async (): Promise<void> => {
    given++;
  };
  const looksAgain = async (): Promise<void> => {
    const before = engine.looks;
    await eventually(() => engine.looks > before + 1);
  };
  const jobSignals = new JobSignals();
  const resting = giveBackAtRest(looked, { log, signal: ending.signal, jobSignals, lookMs: 1, giveBack });
  await looksAgain();
  t.equal(given, 0, 'a job is at work from the start on');
  engine.atWork = [];
  await looksAgain();
  await looksAgain();
  t.equal(given, 1, 'once');
  engine.atWork = ['b', 'c'];
  jobSignals.changed('b');
  await looksAgain();
  engine.atWork = ['c'];
  await looksAgain();
  t.equal(given, 1);
  engine.atWork = [];
  await looksAgain();
  t.equal(given, 2);
  jobSignals.changed('d');
  await looksAgain();
  t.equal(given, 3, 'also after one that no look has seen at work');
  ending.abort();
  await resting;
});

void t.test('with a C library that has no such call the service goes on without it', async (t) => {
  const { signal } = new AbortController();
  const giveBack = (): Promise<void> => Promise.reject(new Error('no such function'));
  await giveBackAtRest({ atWork: [] }, { log, signal, jobSignals: new JobSignals(), lookMs: 1, giveBack });
  t.pass('it has ended');
});
