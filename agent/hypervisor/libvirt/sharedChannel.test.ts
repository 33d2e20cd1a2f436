import t from 'tap';
import { SharedChannel } from './sharedChannel.ts';

/** A child that answers when the test says so. */
class FakeChild {
  alive = true;
  readonly asked: string[] = [];
  readonly #gone = Promise.withResolvers<void>();
  #answers: (() => void)[] = [];

  get end(): Promise<void> {
    return this.#gone.promise;
  }

  readonly request: SharedChannel['request'] = async (operation) => {
    this.asked.push(operation);
    await new Promise<void>((resolve) => this.#answers.push(resolve));
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- nobody reads the answer
    return undefined as never;
  };

  answer(): void {
    this.#answers.shift()?.();
  }

  kill(): void {
    this.alive = false;
    this.#gone.resolve();
  }
}

void t.test('those who ask one shared child have their turns one after the other', async (t) => {
  const shared = new SharedChannel(new FakeChild());
  t.equal(await shared.take(60_000), true);
  const turns: string[] = [];
  const second = shared.take(60_000).then((hasTurn) => turns.push(`second ${hasTurn}`));
  const third = shared.take(60_000).then((hasTurn) => turns.push(`third ${hasTurn}`));
  shared.giveBack();
  await second;
  t.same(turns, ['second true']);
  shared.giveBack();
  await third;
  shared.giveBack();
  t.equal(await shared.take(60_000), true, 'and it is free in the end');
});

void t.test('whoever has no patience asks elsewhere, and keeps nobody behind him waiting', async (t) => {
  const shared = new SharedChannel(new FakeChild());
  await shared.take(60_000);
  t.equal(await shared.take(1), false);
  const patient = shared.take(60_000);
  shared.giveBack();
  t.equal(await patient, true);
});

void t.test('a child that is not needed any more ends after the question that it is about', async (t) => {
  const child = new FakeChild();
  const shared = new SharedChannel(child);
  await shared.take(60_000);
  const answered = shared.request('machines', [], 60_000);
  const waiting = shared.take(60_000);
  const retired = shared.retire();
  t.equal(await waiting, false, 'who waits is told to ask elsewhere');
  t.equal(await shared.take(60_000), false, 'and so is who comes later');
  t.equal(child.alive, true);
  child.answer();
  await answered;
  shared.giveBack();
  await retired;
  t.same([child.alive, child.asked], [false, ['machines']]);
});

void t.test('a shared child that nobody asks ends at once, and a lost one is not taken', async (t) => {
  const child = new FakeChild();
  const shared = new SharedChannel(child);
  await shared.retire();
  t.equal(child.alive, false);
  const lost = new FakeChild();
  lost.kill();
  t.equal(await new SharedChannel(lost).take(60_000), false);
});
