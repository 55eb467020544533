#!/usr/bin/env node
/**
 * A stand-in for `qemu-system-x86_64 -M microvm`: no machine, but the real control protocol, real sockets, a console, and a
 * guest that opens its ports. It takes the same arguments and checks those that name descriptors.
 *
 * The guest: without QEMU_STANDIN_HARNESS every port echoes; with it (the path of `agent-harness`) control ports reach the real
 * agent's code, its egress stream rings the bell at once, and a power-off that was asked for resets the machine.
 *
 * QEMU_STANDIN_DIE=<code>         says a word on stderr and exits at once
 * QEMU_STANDIN_HANG=1             takes control connections and never greets
 * QEMU_STANDIN_NO_SOCKET=1        never listens
 * QEMU_STANDIN_REFUSE=<command>   refuses that command; QEMU_STANDIN_STALL=<command>: never answers it; QEMU_STANDIN_DIE_AT=<command>: dies there
 * QEMU_STANDIN_LIE=<command>      answers that command with QEMU_STANDIN_LIE_WITH=garbage|nojson|huge|stranger|events|close
 * QEMU_STANDIN_LATE=1             the four before this one: only when the guest runs
 * QEMU_STANDIN_NOISE=<which>      the guest's `control` or `egress` ports say bytes of no sense, without end
 * QEMU_STANDIN_RESET_MS=<n>       the guest resets n ms after `cont`; it does so on SIGUSR2, too
 * QEMU_STANDIN_LAST=<text>        the last line of its console; empty: none. QEMU_STANDIN_HALT=1: then it stands still, its agent gone
 * QEMU_STANDIN_EGRESS_MS=<n>      the guest closes each egress port after n ms
 * QEMU_STANDIN_STUBBORN=1         SIGTERM is ignored
 * QEMU_STANDIN_IGNORE_END=1       an end that the guest has announced does not come
 * QEMU_STANDIN_CONSOLE=<text>     printed on the console at `cont`
 * QEMU_STANDIN_FLOOD_MIB=<n>      and so much after it, as fast as it is taken; QEMU_STANDIN_FLOOD_SEED=<n>: of that make
 * QEMU_STANDIN_COUNT=<n>          numbered lines of n bytes, one each ms, without end
 * QEMU_STANDIN_BOOT_MS=<n>        the guest opens its first port n ms after `cont`
 */
import { closeSync, fstatSync, openSync, rmSync, writeSync } from 'node:fs';
import { createServer, type Socket } from 'node:net';
import { isWritable, lockDisk } from './disk_lock.ts';
import { count, flood } from './flood.ts';
import { type Args, Guest, Refusal } from './qemu_guest.ts';

const env = (name: string): string | undefined => process.env[`QEMU_STANDIN_${name}`];
const argv = process.argv.slice(2);
const options = (name: string): string[] => argv.filter((_, i) => argv[i - 1] === name);

const die = (code: number, why: string): never => {
  writeSync(2, `qemu-system-x86_64: ${why}\n`);
  process.exit(code);
};

let client: Socket | undefined;
const waiting: Socket[] = [];
let running = false;
let begun = false;
let halted = false;

const say = (message: object): void => {
  client?.write(`${JSON.stringify(message)}\r\n`);
};

const event = (name: string, data: object = {}): void => {
  const now = Date.now();
  say({ timestamp: { seconds: Math.floor(now / 1000), microseconds: (now % 1000) * 1000 }, event: name, data });
};

const exit = (code: number): void => {
  guest.kill();
  rmSync('qmp.sock', { force: true });
  if (client === undefined || client.destroyed) process.exit(code);
  client.end(() => process.exit(code));
  setTimeout(() => process.exit(code), 100);
};

/** The guest's way to end, whoever asked for it. */
const reset = (): void => {
  const last = env('LAST') ?? 'reboot: Restarting system';
  halted = env('HALT') !== undefined;
  if (halted) guest.halt();
  if (last !== '') writeSync(1, `${last}\r\n`);
  if (halted) return;
  event('SHUTDOWN', { guest: true, reason: 'guest-reset' });
  exit(0);
};

const guest = new Guest({
  event,
  harness: env('HARNESS') || undefined,
  noise: env('NOISE'),
  boot_ms: Number(env('BOOT_MS') ?? 0),
  egress_ms: env('EGRESS_MS') === undefined ? undefined : Number(env('EGRESS_MS')),
  onHarnessEnd: code => {
    if (!halted) die(1, `the harness ended with ${code}`);
  },
  onEnding: () => {
    if (env('IGNORE_END') === undefined) setTimeout(reset, 20);
  },
});

const cont = (): object => {
  const first = !begun;
  [running, begun] = [true, true];
  guest.pause(false);
  event('RESUME');
  if (!first) return {};
  writeSync(1, env('CONSOLE') ?? 'stand-in: up\r\n');
  count(Number(env('COUNT') ?? 0), 'waits');
  flood(Number(env('FLOOD_MIB') ?? 0), Number(env('FLOOD_SEED') ?? 1));
  guest.start();
  const ms = env('RESET_MS');
  if (ms !== undefined) setTimeout(reset, Number(ms));
  return {};
};

const stop = (): object => {
  running = false;
  guest.pause(true);
  event('STOP');
  return {};
};

/** Only a disk that it has, and only to the length of its file. */
const resize = (args: Args): object => {
  const name = String(args['node-name']);
  const index = options('-blockdev').findIndex(one => JSON.parse(one)['node-name'] === name);
  const fd = options('-add-fd').map(one => Number(/fd=(\d+)/.exec(one)?.[1]))[index];
  if (fd === undefined) throw new Refusal(`Cannot find device='' nor node-name='${name}'`);
  if (fstatSync(fd).size !== args.size) throw new Refusal(`the file of ${name} has ${fstatSync(fd).size} bytes`);
  return {};
};

const commands: Record<string, (args: Args) => object | Promise<object>> = {
  qmp_capabilities: () => ({}),
  'chardev-add': args => guest.chardevAdd(args),
  'chardev-remove': args => guest.chardevRemove(args),
  device_add: args => guest.deviceAdd(args),
  device_del: args => guest.deviceDel(args),
  'query-chardev': () => guest.list(),
  'query-status': () => ({ status: running ? 'running' : begun ? 'paused' : 'prelaunch', running }),
  block_resize: args => resize(args),
  'query-blockstats': () => [{ device: '', stats: { rd_bytes: 1000, wr_bytes: 500 } }],
  stop,
  cont,
};

const EVENTS = `${JSON.stringify({ event: 'RTC_CHANGE', data: { offset: 0 }, timestamp: { seconds: 0 } })}\r\n`.repeat(
  10_000,
);

const endless = (piece: string): void => {
  if (client?.destroyed === false) client.write(piece, error => void (error || endless(piece)));
};

/** Ways to answer what no QEMU has; `stranger` is the answer to another command. */
const lies: Record<string, () => void> = {
  garbage: () => void client?.write(Buffer.alloc(65_536, 0xff)),
  nojson: () => void client?.write('{"return": \r\n'),
  huge: () => endless('x'.repeat(1024 * 1024)),
  stranger: () => say({ return: {}, id: 999_999 }),
  events: () => endless(EVENTS),
  close: () => void client?.destroy(),
};

/** Whether it was told to do that at this command. */
const told = (name: string, command: string): boolean => env(name) === command && (begun || env('LATE') === undefined);

const answer = async (line: string): Promise<void> => {
  const message: { execute: string; id?: unknown; arguments?: Args } = JSON.parse(line);
  if (told('STALL', message.execute)) return;
  if (told('DIE_AT', message.execute)) die(1, 'told to \u001b[31mdie');
  if (told('LIE', message.execute)) return lies[env('LIE_WITH') ?? '']?.();
  const run = commands[message.execute];
  try {
    if (told('REFUSE', message.execute)) throw new Refusal('told to refuse');
    if (run === undefined) throw new Refusal(`The command ${message.execute} has not been found`, 'CommandNotFound');
    say({ return: await run(message.arguments ?? {}), id: message.id });
  } catch (error) {
    const kind = error instanceof Refusal ? error.kind : 'GenericError';
    say({ id: message.id, error: { class: kind, desc: error instanceof Error ? error.message : String(error) } });
  }
};

/** One client at a time, as the real one: the next is greeted when the present one has gone. */
const serve = (socket: Socket): void => {
  client = socket;
  let partial = '';
  let turn = Promise.resolve();
  socket.on('data', chunk => {
    const lines = (partial + chunk.toString('utf8')).split('\n');
    partial = lines.pop() ?? '';
    for (const line of lines) turn = turn.then(() => answer(line));
  });
  socket.once('close', () => {
    client = undefined;
    const next = waiting.shift();
    if (next !== undefined) serve(next);
  });
  say({ QMP: { version: { qemu: { major: 7, minor: 2, micro: 22 }, package: 'stand-in' }, capabilities: [] } });
};

const listen = (): void => {
  const path = /^unix:([^,]+)/.exec(options('-qmp')[0] ?? '')?.[1] ?? die(1, 'no -qmp');
  const server = createServer(socket => {
    socket.on('error', () => {});
    if (env('HANG') !== undefined) return;
    if (client === undefined) serve(socket);
    else waiting.push(socket);
  });
  server.on('error', error => die(1, `-qmp: ${error.message}`));
  server.listen(path);
};

/** Everything it was given by descriptor must be there. */
const checkArgs = async (): Promise<void> => {
  const passed = options('-add-fd').map(one => Number(/fd=(\d+)/.exec(one)?.[1]));
  await Promise.all(passed.filter(isWritable).map(lockDisk));
  for (const path of [...options('-kernel'), ...options('-initrd')]) closeSync(openSync(path, 'r'));
  if (!fstatSync(1).isFIFO()) die(1, 'standard output is no FIFO');
};

if (argv.includes('--version')) {
  console.log('QEMU emulator version 7.2.22 (stand-in)');
  process.exit(0);
}
if (env('DIE') !== undefined) die(Number(env('DIE')), 'told to \u001b[31mdie');
process.on('SIGUSR2', () => reset());
process.on('SIGTERM', () => {
  if (env('STUBBORN') !== undefined) return;
  process.stderr.write('qemu-system-x86_64: terminating on signal 15 from pid 1 (a test)\n');
  event('SHUTDOWN', { guest: false, reason: 'host-signal' });
  exit(0);
});
checkArgs().then(
  () => env('NO_SOCKET') === undefined && listen(),
  error => die(1, String(error)),
);
setInterval(() => {}, 60_000);
