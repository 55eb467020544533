/**
 * A VM whose VMM this daemon holds.
 *
 * INVARIANTS: there is one Live a VM ID, made after the VMM answered and removed when its end was stored, so no start finds the VM
 * free before. `end_owner` is set before anybody acts on the end of the VMM, so exactly one of stop, delete and the watcher
 * writes the state; a stop that fails hands it back.
 */
import { randomBytes } from 'node:crypto';
import { Fault } from '../api/fault.ts';
import type { GuestFacts } from '../api/vm.ts';
import { openGuest } from '../guest/guest.ts';
import { raced } from '../lib/deadline.ts';
import type { VmRecord } from '../store/store.ts';
import type { Console } from '../vmm/console.ts';
import type { Machine, MachineEnd } from '../vmm/machine.ts';
import type { Host, Live, StartTimes } from './host.ts';
import { insist } from './insist.ts';
import { endKeeperOf, keeperFor } from './keepers.ts';
import { moveVm } from './move.ts';
import { watchStops } from './paused.ts';
import { provision } from './provision.ts';
import { afterEnd } from './restarts.ts';
import { attend } from './silence.ts';
import { hasRung, judge, type Verdict } from './verdict.ts';

/** Puts a running machine under the daemon's eyes: guest channel, console, and the watch for its end. */
export const hold = (host: Host, vm: VmRecord, machine: Machine, console: Console, times: StartTimes | null): Live => {
  const guest = openGuest({
    open: signal => machine.openControl(signal),
    onBell: () => {
      live.rang = true;
      if (live.times === null || live.times.bell !== null) return;
      live.times.bell = performance.now();
      const { asked, spawned, bell } = live.times;
      host.metrics.booted({ spawn_ms: spawned - asked, bell_ms: bell - asked });
    },
    onState: (state, facts) => {
      if (state === 'ready') live.rang = true;
      live.guest_stored = noteGuest(host, live, state, facts);
      if (state === 'ready') live.provisioned ??= live.guest_stored.then(() => provision(host, live));
      if (state === 'unreachable') attend(host, live);
    },
    // the clock, for a machine may have no real-time clock, and randomness for the first keys
    settle: () => ({ clock_ms: Date.now(), entropy: randomBytes(64).toString('base64') }),
    onEnding: (kind, by) => {
      live.ending = { kind, by };
    },
    log: host.log.child({ vm: vm.id }),
  });
  const live: Live = {
    vm_id: vm.id,
    machine,
    guest,
    console,
    held: undefined,
    attended: undefined,
    end_owner: undefined,
    end_stored: Promise.withResolvers<void>(),
    stored: Promise.withResolvers<void>(),
    guest_stored: Promise.resolve(),
    times,
    rang: times === null && hasRung(vm),
    stopped_how: undefined,
    ending: undefined,
    env: vm.env,
    provisioned: undefined,
    sizes: new Map(),
    gone: new AbortController(),
  };
  machine.onEgress(stream => guest.serveEgress(stream));
  host.live.set(vm.id, live);
  watch(host, live);
  attend(host, live);
  watchStops(host, live).catch(error => {
    if (!live.gone.signal.aborted) host.log.error({ err: error, vm: vm.id }, 'a VMM that stands still is not noticed');
  });
  return live;
};

/** The VM if it is held and has not ended. */
export const liveOf = (host: Host, id: string): Live | undefined => {
  const live = host.live.get(id);
  return live?.gone.signal.aborted === true ? undefined : live;
};

const watch = (host: Host, live: Live): void => {
  live.machine.ended.then(
    end => watchEnd(host, live, end),
    error => host.log.error({ err: error, vm: live.vm_id }, 'the end of a VMM cannot be seen'),
  );
};

/** After a stop that failed: if the VMM ends after all, the watcher writes that down. */
export const handBack = (host: Host, live: Live): void => {
  live.end_owner = undefined;
  watch(host, live);
};

/** Waits for a guest that answers, and for the record that says so. */
export const guestReady = async (live: Live, signal: AbortSignal): Promise<void> => {
  await live.guest.ready(AbortSignal.any([signal, live.gone.signal]));
  await live.guest_stored;
};

/** The same for one that has all it was given, or whose record says what went wrong with that. */
export const guestProvisioned = async (live: Live, signal: AbortSignal): Promise<void> => {
  await guestReady(live, signal);
  await raced(live.provisioned ?? Promise.resolve(), live.gone.signal);
};

/** Stores what is known of the guest, and tells of it. Never rejects. */
export const noteGuest = async (
  host: Host,
  live: Live,
  state: 'connecting' | 'ready' | 'unreachable',
  facts: GuestFacts | undefined,
): Promise<void> => {
  try {
    if (live.gone.signal.aborted) return;
    const times = timing(state, live.times);
    const patch = {
      guest: state,
      ...(facts === undefined ? {} : { guest_facts: publicFacts(facts) }),
      ...(times.bell_ms === undefined ? {} : { boot_ms: Math.round(times.bell_ms - times.spawn_ms) }),
    };
    await host.step('guest.record', () => host.store.noteVm(live.vm_id, patch));
    host.events.emit('vm.guest', live.vm_id, { guest: state, ...times });
    host.log.info({ vm: live.vm_id, guest: state, ...times }, 'a guest came to another state');
  } catch (error) {
    if (!(error instanceof Fault && error.code === 'not_found')) {
      host.log.error({ err: error, vm: live.vm_id }, "cannot store the guest's state");
    }
  }
};

/** How long the parts of a start took: request to spawn, request to bell. */
const timing = (
  state: string,
  times: StartTimes | null,
): { spawn_ms: number; bell_ms: number } | { spawn_ms?: never; bell_ms?: never } => {
  if (state !== 'ready' || times === null || times.bell === null) return {};
  return { spawn_ms: times.spawned - times.asked, bell_ms: times.bell - times.asked };
};

/** The facts that the contract knows; the guest's protocol has more. */
const publicFacts = (facts: GuestFacts): GuestFacts => {
  const { agent_version, kernel, os, hostname, init, boot_id, problems } = facts;
  return { agent_version, kernel, os, hostname, init, boot_id, problems };
};

const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise(resolve => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });

const watchEnd = async (host: Host, live: Live, end: MachineEnd): Promise<void> => {
  await Promise.race([live.stored.promise, aborted(live.gone.signal)]);
  if (live.end_owner !== undefined || host.closing.aborted) return;
  live.end_owner = 'watcher';
  let restart_at_ms: number | null = null;
  try {
    const verdict = await judge(live, end);
    await host.step('end.letgo', () => letGo(host, live));
    const patient = { log: host.log.child({ vm: live.vm_id }), closing: host.closing };
    const store = () => host.step('end.record', () => storeEnd(host, live, verdict));
    restart_at_ms = await insist(patient, 'the end of a VM', store);
  } catch (error) {
    if (!host.closing.aborted) host.log.error({ err: error, vm: live.vm_id }, 'cannot store the end of a VM');
  } finally {
    forget(host, live);
  }
  if (restart_at_ms !== null) host.restarts.at(live.vm_id, restart_at_ms);
};

/** Gives the time at which the VM is to be started again. */
const storeEnd = async (host: Host, live: Live, { exit, by, ending }: Verdict): Promise<number | null> => {
  const vm = await host.store.findVm(live.vm_id);
  const { pid, start_ticks } = live.machine.proc;
  if (vm === undefined || vm.run?.pid !== pid || vm.run.start_ticks !== start_ticks) return null; // deleted, or this end is stored
  const { stopped_how } = live;
  const asked = stopped_how !== undefined || vm.state === 'stopping' || ending === undefined;
  const last_exit = stopped_how === undefined ? exit : { ...exit, reason: stopped_how };
  const up_ms = exit.at_ms - (vm.started_at_ms ?? exit.at_ms);
  // who asked for the end has said what comes after it
  const owed = asked ? {} : afterEnd(vm, { ending, up_ms, now_ms: Date.now(), times: host.restart_times });
  const stored = await moveVm(host, live.vm_id, {
    to: asked || ending !== 'crash' ? 'stopped' : 'crashed',
    why: last_exit.reason,
    actor: by === 'guest' && !asked ? 'guest' : 'daemon',
    patch: { pid: null, run: null, guest: null, stopped_at_ms: exit.at_ms, last_exit, ...owed },
  });
  return stored.restart_at_ms;
};

/** Lets go of channel, console and machine; the guest itself is not touched. */
export const letGo = async (host: Host, live: Live): Promise<void> => {
  live.gone.abort(new Fault('bad_state', 'The VM has ended.'));
  for (const close of [
    () => live.guest[Symbol.asyncDispose](),
    () => live.machine.release(),
    () => live.console.close(),
  ]) {
    try {
      await close();
    } catch (error) {
      host.log.warn({ err: error, vm: live.vm_id }, 'cannot close a part of a VM');
    }
  }
};

/** Of a daemon that stops: its VMs live on. */
export const leave = async (host: Host, live: Live): Promise<void> => {
  if (!live.gone.signal.aborted) await keeperFor(host, live.vm_id);
  await letGo(host, live);
};

/** After the end is stored: another start may come. */
export const forget = (host: Host, live: Live): void => {
  if (host.live.get(live.vm_id) === live) {
    host.live.delete(live.vm_id);
    void endKeeperOf(host, live.vm_id);
  }
  live.end_stored.resolve();
};
