/**
 * Random walks of several clients, with VMMs and daemons that are killed meanwhile, on both stand-ins. Whatever they do: never two VMMs for one VM or on
 * one disk, never a state that is lost or invented, no lock that stays, and nothing left at the end.
 *
 * NEXUS_TEST_SEED=<n> walks the same way again; NEXUS_TEST_WALK=<n> is the number of steps of each client.
 */
import assert from 'node:assert/strict';
import process from 'node:process';
import { test } from 'node:test';
import { audit } from './kit/audit.ts';
import { settle } from './kit/crash_deeds.ts';
import { ground } from './kit/ground.ts';
import { walk } from './kit/walk.ts';

const CLIENTS = 5;
const STEPS = Number(process.env.NEXUS_TEST_WALK ?? 75);

for (const vmm of ['qemu', 'firecracker'] as const) {
  test(`a random walk on ${vmm}`, { timeout: 240_000 + STEPS * CLIENTS * 500 }, async t => {
    const seed = Number(process.env.NEXUS_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
    t.diagnostic(`NEXUS_TEST_SEED=${seed}`);
    await using g = await ground(vmm);
    const { w } = g;
    await settle(() => g);
    const done = await walk(w, { seed, clients: CLIENTS, steps: STEPS });
    t.diagnostic(JSON.stringify(done));
    for (const what of ['create', 'start', 'stop', 'exec', 'pause', 'kill the VMM', 'kill the daemon'])
      assert.ok((done[what] ?? 0) > 0, `nobody came to ${what}`);
    for (const vm of await w.client.vm.list({})) await w.client.vm.delete({ vm: vm.id });
    for (const ws of await w.client.ws.list({})) await w.client.ws.remove({ ws: ws.id });
    // nothing uses them any more
    for (const image of await w.client.image.list({})) await w.client.image.remove({ image: image.id });
    for (const kernel of await w.client.kernel.list({})) await w.client.kernel.remove({ kernel: kernel.id });
    assert.deepEqual(await audit(w), []);
    assert.ok(!(await w.log()).includes('"write" lock'), 'a VMM found its disk in use');
  });
}
