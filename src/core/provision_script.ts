/**
 * The first-boot script of a VM.
 *
 * INVARIANTS: that it is about to be asked for is on disk before it is. From then on it is found by its ID; it is asked for again only where the
 * agent would know if it had run, and its text is in the guest before that. So it never runs twice, and where nobody can know whether it ran to its end, that is said.
 */
import { createHash } from 'node:crypto';
import { Fault, type FaultCode } from '../api/fault.ts';
import type { ExecStream } from '../guest/exec.ts';
import type { Asked } from '../guest/wire.ts';
import { plain } from '../lib/text.ts';
import type { Provision, ProvisionRun, VmRecord } from '../store/store.ts';
import type { Host, Live } from './host.ts';
import { idOf } from './ids.ts';
import { insist } from './insist.ts';
import { writeFile } from './provision_files.ts';

/** The agent remembers a command with a digest for longer after its end (docs/guest-protocol.md). */
const REMEMBERED_MS = 9 * 60_000;

/** How long a guest that is late is asked to end it. */
const KILL_MS = 10_000;

/** How long the removal of its text may take. */
const REMOVE_MS = 5000;

/** Of what it writes the end is kept. */
const TAIL_BYTES = 16 * 1024;
const TAIL_LINES = 20;
const LINE_LENGTH = 500;

/** Interpreter and its one argument, as the kernel reads them. */
const SHEBANG = /^#![ \t]*(\/[^ \t\n]*)[ \t]*([^\n]*?)[ \t\r]*(?:\n|$)/;

/** One stream, so that its last lines are in their order. */
const AS_ONE = 'exec 2>&1; exec "$@"';

const argvOf = (script: string, path: string): string[] => {
  const [, program = '/bin/sh', argument = ''] = SHEBANG.exec(script) ?? [];
  return ['/bin/sh', '-c', AS_ONE, 'first-boot', program, ...(argument === '' ? [] : [argument]), path];
};

const runOf = (vm: VmRecord): ProvisionRun => vm.provision_run ?? { ws_id: vm.root_ws_id, begun: null };
const idFor = (vm: VmRecord): string => idOf('exec', vm.id, 'first-boot', runOf(vm).ws_id ?? '');

/** Where its text is until it has ended: it may have secrets, so it is in memory and for root alone, and no command line has it. */
export const scriptPath = (vm: VmRecord): string => `/dev/shm/nexus-first-boot-${idFor(vm)}`;

/** Writes it into the guest. To be done before it is asked for, in the boot in which that is. */
export const writeScript = ({ guest }: Live, vm: VmRecord, script: string, signal: AbortSignal): Promise<void> =>
  writeFile(guest.files, { path: scriptPath(vm), content: script, mode: '0700' }, signal);

const removeScript = async (host: Host, { guest, gone }: Live, vm: VmRecord): Promise<void> => {
  const soon = AbortSignal.any([AbortSignal.timeout(REMOVE_MS), gone.signal, host.closing]);
  await guest.files.remove(scriptPath(vm), false, soon).catch(error => {
    if (error instanceof Fault && error.code === 'not_found') return;
    host.log.info({ err: error, vm: vm.id }, 'the text of a first-boot script stays in its guest until that ends');
  });
};

const askedOf = (vm: VmRecord, script: string, timeout_ms: number): Asked & { digest: string } => ({
  id: idFor(vm),
  digest: createHash('sha256').update(script).digest('hex'),
  argv: argvOf(script, scriptPath(vm)),
  env: vm.env,
  stdin: 'none',
  on_disconnect: 'keep',
  timeout_ms,
});

/** How it ended; `reason` as in the record. */
interface ScriptEnd {
  reason: 'exit' | 'timeout' | null;
  /** Completes "the first-boot script …". */
  how: string;
  output: string[];
}

const interrupted = (cause?: unknown): Fault =>
  new Fault('guest', 'nobody can know how its first-boot script ended, or whether it did', {
    reason: 'interrupted',
    cause,
  });

/** The last lines of what it writes, safe to show. */
const tailOf = async (stream: ExecStream): Promise<string[]> => {
  let tail = Buffer.alloc(0);
  for await (const piece of stream) {
    if ('data' in piece) tail = Buffer.concat([tail, piece.data]).subarray(-TAIL_BYTES);
  }
  const lines = tail.toString('utf8').split('\n').map(plain);
  return lines
    .filter(line => line.trim() !== '')
    .slice(-TAIL_LINES)
    .map(line => line.slice(0, LINE_LENGTH));
};

/** Whether the agent that was to run it is there, and would still know of it. */
const remembers = (live: Live, begun: NonNullable<ProvisionRun['begun']>): boolean => {
  const age = Date.now() - begun.at_ms;
  return live.guest.facts?.agent_id === begun.agent_id && age >= 0 && age < REMEMBERED_MS;
};

/** The stream of the one run there may be. `deadline` ends the script, if it is aborted before that runs. */
const streamOf = async (host: Host, live: Live, vm: VmRecord, asked: Asked, deadline: AbortSignal) => {
  const run = runOf(vm);
  if (run.begun !== null && !remembers(live, run.begun))
    return live.guest.attachExec(asked.id, { stdout: 0, stderr: 0 }, deadline);
  if (run.begun === null) {
    const begun = { at_ms: Date.now(), agent_id: live.guest.facts?.agent_id ?? '' };
    const note = () => host.store.patchVm(vm.id, { provision_run: { ...run, begun } });
    const patient = { log: host.log.child({ vm: vm.id }), closing: host.closing };
    await insist(patient, 'the beginning of a first-boot script', () => host.step('provision.begin', note));
  }
  return host.step('provision.script', () => live.guest.exec(asked, { signal: deadline }));
};

/** True for what says that the guest did not run it, and why. */
const refused = (error: unknown): error is Fault => error instanceof Fault && error.reason !== undefined;

/** With these the guest says no to what it has not run, whether it names a reason or not. */
const NOT_RUN: readonly FaultCode[] = ['invalid', 'unsupported', 'busy'];

/** It was asked for first by us, and that was refused: it may be asked for again at another start. */
const unbegin = async (host: Host, vm: VmRecord): Promise<void> => {
  const patient = { log: host.log.child({ vm: vm.id }), closing: host.closing };
  const note = () => host.store.patchVm(vm.id, { provision_run: { ...runOf(vm), begun: null } });
  await insist(patient, 'that a first-boot script has not begun', note);
};

/** Runs it, or finds it. Faults: one with a reason of `exec`: it could not be run; `interrupted`. */
export const runScript = async (
  host: Host,
  live: Live,
  vm: VmRecord,
  { first_boot, first_boot_timeout_ms: timeout_ms }: Provision,
  deadline: AbortSignal,
): Promise<ScriptEnd> => {
  const asked = askedOf(vm, first_boot ?? '', timeout_ms);
  let runs = runOf(vm).begun !== null;
  try {
    const stream = await streamOf(host, live, vm, asked, deadline);
    runs = true;
    const output = await tailOf(stream);
    const { exit_code, signal, timed_out } = await stream.result;
    await removeScript(host, live, vm);
    if (timed_out) return { reason: 'timeout', how: `did not end within ${timeout_ms / 1000} s`, output };
    if (exit_code === 0) return { reason: null, how: 'ended well', output: [] };
    const how = signal === null ? `ended with exit code ${exit_code}` : `was ended by signal ${signal}`;
    return { reason: 'exit', how, output };
  } catch (error) {
    if (deadline.aborted) {
      const soon = AbortSignal.any([AbortSignal.timeout(KILL_MS), live.gone.signal]);
      live.guest.signalExec(asked.id, 'KILL', soon).catch(() => {});
      void removeScript(host, live, vm); // it may be silent to the end
      throw deadline.reason;
    }
    if (live.gone.signal.aborted || host.closing.aborted) throw error;
    await removeScript(host, live, vm);
    const never = !runs && error instanceof Fault && NOT_RUN.includes(error.code);
    if (never) await unbegin(host, vm);
    if (never || refused(error)) throw error;
    throw interrupted(error);
  }
};
