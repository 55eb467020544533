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
  if (updated) await noteGuest(host, live, live.guest.state, await live.guest.refresh(small(live)));
  host.log.info({ vm: live.vm_id, updated, before, after }, "a guest's agent was updated");
  return { updated, before, after };
};
