#!/usr/bin/env node
/**
 * A stand-in for `firecracker`: no machine, but the real API (with its limits, its order and its two forms of error), the vsock
 * device's sockets with their handshake, metrics, a console, and a guest that dials and listens. Every request is validated
 * against Firecracker's own OpenAPI document; like the real one it leaves its sockets behind.
 *
 * The guest: without FC_STANDIN_HARNESS its port 1024 and its dials echo; with it (the path of `agent-harness`) they reach the
 * real agent's code, and a power-off that was asked for resets the machine.
 *
 * A POINT is `listen`, `api` (it listens), a request such as `PUT /vsock` or `PUT /drives/disk0`, an action such as `InstanceStart`, or
 * `CONNECT`. `cont` is `InstanceStart`, as QEMU has it. FC_STANDIN_…
 *
 * DIE=<code>          says a word on stderr and exits at once
 * DIE_AT=<POINT>      the same there, before it answers; DIE_AFTER: when it has answered; DIE_CODE: the exit code, DIE_SIGNAL: by it
 * STALL=<POINT>       never answers there; HANG=1: from the first request on
 * REFUSE=<POINT>      refuses there
 * LIE=<POINT>         answers there with LIE_WITH=garbage|huge|nojson|drip|close|busy (see firecracker_api.ts)
 * CONNECT=<how>       answers CONNECT with silent|garbage|noline|huge|drip|glued|close|broken (see firecracker_vsock.ts)
 * BOOT_MS=<n>         the guest's driver is there n ms after the start; RESET_MS=<n>: the guest resets n ms after it, and on SIGUSR2
 * LAST=<text>         the last line of its console; empty: none. HALT=1: then it stands still, its agent gone
 * EXIT_CODE=<n>       the exit code of a reset (a processor that fails on the way down makes it 1); CAD=reset: so does Ctrl-Alt-Del
 * EGRESS_MS=<n>       the guest ends each stream that it dials after n ms; DIALS=<n>: it dials n times at once; DIAL_LOOP=1: without end
 * NOISE=<which>       the guest's `control` or `egress` streams say bytes of no sense, without end
 * METRICS=<how>       garbage|huge|flood instead of metrics
 * CONSOLE=<text>      printed on the console at the start; FLOOD_MIB=<n>: as much after it, FLOOD_SEED=<n>: of that make
 * COUNT=<n>           numbered lines of n bytes, one each ms, without end
 * STUBBORN=1          SIGTERM is ignored; IGNORE_END=1: an end that the guest has announced does not come
 */
import { constants, fstatSync, openSync, writeSync } from 'node:fs';
import { Socket } from 'node:net';
import { parseArgs } from 'node:util';
import { type Answer, Api, Refused } from './firecracker_api.ts';
import { Vm } from './firecracker_vm.ts';
import { Vsock } from './firecracker_vsock.ts';
import { count, flood } from './flood.ts';

const env = (name: string): string | undefined => process.env[`FC_STANDIN_${name}`];
const number = (name: string): number | undefined => (env(name) === undefined ? undefined : Number(env(name)));

const die = (code: number, why: string): never => {
  writeSync(2, `${why}\n`);
  const signal = env('DIE_SIGNAL');
  if (signal !== undefined) process.kill(process.pid, signal);
  process.exit(code);
};

const told = (name: string, point: string): boolean => {
  const where = env(name);
  return where === point || (where === 'cont' && point === 'InstanceStart');
};

/** What is to happen at a point: goes on, refuses, or never comes back. */
const at = async (point: string): Promise<void> => {
  if (told('DIE_AT', point)) die(number('DIE_CODE') ?? 1, 'told to \u001b[31mdie');
  const hang = env('HANG') !== undefined && point !== 'listen' && point !== 'api';
  if (hang || told('STALL', point)) await new Promise(() => {});
  if (told('REFUSE', point)) throw new Refused('told to refuse');
};

const options = {
  version: { type: 'boolean' },
  id: { type: 'string' },
  'api-sock': { type: 'string' },
  'log-path': { type: 'string' },
  'metrics-path': { type: 'string' },
  level: { type: 'string' },
} as const;

const parse = () => {
  try {
    return parseArgs({ args: process.argv.slice(2), options, strict: true }).values;
  } catch (error) {
    return die(153, `Arguments parsing error: ${error instanceof Error ? error.message : error}`);
  }
};

const args = parse();
if (args.version) {
  console.log('Firecracker v1.12.1\n\nSupported snapshot data format version: v7.0.0\n');
  process.exit(0);
}
if (env('DIE') !== undefined) die(Number(env('DIE')), 'told to \u001b[31mdie');
const { id = 'anonymous-instance', level = 'Info' } = args;
if (!/^[A-Za-z0-9-]{1,64}$/.test(id)) die(153, `Invalid instance ID: ${id}`);
if (!/^(error|warn(ing)?|info|debug|trace|off)$/i.test(level)) die(152, `Invalid level: ${level}`);
if (!fstatSync(1).isFIFO()) die(1, 'standard output is no named pipe');

const { O_RDWR, O_NONBLOCK } = constants;
const log = args['log-path'] === undefined ? 1 : openSync(args['log-path'], O_RDWR | O_NONBLOCK);
const say = (line: string): void => {
  writeSync(log, `2026-01-01T00:00:00.000000000 [${id}:main] ${line}\n`);
};
const metrics = args['metrics-path'] === undefined ? undefined : openSync(args['metrics-path'], O_RDWR | O_NONBLOCK);

/** The counters since the last time, the same each time. */
const flush = (resets = 0): void => {
  if (metrics === undefined) return;
  const counted = { block: { read_bytes: 1000, write_bytes: 500 }, i8042: { reset_count: resets } };
  const line = `${JSON.stringify({ utc_timestamp_ms: Date.now(), ...counted, vmm: { panic_count: 0 } })}\n`;
  const how = env('METRICS');
  const huge = Buffer.alloc(60_000, how === 'huge' ? 'x' : '{"block":{"read_bytes":1e300,"write_bytes":-1}}\n');
  try {
    if (how === undefined) writeSync(metrics, line);
    else if (how === 'garbage') writeSync(metrics, `\u0000{"block":[]}\n{"block":{"read_bytes":"x"}}\nnull\n${line}`);
    else for (let i = 0; i < (how === 'flood' ? 100 : 6); i++) writeSync(metrics, huge);
  } catch {
    // as the real one: what the pipe does not take is lost
  }
  if (how === 'flood') setTimeout(flush, 1);
};

let halted = false;

/** The guest's way to end, whoever asked for it. */
const reset = (): void => {
  const last = env('LAST') ?? 'reboot: Restarting system';
  halted = env('HALT') !== undefined;
  if (halted) guest.kill();
  if (last !== '') console_(`${last}\r\n`);
  if (halted) return;
  flush(1);
  guest.kill();
  process.exit(number('EXIT_CODE') ?? 0);
};

const console_ = (text: string): void => {
  try {
    writeSync(1, text);
  } catch {
    // dropped
  }
};

const guest = new Vsock({
  at,
  how: env('CONNECT'),
  harness: env('HARNESS') || undefined,
  noise: env('NOISE'),
  boot_ms: number('BOOT_MS') ?? 0,
  egress_ms: number('EGRESS_MS'),
  dials: number('DIALS') ?? 1,
  dial_loop: env('DIAL_LOOP') !== undefined,
  onHarnessEnd: code => {
    if (!halted) die(1, `the harness ended with ${code}`);
  },
  onEnding: () => {
    if (env('IGNORE_END') === undefined) setTimeout(reset, 20);
  },
});

const vm = new Vm(id, {
  vsock: (path, cid) => guest.listen(path, cid),
  FlushMetrics: () => flush(),
  SendCtrlAltDel: () => {
    if (env('CAD') === 'reset') setTimeout(reset, 20);
  },
  InstanceStart: () => {
    flush();
    new Socket({ fd: 1, readable: false }).unref(); // from now on a write that would wait fails, as the real one has it
    console_(env('CONSOLE') ?? 'stand-in: up\r\n');
    count(number('COUNT') ?? 0, 'dropped');
    flood(number('FLOOD_MIB') ?? 0, number('FLOOD_SEED') ?? 1);
    guest.start();
    const ms = number('RESET_MS');
    if (ms !== undefined) setTimeout(reset, ms);
  },
});

const answer = async (method: string, path: string, body: string): Promise<Answer> => {
  const point = vm.point(method, path, body);
  const lie = env('LIE') === point ? env('LIE_WITH') : undefined;
  if (lie !== undefined) return { lie };
  await at(point);
  const given = await vm.ask(method, path, body);
  const after = env('DIE_AFTER') === point ? () => die(number('DIE_CODE') ?? 1, 'told to die') : undefined;
  return { ...given, ...(after && { after }) };
};

process.on('SIGUSR2', () => reset());
process.on('SIGTERM', () => {
  if (env('STUBBORN') !== undefined) return;
  process.removeAllListeners('SIGTERM');
  process.kill(process.pid, 'SIGTERM');
});
// hung up, it ends with a code of its own
process.on('SIGHUP', () => process.exit(156));
setInterval(() => {}, 60_000);
await at('listen').catch(() => die(1, 'told to refuse'));
const api = new Api(args['api-sock'] ?? '/run/firecracker.socket', { answer, say });
await api.listen().catch(error => die(1, `Failed to open the API socket: ${error.message}`));
await at('api').catch(() => die(1, 'told to refuse'));
