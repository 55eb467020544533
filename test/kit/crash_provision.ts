/** The first boot of a VM that is given files, environment and a script, with the steps that it takes. */
import assert from 'node:assert/strict';
import { chmod, mkdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { Fault } from '../../src/api/fault.ts';
import type { Verb } from './crash.ts';
import { deeds } from './crash_deeds.ts';
import type { Ground } from './ground.ts';

/** A folder of this host, on which the stand-in's guest runs. */
const DIR = join(tmpdir(), `nexus-crash-given-${process.pid}`);
const [FILE, RUNS] = [join(DIR, 'in/file'), join(DIR, 'runs')];

export const provisionVerb = (ground: () => Ground): Verb => {
  const { client, create, start } = deeds(ground);
  const given = {
    files: [{ path: FILE, content: 'given' }],
    env: { A: '1' },
    first_boot: `cat ${FILE} && sleep 0.2 && echo $A >>${RUNS}`,
  };
  const anew = async () => {
    await client().vm.delete({ vm: 'vm' });
    await create({ given });
    await start();
  };
  return {
    name: 'vm.start of one that is given something',
    steps: ['provision.file', 'provision.logins', 'provision.begin', 'provision.script', 'provision.record'],
    prepare: async () => {
      await mkdir(DIR);
      await chmod(DIR, 0o777); // the guest has a user of its own
      await create({ given });
    },
    run: start,
    survives: ['provision.logins', 'provision.begin', 'provision.record'],
    // a daemon that comes back goes on by itself; what has failed before the script is tried again, and a script never
    again: async () => {
      try {
        await client().vm.wait({ vm: 'vm', timeout_ms: 20_000 });
      } catch (error) {
        if (!(error instanceof Fault && error.code === 'guest')) throw error;
        if (error.reason === 'interrupted') return anew();
        await client().vm.restart({ vm: 'vm', timeout_ms: 10_000 });
      }
    },
    done: async () => {
      assert.equal((await client().vm.get({ vm: 'vm' })).provision?.state, 'done');
      assert.deepEqual([await readFile(FILE, 'utf8'), await readFile(RUNS, 'utf8')], ['given', '1\n']);
    },
    clear: () => rm(DIR, { recursive: true, force: true }),
  };
};
