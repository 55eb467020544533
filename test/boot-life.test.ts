/** The verbs of a VM's life on a really booted guest, whose PID 1 is the agent. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { nothingLeft } from './kit/behave.ts';
import {
  isClean,
  panics,
  pauseInTransfer,
  pauseOverDaemon,
  powersOff,
  reboots,
  starves,
  stopsInOutput,
} from './kit/life.ts';
import { type World, world } from './kit/world.ts';

const MINUTES = { timeout: 300_000 };

let w: World;
before(async () => {
  w = await world({ qemu: 'real', seed: 'booted', env: { NEXUS_RESTART_MS: '200:1000:1000' } });
  await w.client.vm.create({ name: 'box', memory_mib: 512 });
  await w.client.vm.start({ vm: 'box' });
});
after(async () => {
  await w[Symbol.asyncDispose]();
});

test('paused in the middle of a transfer, both ways', MINUTES, () => pauseInTransfer(w, 'box'));

test('paused while the daemon is killed, and stopped while paused', MINUTES, () => pauseOverDaemon(w, 'box'));

test('restart: the file system is clean in between, and what was written is there', MINUTES, async () => {
  const { pid } = await w.client.vm.get({ vm: 'box' });
  const again = await w.client.vm.restart({ vm: 'box' });
  assert.notEqual(again.pid, pid);
  assert.equal(again.last_exit?.reason, 'The guest shut down.');
  await isClean(w, await w.client.vm.stop({ vm: 'box' }));
  await w.client.vm.start({ vm: 'box' });
});

test('poweroff in the guest', MINUTES, () => powersOff(w, 'box', 'poweroff'));

test('reboot in the guest', MINUTES, () => reboots(w, 'box', 'reboot'));

// reboot(2) with RESTART, as `reboot -f` does it
const FORCED = 'sync; perl -e "syscall(169, 0xfee1dead, 672274793, 0x1234567)"';

test('a reboot past every init', MINUTES, () => reboots(w, 'box', FORCED));

test('a power-off past every init: the guest stands still and is ended', MINUTES, () =>
  powersOff(w, 'box', 'echo 1 > /proc/sys/kernel/sysrq; echo o > /proc/sysrq-trigger', { clean: false, ms: 90_000 }),
);

test('memory is short, and somebody kills PID 1', MINUTES, () => starves(w, 'box'));

test('stopped in the middle of output', MINUTES, () => stopsInOutput(w, 'box'));

test('a kernel that panics', MINUTES, () => panics(w, 'box'));

test('nothing is left', async () => {
  await w.client.vm.delete({ vm: 'box' });
  await nothingLeft(w);
});
