/**
 * The end of a guest whose VMM does not end with it: a power-off or a halt, which a VMM on x86 does not see.
 *
 * INVARIANTS: a VMM is ended only if its guest answers on no channel and the last that came from its console is the kernel's last line, twice with
 * time in between. A guest that merely prints that line answers, and lives on. One look at a time for each VM, and none while it answers.
 */
import { pause, withDeadline } from '../lib/deadline.ts';
import type { Host, Live } from './host.ts';
import { kernelWord } from './verdict.ts';

/** Between two looks at a guest that has fallen silent, and at one that has not spoken yet. */
const SILENT_MS = 1000;
const YOUNG_MS = 5000;
/** From SIGTERM to SIGKILL. */
const TERM_MS = 2000;

/** Looks at the guest until it answers: from now on, whoever looks already. */
export const attend = (host: Host, live: Live): void => {
  live.attended?.abort();
  const mine = new AbortController();
  live.attended = mine;
  const signal = AbortSignal.any([mine.signal, live.gone.signal]);
  listen(host, live, signal).catch(error => {
    if (!signal.aborted) host.log.error({ err: error, vm: live.vm_id }, 'the end of a silent guest cannot be seen');
  });
};

const listen = async (host: Host, live: Live, signal: AbortSignal): Promise<void> => {
  let before: string | undefined;
  for (;;) {
    await pause(live.guest.state === 'connecting' ? YOUNG_MS : SILENT_MS, signal);
    if (live.guest.state === 'ready') return;
    const word = live.held === undefined ? await kernelWord(live) : undefined;
    if (word !== undefined && word === before && !answers(live)) {
      live.ending = { kind: word, by: live.ending?.by ?? 'guest' };
      host.log.info({ vm: live.vm_id, word }, 'a guest has gone down; ending its VMM');
      await end(host, live).catch(error =>
        host.log.error({ err: error, vm: live.vm_id }, 'cannot end a VMM; it is tried again'),
      );
    }
    before = word;
  }
};

const answers = (live: Live): boolean => live.guest.state === 'ready' || live.held !== undefined;

const end = async (host: Host, live: Live): Promise<void> => {
  const { machine } = live;
  await host.step('end.term', () => machine.signal('SIGTERM'));
  await withDeadline('the end of the VMM', TERM_MS, machine.ended).catch(() =>
    host.step('end.kill', () => machine.signal('SIGKILL')),
  );
};
