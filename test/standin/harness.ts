/** `agent-harness` as the guest of a stand-in: the real agent's code behind two sockets in the working directory. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';

const CONTROL = 'control.sock';
const EGRESS = 'egress.sock';
const LOOK_MS = 4;

export interface HarnessOptions {
  /** Path of `agent-harness`. */
  program: string;
  /** It has dialled its host. */
  onDial: (stream: Socket) => void;
  /** It takes control connections. */
  onReady: () => void;
  onEnd: (code: number | null) => void;
}

export interface Harness {
  control(): Socket;
  signal(signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): void;
}

/** True for what the guest says on its egress stream when it goes down: the body of POST /v1/ending. */
export const saysEnding = (chunk: Buffer): boolean => chunk.includes('"by":"');

/** Both ways between the two, as long as both are there. */
export const join = (host: Socket, guest: Socket): void => {
  host.pipe(guest, { end: false });
  guest.pipe(host, { end: false });
};

/** Says bytes of no sense for as long as somebody takes them. */
export const babble = (host: Socket): void => {
  const { randomBytes } = process.getBuiltinModule('node:crypto'); // 6 ms, for a few
  const piece = randomBytes(65_536);
  const more = (error?: Error | null) => {
    if (!error && !host.destroyed) host.write(piece, more);
  };
  host.on('error', () => {}).resume();
  more();
};

export const startHarness = (options: HarnessOptions): Harness => {
  for (const path of [CONTROL, EGRESS]) rmSync(path, { force: true });
  let child: ChildProcess | undefined;
  createServer(options.onDial).listen(EGRESS, () => {
    // our death ends it too, even by SIGKILL, and even one that comes before the first of these words is run
    const script = '[ "$PPID" = "$0" ] && exec "$@"';
    const command = ['--pdeathsig', 'KILL', 'sh', '-c', script, String(process.pid)];
    child = spawn('setpriv', [...command, options.program, '-egress', EGRESS, CONTROL], {
      stdio: ['ignore', 2, 2],
    });
    child.once('exit', code => options.onEnd(code));
    const look = setInterval(() => {
      if (!existsSync(CONTROL)) return;
      clearInterval(look);
      options.onReady();
    }, LOOK_MS);
  });
  return { control: () => connect(CONTROL), signal: signal => child?.kill(signal) };
};
