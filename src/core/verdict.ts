/** What the end of a VMM was: what the guest announced, what its kernel said last, how the process ended; and the evidence of it. */
import type { LastExit, Vm } from '../api/vm.ts';
import type { MachineEnd } from '../vmm/machine.ts';
import type { Live } from './host.ts';
import type { Ending } from './restarts.ts';

/** Lines of the console that are kept as evidence. */
const TAIL = 20;
/** A panic is followed by a trace, a last word by complaints. */
const PANIC_LINES = 200;
const PANIC_CHARS = 200;
const UNKNOWN = 'The VMM ended; its exit status is unknown, for an earlier daemon started it.';

type Kind = 'poweroff' | 'reboot' | 'halt';

/** The kernel's last line, printed when init is gone and the devices are shut down (kernel/reboot.c; also with `quiet`). */
const LAST_LINES: readonly [RegExp, Kind][] = [
  [/^reboot: Restarting system\b/, 'reboot'],
  [/^reboot: Power down\b/, 'poweroff'],
  [/^reboot: System halted\b/, 'halt'],
];
/** The seconds since the kernel began, which it puts before its lines; some kernels tell their caller too (CONFIG_PRINTK_CALLER). */
const STAMP = /^\[ *(\d+\.\d+)\](?:\[ *[TC]\d+\])? /;

/** The last lines that the guest wrote since its start; notes of ours are left out. */
const linesOf = async (live: Pick<Live, 'console'>, tail: number): Promise<string[]> => {
  const lines: string[] = [];
  try {
    for await (const item of live.console.past({ boot: 0, tail })) {
      if (item.type === 'line' && !item.line.startsWith('--- ')) lines.push(item.line);
    }
  } catch {
    // no evidence is no reason to lose the end itself
  }
  return lines;
};

/**
 * Behind its last line a kernel may only complain: where the machine does not go off, what still runs in the guest reads from a disk that is
 * shut down. The time of a complaint is not before that of the line, as it would be of a kernel that came up after it.
 */
export const lastWord = (lines: readonly string[]): Kind | undefined => {
  let soonest = Number.POSITIVE_INFINITY;
  for (const line of lines.toReversed()) {
    if (line.trim() === '') continue;
    const at = STAMP.exec(line)?.[1];
    const text = line.replace(STAMP, '');
    const kind = LAST_LINES.find(([pattern]) => pattern.test(text))?.[1];
    if (kind !== undefined) return soonest >= Number(at ?? Number.POSITIVE_INFINITY) ? kind : undefined;
    if (at === undefined) return undefined;
    soonest = Math.min(soonest, Number(at));
  }
  return undefined;
};

/** How the guest's kernel went down, if that is the last that it said. */
export const kernelWord = async (live: Pick<Live, 'console'>): Promise<Kind | undefined> =>
  lastWord(await linesOf(live, PANIC_LINES));

export interface Verdict {
  exit: LastExit;
  /** Who brought it about. */
  by: 'guest' | 'host' | 'nobody';
  /** For the VM's policy; undefined: the host asked for it. */
  ending: Ending | undefined;
}

/** As the record has it, which the start has emptied. */
export const hasRung = ({ boot_ms, guest_facts }: Pick<Vm, 'boot_ms' | 'guest_facts'>): boolean =>
  boot_ms !== null || guest_facts !== null;

/** What is known of a VM that ended. */
type Known = Pick<Live, 'console' | 'ending' | 'rang'>;

/** `unknown`: what is said where nothing tells how it ended. */
export const judge = async (live: Known, end: MachineEnd, unknown = UNKNOWN): Promise<Verdict> => {
  const lines = await linesOf(live, PANIC_LINES);
  const panic =
    lines.find(line => line.includes('Kernel panic - ')) ?? lines.find(line => line.includes('Kernel panic'));
  const tail = lines.slice(-TAIL);
  const evidence = panic === undefined || tail.includes(panic) ? tail : [panic, ...tail];
  const exit = (reason: string): LastExit => ({
    at_ms: Date.now(),
    reason,
    exit_code: end.exit_code,
    signal: end.signal,
    console_tail: [...evidence, ...end.last_words.map(line => `vmm: ${line}`)],
  });
  if (live.ending?.by === 'host') return { exit: exit('The guest was shut down.'), by: 'host', ending: undefined };
  const kind = kindOf(live, end, lastWord(lines));
  if (kind === undefined)
    return { exit: exit(crashReason(live, end, panic) ?? unknown), by: 'nobody', ending: 'crash' };
  const did = { poweroff: 'powered off', reboot: 'rebooted', halt: 'halted' }[kind];
  const ending = kind === 'reboot' ? 'reboot' : 'poweroff';
  return { exit: exit(`The guest ${did} itself.`), by: 'guest', ending };
};

/** How the guest itself went down; undefined: it did not. */
const kindOf = (live: Known, end: MachineEnd, word: Kind | undefined): Kind | undefined => {
  const { ending } = live;
  if (ending !== undefined && ending.kind !== 'down') return ending.kind;
  // a machine that was killed has not ended by its guest, whatever that printed
  const itself = end.guest_reset || !end.known;
  // one that never rang did not come up: that it reset is no wish to be started again
  if (ending === undefined) return itself && live.rang ? word : undefined;
  return word ?? (itself ? 'reboot' : 'poweroff'); // an init that does not say which: only a reboot resets a machine
};

const crashReason = (live: Known, end: MachineEnd, panic: string | undefined): string | undefined => {
  if (end.signal !== null) return `The VMM was ended by ${end.signal}.`;
  if (panic !== undefined) return `The guest's kernel panicked: ${panic.trim().slice(0, PANIC_CHARS)}`;
  if (end.guest_panicked) return "The guest's kernel panicked.";
  if (end.guest_reset && !live.rang) return 'The guest reset its machine before it was ready.';
  if (end.guest_reset) return 'The guest reset its machine without a word.';
  if (!end.known) return undefined;
  return `The VMM ended with exit code ${end.exit_code ?? 'unknown'}.`;
};
