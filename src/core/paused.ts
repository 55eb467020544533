/**
 * Whether a VM stands still, whoever made it do so: our own pause, or somebody on the host who stopped its VMM by a signal.
 *
 * INVARIANTS: `live.held` is there as long as the VM is taken to stand still: a guest that cannot answer is not pinged. The record is changed under the
 * VM's lock alone, or before any door is open.
 */
import { pause, withDeadline } from '../lib/deadline.ts';
import { clockJumps } from '../lib/jump.ts';
import { type ProcRef, procStat, signalProc } from '../lib/proc.ts';
import type { Host, Live } from './host.ts';
import { moveVm } from './move.ts';

/** Between two looks at the state of a VMM's process. */
const LOOK_MS = 2000;
/** Less is the pace at which a clock is put right. */
const JUMP_MS = 250;
/** For a VMM that is asked whether it stands still. */
const ASK_MS = 2000;

/** True for a process that a signal has stopped; proc(5). */
export const isStopped = async ({ pid }: ProcRef): Promise<boolean> => (await procStat(pid))?.state === 'T';

const isPaused = async ({ machine }: Live): Promise<boolean> =>
  (await isStopped(machine.proc)) || (await withDeadline('the state of the VMM', ASK_MS, machine.paused()));

/** No pings from here on, and no new connections. */
export const holdGuest = (live: Live): void => {
  live.held ??= live.guest.hold();
};

/** Its clock stood still with it, and is looked at. */
const releaseGuest = (live: Live): void => {
  live.held?.[Symbol.dispose]();
  live.held = undefined;
};

/** Lets it go on, whoever stopped it. */
export const unpause = async (live: Live): Promise<void> => {
  await signalProc(live.machine.proc, 'SIGCONT');
  await live.machine.resume();
  releaseGuest(live);
};

/** Makes the record say what is. */
export const recordPaused = async (host: Host, live: Live): Promise<void> => {
  const paused = await isPaused(live);
  if (paused) holdGuest(live);
  else releaseGuest(live);
  const vm = await host.store.findVm(live.vm_id);
  const [from, to] = paused ? (['running', 'paused'] as const) : (['paused', 'running'] as const);
  if (vm?.state !== from) return;
  const why = paused ? 'its VMM was found standing still' : 'its VMM was found running';
  await host.step('pause.found', () => moveVm(host, live.vm_id, { to, why, actor: 'daemon' }));
};

/** Watches for somebody on the host who stops the VMM or lets it go on, and for a sleep of the host. */
export const watchStops = async (host: Host, live: Live): Promise<void> => {
  const { signal } = live.gone;
  const jumped = clockJumps(JUMP_MS);
  for (let was = await isStopped(live.machine.proc); ; ) {
    await pause(LOOK_MS, signal);
    if (jumped()) live.guest.doubtClock();
    const is = await isStopped(live.machine.proc);
    // two changes between two looks are none to `was`; a process that stands still though nobody here holds its guest tells of them
    if (is === was && !(is && live.held === undefined)) continue;
    const state = (await host.store.findVm(live.vm_id))?.state;
    const agrees = state !== (is ? 'running' : 'paused') || (!is && (await isPaused(live)));
    const held = agrees ? undefined : host.locks.tryTake(live.vm_id, 'the daemon');
    if (!agrees && held === undefined) continue; // a verb is at work: looked at again
    await using _ = held;
    try {
      if (held !== undefined) await recordPaused(host, live);
      was = is;
    } catch (error) {
      signal.throwIfAborted();
      host.log.error({ err: error, vm: live.vm_id }, 'cannot store whether a VM stands still yet; it is tried again');
    }
  }
};
