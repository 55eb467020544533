/** A command in a really booted VM, against what it costs in there without us and against ssh into the same VM; and what the agent costs. */
import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { execResult } from '../src/client/exec.ts';
import { agentBinaries } from '../test/kit/agent.ts';
import { testRootfs } from '../test/kit/assets.ts';
import { type World, world } from '../test/kit/world.ts';
import { BUNDLE, type Figure, quantile, timed } from './kit.ts';
import { openSsh, type Ssh } from './ssh.ts';
import { agentMemory, strain } from './strain.ts';

const vm = 'box';
const MIB = 1024 * 1024;
const ROUNDS = 5;
const EXECS = 30;
const SSHS = 5;
const BULK_MIB = 256;
const BULK_ROUNDS = 2;
const PING_EVERY_S = 15;
const IDLE_S = 60;

const inside = async (w: World, ...argv: string[]): Promise<string> => {
  const { exit_code, stdout, stderr } = await execResult(w.client.exec.run({ vm, argv }));
  if (exit_code !== 0) throw new Error(`${argv[0]} ended with ${exit_code}: ${stderr}`);
  return stdout.toString();
};
const p50 = (samples: readonly number[]) => quantile(samples, 0.5);

/** A Debian with sshd and strace, and the program that forks. */
const boot = async (w: World, dir: string): Promise<void> => {
  const done = async (job: { id: string }) => {
    const end = await w.client.job.wait({ job: job.id, timeout_ms: 600_000 });
    if (end.state !== 'succeeded') throw new Error(end.error?.detail);
  };
  const { tar } = await testRootfs(['openssh-server', 'strace']);
  await w.client.rootfs.download({ from: tar, distro: 'tools', version: '12' }).then(done);
  await w.client.image.build({ name: 'tools', rootfs: 'tools:12' }).then(done);
  await w.client.vm.create({ name: vm, image: 'tools', memory_mib: 1024 });
  await w.client.vm.start({ vm });
  const file = join(dir, 'spawn');
  const env = { ...process.env, CGO_ENABLED: '0', GOTOOLCHAIN: 'local', GOFLAGS: '' };
  const source = join(import.meta.dirname, 'spawn.go');
  await promisify(execFile)(process.env.GO ?? 'go', ['build', '-o', file, source], { env });
  await w.client.fs.write({ vm, path: '/root/spawn', mode: '0755' }, { body: await readFile(file) });
};

/**
 * When the agent makes system calls while nobody wants anything of it. Those less than a second apart are of one wake: several threads work
 * on a ping, and every other time the agent pings the host beside it.
 */
const idle = async (w: World): Promise<Figure> => {
  const script = `sleep 5; timeout ${IDLE_S} strace -f -ttt -o /run/trace -p 1 2>/run/said; cut -c 1-24 /run/trace`;
  const times = (await inside(w, 'sh', '-c', script)).matchAll(/^\d+ +(\d+\.\d+)/gm);
  let [wakes, last] = [-1, 0]; // when strace comes is none
  for (const [, text] of times) {
    const at = Number(text);
    if (at - last > 1) wakes++;
    last = at;
  }
  if (wakes < 0) throw new Error('strace saw nothing');
  const pings = Math.ceil(IDLE_S / PING_EVERY_S);
  const what = `moments in ${IDLE_S} s without work in which strace sees system calls of the agent; it is pinged every ${PING_EVERY_S} s`;
  return { name: 'agent idle', what, samples: [wakes], unit: 'wakes', limit: pings };
};

/** By turns, so that a machine that is busy for a while is so for all. */
const commands = async (w: World, ssh: Ssh): Promise<Figure[]> => {
  const [bare, exec, fresh, kept]: [number[], number[], number[], number[]] = [[], [], [], []];
  const many = async (times: number, samples: number[], deed: () => Promise<unknown>) => {
    for (let i = 0; i < times; i++) samples.push(await timed(deed));
  };
  const round = async () => {
    const costs = await inside(w, '/root/spawn', String(EXECS), '/usr/bin/true');
    bare.push(...Array.from(costs.matchAll(/\d+/g), us => Number(us) / 1000));
    await many(EXECS, exec, () => inside(w, 'true'));
    await many(SSHS, fresh, () => ssh.fresh('true'));
    await many(SSHS, kept, () => ssh.kept('true'));
  };
  await round(); // warms up
  for (const samples of [bare, exec, fresh, kept]) samples.length = 0;
  for (let i = 0; i < ROUNDS; i++) await round();
  const ratio = 'of the p50s, taken by turns';
  return [
    { name: 'fork, exec, wait', what: 'of `true` by a small static program in the guest', samples: bare, unit: 'ms' },
    { name: 'exec', what: 'of `true` by the client: the call to its result', samples: exec, unit: 'ms' },
    { name: 'exec against fork', what: ratio, samples: [p50(exec) / p50(bare)], unit: 'x', limit: 2.5 },
    {
      name: 'ssh',
      what: '`true` over a connection of its own, from ssh spawned to its exit',
      samples: fresh,
      unit: 'ms',
    },
    { name: 'exec against ssh', what: ratio, samples: [p50(exec) / p50(fresh)], unit: 'x', limit: 0.2 },
    { name: 'ssh, kept', what: 'the same over the connection of a ControlMaster', samples: kept, unit: 'ms' },
  ];
};

/** A file that the guest has in its memory, by turns. */
const bulk = async (w: World, ssh: Ssh): Promise<Figure[]> => {
  const bytes = BULK_MIB * MIB;
  const body = () => Readable.from(Array(BULK_MIB).fill(Buffer.alloc(MIB, 'x')));
  const [out, ssh_out, up, ssh_up]: [number[], number[], number[], number[]] = [[], [], [], []];
  const cat = async () => {
    let read = 0;
    for await (const message of w.client.exec.run({ vm, argv: ['cat', '/root/big'] }))
      if (message.type === 'stdout') read += Buffer.byteLength(message.data, 'base64');
    if (read !== bytes) throw new Error(`exec gave ${read} bytes`);
  };
  const ssh_cat = async () => {
    const read = await ssh.fresh('cat /root/big');
    if (read !== bytes) throw new Error(`ssh gave ${read} bytes`);
  };
  for (let i = 0; i < BULK_ROUNDS; i++) {
    up.push(await timed(() => w.client.fs.write({ vm, path: '/root/big' }, { body: body() })));
    ssh_up.push(await timed(() => ssh.fresh('cat >/root/big2 && sync /root/big2', body())));
    await inside(w, 'rm', '/root/big2');
    out.push(await timed(cat));
    ssh_out.push(await timed(ssh_cat));
  }
  const speed = (samples: number[]) => samples.map(ms => (BULK_MIB * 1000) / ms);
  const what = `\`cat\` of ${BULK_MIB} MiB`;
  const ratio = p50(out) / p50(ssh_out);
  return [
    { name: 'output of exec', what, samples: speed(out), unit: 'MiB/s' },
    { name: 'output of ssh', what, samples: speed(ssh_out), unit: 'MiB/s' },
    { name: 'output, exec against ssh', what: 'time that it takes', samples: [ratio], unit: 'x', limit: 1 },
    { name: 'upload', what: `fs.write of ${BULK_MIB} MiB, synced`, samples: speed(up), unit: 'MiB/s' },
    { name: 'upload by ssh', what: '`cat` into a file, synced', samples: speed(ssh_up), unit: 'MiB/s' },
  ];
};

const agent = async (w: World): Promise<Figure[]> => {
  const { now, peak } = await agentMemory(w, vm);
  const { size } = await stat((await agentBinaries()).agent_x86_64);
  return [
    { name: 'agent resident', what: 'VmRSS after all that', samples: [now], unit: 'MiB', limit: 20 },
    { name: 'agent resident at most', what: 'VmHWM', samples: [peak], unit: 'MiB' },
    { name: 'agent binary', what: 'for x86_64', samples: [size / MIB], unit: 'MiB', limit: 10 },
  ];
};

/** With words as `inside`. It needs ssh and ssh-keygen. */
export const insideVm = async (): Promise<Figure[]> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-inside-'));
  try {
    await using w = await world({ main: BUNDLE, seed: 'booted', qemu: 'real', env: { NEXUS_CHECK_OUTPUT: '0' } });
    await boot(w, dir);
    const figures = [await idle(w)]; // before what leaves timers behind
    {
      await using ssh = await openSsh(w, vm, dir);
      figures.push(...(await commands(w, ssh)), ...(await bulk(w, ssh)));
    }
    figures.push(...(await strain(w, vm)), ...(await agent(w)));
    await w.client.vm.delete({ vm });
    return figures;
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};
