/** Firecracker with nothing of ours around it but a file of configuration: does the guest's side fit it? */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { writeInitrd } from '../../src/assets/initrd.ts';
import { type Guest, openGuest } from '../../src/guest/guest.ts';
import { poll, raced, withDeadline } from '../../src/lib/deadline.ts';
import { silentLog } from '../../src/lib/log.ts';
import { run, runAny } from '../../src/lib/proc.ts';
import { agentBinaries } from '../kit/agent.ts';
import { firecrackerProgram } from '../kit/firecracker.ts';
import { listening } from '../kit/harness.ts';
import { drain, start, zeros } from '../kit/stress.ts';
import { seed } from '../kit/world.ts';

/** A lost ring is a failure; a slow one is the emulation's. */
const RING_MS = 60_000;
const CMDLINE =
  'console=ttyS0 reboot=k panic=1 quiet 8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd tsc=reliable no_timer_check ' +
  'nexus.root=/dev/vda nexus.init=agent nexus.hostname=raw nexus.transport=vsock';

interface Raw extends AsyncDisposable {
  guest: Guest;
  child: ChildProcess;
  disk: string;
  endings: string[];
  bells: () => number;
  /** Ends the egress connections from this side. */
  cutEgress(): void;
  cutControl(): void;
  console(): Promise<string>;
}

/** A control connection: the line in one write, and no byte that follows the answer is lost. */
const dial = async (path: string, signal: AbortSignal): Promise<Socket> => {
  const socket = connect({ path, signal });
  socket.on('error', () => {});
  socket.write('CONNECT 1024\n');
  let head = Buffer.alloc(0);
  while (!head.includes('\n')) {
    const [chunk] = await raced(Promise.race([once(socket, 'data'), once(socket, 'close').then(() => [])]), signal);
    if (!(chunk instanceof Buffer)) throw new Error('nobody listens on port 1024 of the guest');
    head = Buffer.concat([head, chunk]);
  }
  socket.pause();
  const end = head.indexOf('\n') + 1;
  assert.match(head.subarray(0, end).toString(), /^OK \d+\n$/);
  if (end < head.length) socket.unshift(head.subarray(end));
  return socket;
};

const raw = async (): Promise<Raw> => {
  await using made = new AsyncDisposableStack();
  const dir = await mkdtemp(join(tmpdir(), 'nxr-'));
  made.defer(() => rm(dir, { recursive: true }));
  const from = await seed();
  const one = async (name: string) => join(from, name, (await readdir(join(from, name)))[0] ?? '');
  const kernel = await one('kernels');
  const at = (name: string) => join(dir, name);
  await run(['cp', '--sparse=always', join(await one('images'), 'disk.raw'), at('disk.raw')]);
  await chmod(at('disk.raw'), 0o600);
  const agent = (await agentBinaries()).agent_x86_64;
  const signal = AbortSignal.timeout(RING_MS);
  await writeInitrd({ modules: join(kernel, 'modules.cpio'), agent, out: at('initrd'), signal });
  const config = {
    'boot-source': {
      kernel_image_path: join(kernel, 'vmlinux'),
      initrd_path: at('initrd'),
      boot_args: CMDLINE,
    },
    drives: [
      {
        drive_id: 'root',
        path_on_host: 'disk.raw',
        is_root_device: false,
        is_read_only: false,
        cache_type: 'Writeback',
      },
    ],
    'machine-config': { vcpu_count: 1, mem_size_mib: 256 },
    vsock: { guest_cid: 3, uds_path: 'v.sock' },
    entropy: {},
  };
  await writeFile(at('config.json'), JSON.stringify(config));
  const endings: string[] = [];
  const egress = new Set<Socket>();
  let control: Socket | undefined;
  let bells = 0;
  const guest = made.use(
    openGuest({
      open: async limit => {
        control = await dial(at('v.sock'), limit);
        return control;
      },
      onBell: () => {
        bells++;
      },
      onState: () => {},
      onEnding: (kind, by) => endings.push(`${kind} by ${by}`),
      log: silentLog(),
    }),
  );
  const server = createServer(socket => {
    egress.add(socket.on('close', () => egress.delete(socket)));
    void guest.serveEgress(socket);
  });
  await listening(server, at('v.sock_1025'));
  made.defer(() => {
    server.close();
    for (const socket of egress) socket.destroy();
  });
  const args = ['--id', 'raw', '--api-sock', 'api.sock', '--config-file', 'config.json', '--log-path', 'vmm.log'];
  await writeFile(at('vmm.log'), '');
  const child = spawn(await firecrackerProgram(), [...args, '--level', 'Error'], {
    cwd: dir,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const said: Buffer[] = [];
  for (const stream of [child.stdout, child.stderr]) stream?.on('data', chunk => said.push(chunk));
  made.defer(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill('SIGKILL');
    await once(child, 'exit');
  });
  const text = async () => `${Buffer.concat(said)}\n${await readFile(at('vmm.log'), 'utf8')}`;
  const gone = once(child, 'exit').then(async ([code, killed]) => {
    throw new Error(`Firecracker ended with ${code ?? killed}:\n${await text()}`);
  });
  gone.catch(() => {});
  await Promise.race([guest.ready(signal), gone]).catch(async error => {
    throw new Error(`${error}\n${await text()}`, { cause: error });
  });
  const owned = made.move();
  return {
    guest,
    child,
    disk: at('disk.raw'),
    endings,
    bells: () => bells,
    cutEgress: () => {
      for (const socket of egress) socket.destroy();
    },
    cutControl: () => control?.destroy(),
    console: text,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
};

const sh = async (guest: Guest, script: string): Promise<string> => {
  const stream = await start(guest, ['/bin/sh', '-c', script]);
  let out = '';
  for await (const piece of stream) if ('data' in piece) out += piece.data.toString();
  return `${out}${(await stream.result).exit_code}`;
};

test('KVM runs guests here, says the probe', async () => {
  const { stdout } = await run([(await agentBinaries()).probe, 'kvm']);
  assert.deepEqual(JSON.parse(stdout), { usable: true, reason: 'ok', detail: 'a guest ran' });
});

test('the agent rings over vsock, serves, dials again, and its reset ends Firecracker', async t => {
  const from = performance.now();
  await using vm = await raw();
  t.diagnostic(`rang and answered after ${Math.round(performance.now() - from)} ms`);
  assert.equal(await sh(vm.guest, 'hostname; id -u; uname -r | cut -d. -f1'), 'raw\n0\n6\n0');

  const began = performance.now();
  assert.equal(await drain(await start(vm.guest, ['sh', '-c', 'head -c 2097152 /dev/zero'])), 0);
  t.diagnostic(`2 MiB out in ${Math.round(performance.now() - began)} ms`);
  const input = await start(vm.guest, ['sh', '-c', 'test $(wc -c) = 1048576'], {}, zeros(1024 * 1024));
  assert.equal(await drain(input), 0);

  // a cut in the middle of an output: it goes on where it stood
  const stream = await start(vm.guest, ['sh', '-c', 'head -c 2097152 /dev/zero']);
  let bytes = 0;
  for await (const piece of stream) {
    if (!('data' in piece)) continue;
    if (bytes === 0) vm.cutControl();
    bytes += piece.data.length;
  }
  assert.deepEqual([bytes, (await stream.result).exit_code], [2_097_152, 0]);

  const bells = vm.bells();
  vm.cutEgress();
  await poll('another bell', 20_000, async () => vm.bells() > bells || undefined);

  await vm.guest.power('poweroff', 3000, AbortSignal.timeout(20_000));
  const [code] = await withDeadline('the end of Firecracker', 30_000, once(vm.child, 'exit'));
  assert.equal(code, 0, await vm.console());
  assert.deepEqual(vm.endings, ['poweroff by host']);
  const fsck = await runAny(['e2fsck', '-fn', vm.disk]);
  assert.equal(fsck.code, 0, fsck.stdout);
});
