/**
 * The proof that a daemon can be killed at any instant: it dies before and after every step of a verb, and every step fails. Then what the API
 * says is true, nothing is left that no record accounts for, and the same command comes to its end.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FAULTS, Fault, type FaultCode } from '../../src/api/fault.ts';
import { poll, withDeadline } from '../../src/lib/deadline.ts';
import { isAlive } from '../../src/lib/proc.ts';
import { type Ground, truthful } from './ground.ts';

export interface Verb {
  name: string;
  /** In the order in which they come. */
  steps: readonly string[];
  prepare?: () => Promise<unknown>;
  run: () => Promise<unknown>;
  /** That is how a second command may be answered where the first one had done it all. */
  already?: FaultCode;
  /** Asked for where the daemon was to act by itself. */
  again?: () => Promise<unknown>;
  done: () => Promise<unknown>;
  /** Steps whose failure is no failure of the command. */
  survives?: readonly string[];
  /** Steps whose failure is told in the log alone, for the command fails of something else. */
  second?: readonly string[];
  /** Steps that make their own room where the disk is full. */
  makes_room?: readonly string[];
  /** Steps whose failure leaves files, which the next daemon removes. */
  swept?: readonly string[];
  clear?: () => Promise<unknown>;
}

const clear = async ({ w }: Ground, verb: Verb): Promise<void> => {
  await verb.clear?.();
  for (const vm of await w.client.vm.list({})) await w.client.vm.delete({ vm: vm.id });
  for (const ws of await w.client.ws.list({})) await w.client.ws.remove({ ws: ws.id });
};

/** The same command again, now that all is well. */
const converge = async (g: Ground, verb: Verb): Promise<void> => {
  await g.behave();
  try {
    await (verb.again ?? verb.run)();
  } catch (error) {
    if (!(error instanceof Fault) || verb.already !== error.code) throw error;
  }
  await verb.done();
  assert.deepEqual(await truthful(g.w), []);
  await clear(g, verb);
};

const dies = async (g: Ground, verb: Verb, where: string): Promise<void> => {
  const { w } = g;
  await verb.prepare?.();
  await g.fault(`die ${where}`);
  await verb.run().catch(() => {}); // its connection is cut
  assert.equal(await withDeadline(`its death ${where}`, 20_000, w.ended()), 'SIGKILL');
  // what it wrote last may still be on its way into the log
  await poll(
    `its last word ${where}`,
    10_000,
    async () => (await w.log()).endsWith(`told to die ${where}\n`) || undefined,
  );
  await g.fault();
  await w.start();
  assert.deepEqual(await truthful(w), []);
  await converge(g, verb);
};

/** `fail`: with an I/O error; `full`: as on a full disk, and the fault says that. */
const fails = async (g: Ground, verb: Verb, how: 'fail' | 'full', step: string): Promise<void> => {
  const { w } = g;
  await verb.prepare?.();
  await g.fault(`${how} ${step}`);
  const from = (await w.log()).length;
  const fault = await verb.run().then(
    () => undefined,
    (error: unknown) => error,
  );
  assert.equal(await g.wish(), '', 'it came to the step');
  if (!(await isAlive(w.daemon()))) {
    assert.equal(await w.ended(), how === 'full' ? FULL_EXIT : 1, 'it could not start, and said so');
    if (how === 'full') assert.match((await w.log()).slice(from), FULL);
    await w.start();
  } else if (fault === undefined) {
    const goes_on = [...(verb.survives ?? []), ...(how === 'full' ? (verb.makes_room ?? []) : [])];
    assert.ok(goes_on.includes(step), 'it went on as if nothing had happened');
  } else {
    assert.ok(fault instanceof Fault && !fault.message.includes('\n'), String(fault));
    if (how === 'full' && !verb.second?.includes(step))
      assert.deepEqual([fault.code, FULL.test(fault.message)], ['no_room', true], fault.message);
  }
  if (verb.swept?.includes(step)) {
    await w.stop();
    await w.start();
  }
  assert.deepEqual(await truthful(w), []);
  await converge(g, verb);
};

/** Says at which step it went wrong, and brings the ground back in order for the next. */
const at = async (g: Ground, where: string, verb: Verb, work: () => Promise<void>): Promise<string[]> => {
  const { w } = g;
  const from = (await w.log()).length;
  try {
    await work();
    return [];
  } catch (error) {
    const said = (await w.log()).slice(from);
    await g.fault();
    await g.behave();
    await w.kill();
    await w.start();
    await clear(g, verb).catch(() => {});
    return [`${where}: ${error instanceof Error ? error.message : error}\n${said}`];
  }
};

const [, FULL_EXIT] = FAULTS.no_room;
/** One sentence, about the disk. */
const FULL = /The disk that holds \/\S+ is full\./;

/** Letting go closes what is the daemon's own: there is nothing that could refuse it. */
const CANNOT_FAIL: readonly string[] = ['stop.letgo', 'end.letgo', 'delete.letgo'];

/** Signals, requests (also to guests) and programs: there is no disk that could be full. */
const NO_DISK =
  /^((start|end|reconcile)\.keeper|provision\.(file|logins|script)|(stop|end)\.(keys|term|kill|power)|delete\.kill|(pause|resume)\.machine)$/;

/** Two or three tests for each verb. `ground` is there when they run. A new step in src/ gets its place in one of the crash_*.ts. */
export const prove = (
  ground: () => Ground,
  verbs: readonly Verb[],
  whens: readonly string[] = ['before', 'after'],
  hows: readonly ('fail' | 'full')[] = ['fail', 'full'],
): void => {
  for (const verb of verbs) {
    test(`${verb.name}: the daemon dies ${whens.join(' and ')} each step`, { timeout: 240_000 }, async () => {
      const wrong: string[] = [];
      for (const step of verb.steps)
        for (const where of whens.map(when => `${when}:${step}`))
          wrong.push(...(await at(ground(), where, verb, () => dies(ground(), verb, where))));
      assert.ok(wrong.length === 0, wrong.join('\n'));
    });

    for (const how of hows) {
      const what = { fail: 'fails', full: 'finds the disk full' }[how];
      const steps = verb.steps.filter(s => !CANNOT_FAIL.includes(s) && !(how === 'full' && NO_DISK.test(s)));
      if (steps.length === 0) continue;
      test(`${verb.name}: each step ${what}`, { timeout: 240_000 }, async () => {
        const wrong: string[] = [];
        for (const step of steps)
          wrong.push(...(await at(ground(), step, verb, () => fails(ground(), verb, how, step))));
        assert.ok(wrong.length === 0, wrong.join('\n'));
      });
    }
  }
};
