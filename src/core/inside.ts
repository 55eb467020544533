/** The way into a VM that runs, for whatever is done in there. */
import { Fault } from '../api/fault.ts';
import { withDeadline } from '../lib/deadline.ts';
import { admit, needVm, VERB_TEXT } from './find.ts';
import type { Host, Live } from './host.ts';
import { guestReady, liveOf } from './live.ts';

/** How long a command waits for a guest that is about to be ready. */
const READY_MS = 10_000;
const SMALL_MS = 10_000;
const END_STORED_MS = 5000;

/** What is done in a VM. */
type Deed = 'exec' | 'files';

export const needLive = async (host: Host, ref: string, deed: Deed = 'exec'): Promise<Live> => {
  const vm = await needVm(host, ref);
  admit(vm, deed);
  const live = liveOf(host, vm.id);
  if (live === undefined) throw ended(vm.name, deed);
  return live;
};

const ended = (name: string, deed: Deed): Fault =>
  new Fault('bad_state', `Cannot ${VERB_TEXT[deed]} VM '${name}': it has just ended.`);

export const awaitGuest = async (live: Live, ref: string, client: AbortSignal, deed: Deed = 'exec'): Promise<void> => {
  if (live.guest.state === 'ready') return;
  const deadline = AbortSignal.timeout(READY_MS);
  try {
    await guestReady(live, AbortSignal.any([deadline, client]));
  } catch (error) {
    if (live.gone.signal.aborted) throw ended(ref, deed);
    if (!deadline.aborted) throw error;
    throw new Fault('guest', `The guest of VM '${ref}' does not answer: it is ${live.guest.state}.`, {
      hint: `nexusctl vm logs ${ref}`,
      cause: error,
    });
  }
};

/** A guest that answers, for its files. `gone` is aborted with the client's signal, and when the VM has ended. */
export const needGuest = async (host: Host, ref: string, client: AbortSignal) => {
  const live = await needLive(host, ref, 'files');
  await awaitGuest(live, ref, client, 'files');
  return { guest: live.guest, gone: AbortSignal.any([client, live.gone.signal]) };
};

/** What to tell of a command whose output broke off: if its VM ended, how that was, once it is on record. */
export const brokenOff = async (host: Host, live: Live, exec: string, error: unknown): Promise<unknown> => {
  if (!live.gone.signal.aborted || host.closing.aborted) return error;
  await withDeadline('the end of the VM in the record', END_STORED_MS, live.end_stored.promise).catch(() => {});
  const vm = await host.store.findVm(live.vm_id);
  if (vm === undefined) return new Fault('guest', `The end of command ${exec} is not known: its VM was deleted.`);
  const why = vm.last_exit === null ? '.' : `: ${vm.last_exit.reason}`;
  const is = vm.state === 'crashed' ? 'has crashed' : 'has ended';
  const detail = `The end of command ${exec} is not known: VM '${vm.name}' ${is}${why}`;
  return new Fault('guest', detail, { hint: `nexusctl vm logs ${vm.name}`, cause: error });
};

/** For requests with a short answer. */
export const small = (live: Live): AbortSignal => AbortSignal.any([AbortSignal.timeout(SMALL_MS), live.gone.signal]);
