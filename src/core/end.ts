/** How a VMM is ended: the guest is asked, then Ctrl-Alt-Del, then SIGTERM, then SIGKILL. */
import { Fault } from '../api/fault.ts';
import { withDeadline } from '../lib/deadline.ts';
import type { MachineEnd } from '../vmm/machine.ts';
import type { Host, Live } from './host.ts';
import { isStopped, unpause } from './paused.ts';
import { undying } from './stray.ts';

/** From SIGTERM to SIGKILL. */
const TERM_MS = 2000;
/** From SIGKILL to the end of the process. */
const KILL_MS = 10_000;
/** What runs in the guest gets this much of the time to end by itself. */
const GRACE_SHARE = 0.4;
/** An agent that has not taken the order by then is silent: the keyboard is tried for the rest of the time. */
const SILENT_SHARE = 0.5;
/** How long a VMM may take to let its guest go on. */
const RESUME_MS = 5000;
/** A VMM may have ended as its guest was asked. */
const LAST_LOOK_MS = 200;

export interface EndOptions {
  force: boolean;
  /** How long the guest has, all in all. */
  timeout_ms: number;
}

/** Ends the VMM. Returns when the process is gone; an abort ends the waiting alone. */
export const endMachine = async (
  host: Host,
  live: Live,
  { force, timeout_ms }: EndOptions,
  signal: AbortSignal,
): Promise<{ end: MachineEnd; how: string }> => {
  const { machine } = live;
  if (!force) {
    const asked = await askGuest(host, live, timeout_ms, signal);
    signal.throwIfAborted();
    if (asked !== undefined) return { end: asked, how: endedHow(live, asked) };
    await host.step('stop.term', () => machine.signal('SIGTERM'));
    const termed = await within(machine.ended, TERM_MS, signal);
    signal.throwIfAborted();
    if (termed !== undefined)
      return { end: termed, how: 'The guest did not shut down in time; the VMM was ended by SIGTERM.' };
  }
  await host.step('stop.kill', () => machine.signal('SIGKILL'));
  const killed = await within(machine.ended, KILL_MS);
  if (killed === undefined) throw undying(machine.proc);
  return { end: killed, how: force ? 'It was stopped by force.' : 'The VMM did not end; SIGKILL was needed.' };
};

/** A VMM that ended while its guest was asked need not have ended by the guest. */
const endedHow = (live: Live, end: MachineEnd): string =>
  live.ending !== undefined || end.guest_reset
    ? 'The guest shut down.'
    : `The VMM ended while the guest was asked to shut down (${end.signal ?? `exit code ${end.exit_code ?? 'unknown'}`}).`;

/** The end of the VMM if the guest brings it about within the time, all of it. */
const askGuest = async (
  host: Host,
  live: Live,
  timeout_ms: number,
  signal: AbortSignal,
): Promise<MachineEnd | undefined> => {
  const until = performance.now() + timeout_ms;
  if (!(await awake(host, live))) return undefined;
  let [taken, pressed] = [false, false];
  let pressing: Promise<void> | undefined;
  const press = () => {
    pressing ??= host
      .step('stop.keys', () => live.machine.ctrlAltDel())
      .then(
        done => {
          pressed = done;
        },
        () => {}, // it has none, or does not answer
      );
    return pressing;
  };
  const silent = setTimeout(() => void press(), timeout_ms * SILENT_SHARE);
  const deadline = AbortSignal.timeout(timeout_ms);
  const left = () => Math.max(1, until - performance.now());
  try {
    const grace_ms = Math.max(100, Math.round(timeout_ms * GRACE_SHARE));
    const goes = AbortSignal.any([deadline, signal, ended(live)]);
    await host.step('stop.power', () => live.guest.power('poweroff', grace_ms, goes));
    taken = true;
  } catch (error) {
    if (signal.aborted) return undefined;
    host.log.warn({ err: error, vm: live.vm_id }, 'the guest does not take the order to shut down');
    if (live.ending === undefined) await within(press(), left(), signal);
  } finally {
    clearTimeout(silent);
  }
  // one that goes down already takes no order, and gets its time all the same
  const going = taken || pressed || live.ending !== undefined;
  return within(live.machine.ended, going ? left() : LAST_LOOK_MS, signal);
};

/** A guest that stands still can be asked nothing; false: it cannot be made to go on. */
const awake = async (host: Host, live: Live): Promise<boolean> => {
  try {
    if (live.held !== undefined || (await isStopped(live.machine.proc))) {
      await withDeadline('letting the guest go on', RESUME_MS, unpause(live));
    }
    return true;
  } catch (error) {
    host.log.warn({ err: error, vm: live.vm_id }, 'a paused guest cannot be made to go on');
    return false;
  }
};

const ended = (live: Live): AbortSignal => {
  const abort = new AbortController();
  void live.machine.ended.then(() => abort.abort(new Fault('vmm', 'The VMM has ended.')));
  return abort.signal;
};

/** The promise's value, or undefined after `ms` or when aborted. */
export const within = <T>(promise: Promise<T>, ms: number, signal?: AbortSignal): Promise<T | undefined> =>
  withDeadline('the end of the VMM', ms, promise, signal).catch(() => undefined);
