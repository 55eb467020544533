/**
 * The daemon dies before and after every step that it takes, and every step fails. Then it comes back: what the API says is true, nothing is left
 * that no record accounts for, and the same command comes to its end.
 */
import assert from 'node:assert/strict';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { Fault, type FaultCode } from '../src/api/fault.ts';
import type { Job } from '../src/api/job.ts';
import { withDeadline } from '../src/lib/deadline.ts';
import { killVmm, until } from './kit/behave.ts';
import { type Ground, ground, stepNames, truthful } from './kit/ground.ts';
import { RELEASE } from './kit/packages.ts';
import type { World } from './kit/world.ts';

const MIB = 1024 * 1024;

let g: Ground;
let w: World;
before(async () => {
  g = await ground();
  w = g.w;
  await kernel();
  await rootfs();
  await image('base');
});
after(async () => {
  await g[Symbol.asyncDispose]();
});

/** Its end, if that is a success; a job that did not succeed throws as a call does. */
const ended = async (asked: Promise<Job>): Promise<Job> => {
  const { id } = await asked;
  const job = await w.client.job.wait({ job: id, timeout_ms: 20_000 });
  if (job.state === 'succeeded') return job;
  throw new Fault(job.error?.code ?? 'internal', job.error?.detail ?? job.state);
};
const kernel = () => ended(w.client.kernel.download({}));
const rootfs = () => ended(w.client.rootfs.download({ distro: 'debian', version: '12' }));
const image = (name: string) => ended(w.client.image.build({ name, rootfs: 'debian:12' }));

const create = () => w.client.vm.create({ name: 'vm', memory_mib: 64, root_size_bytes: 128 * MIB });
const start = () => w.client.vm.start({ vm: 'vm', timeout_ms: 10_000 });
const started = async () => {
  await create();
  await start();
};
const runs = async () => {
  const vm = await w.client.vm.get({ vm: 'vm' });
  assert.equal(vm.state, 'running');
  await until(w, 'vm', 'running');
};
const is = async (state: 'stopped' | 'crashed') => {
  await until(w, 'vm', state);
};
const gone = async () => assert.deepEqual(await w.client.vm.list({}), []);
const MUTE = { BOOT_MS: 60_000 };

interface Verb {
  name: string;
  /** In the order in which they come. */
  steps: readonly string[];
  prepare?: () => Promise<unknown>;
  run: () => Promise<unknown>;
  /** That is how a second command may be answered where the first one had done it all. */
  already?: FaultCode;
  /** Asked for where the daemon was to act by itself. */
  again?: () => Promise<unknown>;
  done: () => Promise<unknown>;
  /** Steps whose failure is no failure of the command. */
  survives?: readonly string[];
  /** Steps whose failure leaves files, which the next daemon removes. */
  swept?: readonly string[];
  clear?: () => Promise<unknown>;
}

const JOB = (...steps: string[]) => ['job.insert', 'job.temp', ...steps, 'job.tidy', 'job.end'];

const verbs: readonly Verb[] = [
  {
    name: 'vm.create',
    steps: ['create.clone', 'disk.publish', 'create.insert'],
    run: create,
    already: 'exists',
    done: start,
  },
  {
    name: 'vm.start',
    steps: [
      ...[
        'start.admit',
        'start.starting',
        'start.dir',
        'start.initrd',
        'start.console',
        'start.spawn',
        'start.process',
      ],
      ...['start.answer', 'start.cont', 'start.running', 'guest.record'],
    ],
    prepare: async () => {
      await create();
      await rm(join(w.data_dir, 'initrd'), { recursive: true });
      await mkdir(join(w.data_dir, 'initrd'));
    },
    run: start,
    already: 'bad_state',
    survives: ['guest.record'],
    done: runs,
  },
  {
    name: 'vm.start that fails',
    steps: ['start.failed'],
    prepare: async () => {
      await create();
      await g.behave({ DIE: 3 });
    },
    run: start,
    again: start,
    done: runs,
  },
  {
    name: 'vm.stop',
    steps: ['stop.stopping', 'stop.power', 'stop.letgo', 'stop.record'],
    prepare: started,
    run: () => w.client.vm.stop({ vm: 'vm', timeout_ms: 5000 }),
    already: 'bad_state',
    survives: ['stop.stopping', 'stop.power'],
    done: () => is('stopped'),
  },
  {
    name: 'vm.stop of a guest that is silent',
    steps: ['stop.term', 'stop.kill'],
    prepare: async () => {
      await create();
      await g.behave({ ...MUTE, STUBBORN: 1 });
      await w.client.vm.start({ vm: 'vm', wait: 'running' });
    },
    run: () => w.client.vm.stop({ vm: 'vm', timeout_ms: 100 }),
    again: () => w.client.vm.stop({ vm: 'vm', force: true }),
    already: 'bad_state',
    done: () => is('stopped'),
  },
  {
    name: 'a VMM that is killed',
    steps: ['end.letgo', 'end.record'],
    prepare: started,
    run: async () => {
      assert.ok(await killVmm(w, (await w.client.vm.get({ vm: 'vm' })).id));
      await is('crashed');
    },
    again: () => is('crashed'),
    survives: ['end.letgo', 'end.record'],
    done: start,
  },
  {
    name: 'vm.delete',
    steps: ['delete.kill', 'delete.letgo', 'delete.record', 'delete.disk', 'delete.dir'],
    prepare: started,
    run: () => w.client.vm.delete({ vm: 'vm' }),
    already: 'not_found',
    survives: ['delete.disk', 'delete.dir'],
    swept: ['delete.disk', 'delete.dir'],
    done: gone,
  },
  {
    name: 'ws.create',
    steps: ['ws.make', 'disk.publish', 'ws.insert'],
    run: () => w.client.ws.create({ name: 'disk', image: 'base' }),
    already: 'exists',
    done: () => w.client.ws.get({ ws: 'disk' }),
  },
  {
    name: 'ws.attach',
    steps: ['ws.attach'],
    prepare: async () => {
      await create();
      await w.client.ws.create({ name: 'disk', size_bytes: 16 * MIB });
    },
    run: () => w.client.ws.attach({ ws: 'disk', vm: 'vm' }),
    already: 'in_use',
    done: start,
  },
  {
    name: 'ws.detach',
    steps: ['ws.detach'],
    prepare: async () => {
      await create();
      await w.client.ws.create({ name: 'disk', size_bytes: 16 * MIB });
      await w.client.ws.attach({ ws: 'disk', vm: 'vm' });
    },
    run: () => w.client.ws.detach({ ws: 'disk' }),
    already: 'bad_state',
    done: async () => assert.equal((await w.client.ws.get({ ws: 'disk' })).vm_id, null),
  },
  {
    name: 'ws.remove',
    steps: ['ws.record', 'ws.disk'],
    prepare: () => w.client.ws.create({ name: 'disk', size_bytes: 16 * MIB }),
    run: () => w.client.ws.remove({ ws: 'disk' }),
    already: 'not_found',
    swept: ['ws.disk'],
    done: async () => assert.deepEqual(await w.client.ws.list({}), []),
  },
  {
    name: 'image.build',
    steps: JOB('build.programs', 'build.import', 'disk.publish', 'build.insert'),
    run: () => image('other'),
    already: 'exists',
    survives: ['job.tidy', 'job.end'],
    swept: ['job.tidy'],
    done: () => w.client.vm.create({ name: 'vm', image: 'other' }).then(start),
    clear: async () => {
      await w.client.vm.delete({ vm: 'vm' });
      await w.client.image.remove({ image: 'other' });
    },
  },
  {
    name: 'image.remove',
    steps: ['image.record', 'image.disk'],
    prepare: () => image('other'),
    run: () => w.client.image.remove({ image: 'other' }),
    already: 'not_found',
    swept: ['image.disk'],
    done: async () =>
      assert.deepEqual(
        (await w.client.image.list({})).map(i => i.name),
        ['base'],
      ),
  },
  {
    name: 'kernel.download',
    steps: JOB('kernel.fetch', 'kernel.land', 'kernel.insert'),
    prepare: () => w.client.kernel.remove({ kernel: RELEASE }),
    run: kernel,
    survives: ['job.tidy', 'job.end'],
    swept: ['job.tidy'],
    done: async () => {
      assert.equal((await w.client.kernel.list({})).length, 1);
      await w.client.kernel.verify({ kernel: RELEASE });
      await started();
    },
  },
  {
    name: 'kernel.remove',
    steps: ['kernel.record', 'kernel.initrds', 'kernel.files'],
    prepare: async () => {
      await started();
      await w.client.vm.delete({ vm: 'vm' });
    },
    run: () => w.client.kernel.remove({ kernel: RELEASE }),
    already: 'not_found',
    swept: ['kernel.initrds', 'kernel.files'],
    done: async () => assert.deepEqual(await w.client.kernel.list({}), []),
    clear: kernel,
  },
  {
    name: 'rootfs.download',
    steps: JOB('rootfs.fetch', 'rootfs.land', 'rootfs.insert'),
    prepare: () => w.client.rootfs.remove({ rootfs: 'debian:12' }),
    run: rootfs,
    survives: ['job.tidy', 'job.end'],
    swept: ['job.tidy'],
    done: async () => {
      assert.equal((await w.client.rootfs.list({})).length, 1);
      await w.client.rootfs.verify({ rootfs: 'debian:12' });
    },
  },
  {
    name: 'rootfs.remove',
    steps: ['rootfs.record', 'rootfs.files'],
    run: () => w.client.rootfs.remove({ rootfs: 'debian:12' }),
    already: 'not_found',
    swept: ['rootfs.files'],
    done: async () => assert.deepEqual(await w.client.rootfs.list({}), []),
    clear: rootfs,
  },
];

/** The start of a daemon that finds a VMM to adopt, one that died, a stray one, work and leftovers of an earlier daemon. */
const boots: readonly Verb[] = [];

test('every step has its place here, and none is named that is not there', async () => {
  const named = new Set([...verbs, ...boots].flatMap(verb => verb.steps));
  assert.deepEqual([...named].sort(), await stepNames());
});

const clear = async (verb: Verb): Promise<void> => {
  await verb.clear?.();
  for (const vm of await w.client.vm.list({})) await w.client.vm.delete({ vm: vm.id });
  for (const ws of await w.client.ws.list({})) await w.client.ws.remove({ ws: ws.id });
};

/** The same command again, now that all is well. */
const converge = async (verb: Verb): Promise<void> => {
  await g.behave();
  try {
    await (verb.again ?? verb.run)();
  } catch (error) {
    if (!(error instanceof Fault) || verb.already !== error.code) throw error;
  }
  await verb.done();
  assert.deepEqual(await truthful(w), []);
  await clear(verb);
};

const dies = async (verb: Verb, where: string): Promise<void> => {
  await verb.prepare?.();
  await g.fault(`die ${where}`);
  await verb.run().catch(() => {}); // its connection is cut
  assert.equal(await withDeadline(`its death ${where}`, 20_000, w.ended()), 'SIGKILL');
  assert.ok((await w.log()).endsWith(`told to die ${where}\n`));
  await g.fault();
  await w.start();
  assert.deepEqual(await truthful(w), []);
  await converge(verb);
};

const fails = async (verb: Verb, step: string): Promise<void> => {
  await verb.prepare?.();
  await g.fault(`fail ${step}`);
  const fault = await verb.run().then(
    () => undefined,
    (error: unknown) => error,
  );
  await g.fault();
  if (fault === undefined) assert.ok(verb.survives?.includes(step), 'it went on as if nothing had happened');
  else assert.ok(fault instanceof Fault && !fault.message.includes('\n'), String(fault));
  if (verb.swept?.includes(step)) {
    await w.stop();
    await w.start();
  }
  assert.deepEqual(await truthful(w), []);
  await converge(verb);
};

/** Says at which step it went wrong, and brings the ground back in order for the next. */
const at = async (where: string, verb: Verb, work: () => Promise<void>): Promise<string[]> => {
  const from = (await w.log()).length;
  try {
    await work();
    return [];
  } catch (error) {
    const said = (await w.log()).slice(from);
    await g.fault();
    await g.behave();
    await w.kill();
    await w.start();
    await clear(verb).catch(() => {});
    return [`${where}: ${error instanceof Error ? error.message : error}\n${said}`];
  }
};

/** Letting go closes what is the daemon's own: there is nothing that could refuse it. */
const CANNOT_FAIL: readonly string[] = ['stop.letgo', 'end.letgo', 'delete.letgo'];

for (const verb of verbs) {
  test(`${verb.name}: the daemon dies before and after each step`, { timeout: 240_000 }, async () => {
    const wrong: string[] = [];
    for (const step of verb.steps)
      for (const where of [`before:${step}`, `after:${step}`])
        wrong.push(...(await at(where, verb, () => dies(verb, where))));
    assert.ok(wrong.length === 0, wrong.join('\n'));
  });

  test(`${verb.name}: each step fails`, { timeout: 240_000 }, async () => {
    const wrong: string[] = [];
    for (const step of verb.steps)
      if (!CANNOT_FAIL.includes(step)) wrong.push(...(await at(step, verb, () => fails(verb, step))));
    assert.ok(wrong.length === 0, wrong.join('\n'));
  });
}
