/**
 * The end of a VMM that no daemon saw: its exit status is gone with it, but what the guest and the VMM said last is in their FIFOs as long as a keeper has
 * them open (vmm/keeper.ts), and in their logs. From that the end is judged as any other.
 */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { LastExit } from '../api/vm.ts';
import { removeTree } from '../lib/files.ts';
import type { Transition, VmPatch, VmRecord } from '../store/store.ts';
import { type Console, openConsole, readConsole } from '../vmm/console.ts';
import { signsAfter } from '../vmm/end.ts';
import { hasKeeper } from '../vmm/keeper.ts';
import { SOCKET } from '../vmm/run_dir.ts';
import type { Host } from './host.ts';
import { endKeeperOf } from './keepers.ts';
import { moveVm } from './move.ts';
import { consoleLog, runDir } from './paths.ts';
import type { Step } from './plan.ts';
import { afterEnd, type Ending } from './restarts.ts';
import { hasRung, judge, type Verdict } from './verdict.ts';

/** The last lines of a console whose FIFO is gone. */
const CONSOLE_TAIL = 20;

export type Write = Omit<Extract<Step, { do: 'write' }>, 'do'>;

/** Writes what became of a VM whose VMM is gone. */
export const writeEnd = async (host: Host, step: Write, rebooted = false): Promise<void> => {
  const { vm_id } = step;
  const move = step.to === 'failed' ? failed(step) : await ended(host, step, rebooted);
  const patch = { pid: null, run: null, guest: null, ...move.patch };
  // the record last: it is what brings the next daemon here, should this one be killed
  await host.step('reconcile.sockets', () => removeSockets(host, vm_id));
  await host.step('reconcile.record', () => moveVm(host, vm_id, { ...move, patch }));
  await endKeeperOf(host, vm_id);
};

const failed = ({ to, why }: Write): Transition => ({
  to,
  why,
  actor: 'daemon',
  patch: { error: { at_ms: Date.now(), code: 'vmm', detail: why } },
});

const ended = async (host: Host, { vm_id, to, why, judged }: Write, rebooted: boolean): Promise<Transition> => {
  const vm = await host.store.findVm(vm_id);
  const seen_ms = await lastSeen(host, vm_id);
  const said = rebooted || vm === undefined ? undefined : await lastSaid(host, vm, why).catch(unheard(host, vm_id));
  const exit = said?.exit ?? (await bare(host, vm_id, why));
  const told = { stopped_at_ms: exit.at_ms, last_exit: exit };
  const owed = (ending: Ending) => (vm === undefined ? {} : owedAfter(host, vm, { ending, seen_ms, rebooted }));
  if (judged !== true || said?.ending === undefined) {
    const patch = { ...told, last_exit: { ...exit, reason: why }, ...(to === 'crashed' ? owed('crash') : {}) };
    return { to, why, actor: 'daemon', patch };
  }
  return {
    to: said.ending === 'crash' ? 'crashed' : 'stopped',
    why: exit.reason,
    actor: said.by === 'guest' ? 'guest' : 'daemon',
    patch: { ...told, ...owed(said.ending) },
  };
};

/** When a daemon wrote its console last: until then it was up for certain. */
const lastSeen = (host: Host, id: string): Promise<number | undefined> =>
  stat(consoleLog(host.paths, id)).then(
    log => log.mtimeMs,
    () => undefined,
  );

const unheard = (host: Host, id: string) => (error: unknown) => {
  host.log.warn({ err: error, vm: id }, 'what a VM said last cannot be read');
  return undefined;
};

/**
 * As the VM's policy wants it. The end of a host is no crash loop: after it the VM is started at once. The time in which no daemon was there is
 * not one in which the VM was up.
 */
const owedAfter = (
  host: Host,
  vm: VmRecord,
  { ending, seen_ms, rebooted }: { ending: Ending; seen_ms: number | undefined; rebooted: boolean },
): VmPatch => {
  const now_ms = Date.now();
  const began_ms = vm.started_at_ms ?? now_ms;
  const up_ms = Math.max(0, Math.min(now_ms, seen_ms ?? began_ms) - began_ms);
  const owed = afterEnd(vm, { ending, up_ms, now_ms, times: host.restart_times });
  return rebooted && owed.restart_at_ms !== null ? { restart_at_ms: now_ms, restart_count: 0 } : owed;
};

/** Takes what lies in the FIFOs, and judges by it. */
const lastSaid = async (host: Host, vm: VmRecord, why: string): Promise<Verdict> => {
  const dir = runDir(host.paths, vm.id);
  const lost = `what it wrote while no daemon was there${kept(dir) ? ' beyond 64 KiB' : ''} is lost`;
  const console = await openConsole({ fifo: join(dir, 'console'), log: consoleLog(host.paths, vm.id) });
  try {
    noteGap(console);
    const end = await signsAfter(dir, vm.runs_on);
    const verdict = await judge({ console, ending: undefined, rang: hasRung(vm) }, end, why);
    const console_tail = [...verdict.exit.console_tail, `--- ${lost}`];
    return { ...verdict, exit: { ...verdict.exit, console_tail } };
  } finally {
    await console.close();
  }
};

const kept = (dir: string): boolean => {
  try {
    return hasKeeper(dir);
  } catch {
    return false; // something else is in the place of its FIFO
  }
};

/** Of a console that nobody read. A daemon that is killed has read what it has not written yet. */
export const noteGap = (console: Console): void =>
  console.note(
    'no daemon was there; what the last one had not written is lost, and what the guest wrote beyond 64 KiB',
    {
      kind: 'gap',
      ...(console.written_ms === null ? {} : { since_ms: console.written_ms }),
    },
  );

const bare = async (host: Host, id: string, reason: string): Promise<LastExit> => {
  const lines = await readConsole(consoleLog(host.paths, id), CONSOLE_TAIL).catch(() => []);
  const console_tail = [...lines, '--- what it wrote while no daemon was there is lost'];
  return { at_ms: Date.now(), reason, exit_code: null, signal: null, console_tail };
};

/** A VMM that ended without a daemon leaves its sockets. */
const removeSockets = async (host: Host, id: string): Promise<void> => {
  const dir = runDir(host.paths, id);
  for (const name of await readdir(dir).catch(() => [])) {
    if (SOCKET.test(name)) await removeTree(host.paths.data, join(dir, name));
  }
};
