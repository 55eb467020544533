/** How long questions take. */
import process from 'node:process';
import { blankVm, vmOps } from '../src/api/vm_ops.ts';
import { newId } from '../src/core/ids.ts';
import { run } from '../src/lib/proc.ts';
import { openStore } from '../src/store/open.ts';
import { type World, world } from '../test/kit/world.ts';
import { BUNDLE, type Figure, timed } from './kit.ts';

const VMS = 1000;

export const vmGet = async (w: World): Promise<Figure> => {
  await w.client.vm.create({ name: 'get', memory_mib: 64 });
  const samples: number[] = [];
  for (let i = 0; i < 2200; i++) samples.push(await timed(() => w.client.vm.get({ vm: 'get' })));
  return {
    name: 'vm.get',
    what: 'client call to answer, one after the other over one kept connection',
    samples: samples.slice(200),
    unit: 'ms',
    limit: 1,
  };
};

/** Turns of nexusctl and of Node itself. */
const ctlList = async (w: World, turns: number): Promise<{ ctl: number; node: number }[]> => {
  const env = { ...process.env, NEXUS_SOCKET: w.socket };
  const list = [process.execPath, BUNDLE, 'nexusctl', 'vm', 'list'];
  const all: { ctl: number; node: number }[] = [];
  for (let i = 0; i < turns; i++) {
    const node = await timed(() => run([process.execPath, '-e', '0']));
    all.push({ node, ctl: await timed(() => run(list, { env })) });
  }
  return all.slice(3);
};

export const cliList = async (w: World): Promise<Figure> => ({
  name: 'nexusctl vm list from the bundle',
  what: 'whole process, as a multiple of `node -e 0` in turn',
  samples: (await ctlList(w, 23)).map(({ ctl, node }) => ctl / node),
  unit: 'x',
  limit: 3,
});

/** Records as the daemon would write them, without a disk each. */
const fill = async (w: World): Promise<void> => {
  await w.stop();
  {
    await using store = await openStore(w.data_dir);
    for (let i = 0; i < VMS; i++) {
      const tags = { team: `team-${i % 7}`, number: String(i) };
      const input = vmOps['vm.create'].input.parse({ name: `vm-${i}`, memory_mib: 512, tags });
      await store.insertVm(
        { ...blankVm(input, newId('vm'), Date.now()), run: null, env: {}, provision_run: null },
        { first_host_uid: 61_184 },
      );
    }
  }
  await w.start();
};

export const thousandVms = async (): Promise<Figure[]> => {
  await using w = await world({ main: BUNDLE, env: { NEXUS_CHECK_OUTPUT: '0' } });
  await fill(w);
  const samples: number[] = [];
  for (let i = 0; i < 320; i++) samples.push(await timed(() => w.client.vm.list({})));
  if ((await w.client.vm.list({})).length !== VMS) throw new Error('not all VMs are in the list');
  return [
    {
      name: `vm.list of ${VMS} VMs`,
      what: 'client call to answer, one after the other over one kept connection',
      samples: samples.slice(20),
      unit: 'ms',
      limit: 20,
      holds_for: 'p99',
    },
    {
      name: `nexusctl vm list of ${VMS} VMs`,
      what: 'whole process, into a pipe',
      samples: (await ctlList(w, 23)).map(({ ctl }) => ctl),
      unit: 'ms',
    },
  ];
};
