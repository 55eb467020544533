/** The guest agent of a VM that runs. */
import type { OpOut } from '../api/ops.ts';
import type { Host } from './host.ts';
import { awaitGuest, needLive, small } from './inside.ts';
import { noteGuest } from './live.ts';

/** Goes on when the client goes away: half an update is none, but nobody would know which. */
export const updateAgent = async (host: Host, ref: string, client: AbortSignal): Promise<OpOut<'vm.update_agent'>> => {
  const live = await needLive(host, ref);
  await awaitGuest(live, ref, client);
  const { before, after } = await live.guest.update(host.agent, live.gone.signal);
  const updated = before.sha256 !== after.sha256;
  host.log.info({ vm: live.vm_id, updated, before, after }, "a guest's agent was updated");
  // It was, whatever becomes of this: the facts come with its next bell, too.
  if (updated)
    await live.guest.refresh(small(live)).then(
      facts => noteGuest(host, live, live.guest.state, facts),
      error => host.log.warn(error, "the facts of a guest's new agent could not be had"),
    );
  return { updated, before, after };
};
