/**
 * ssh into a VM, to be compared with. The VM has no network device: it goes through `nexusctl port` to an sshd on the guest's loopback,
 * which is set up to be quick (an ed25519 key, no PAM, no DNS).
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import type { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { execResult } from '../src/client/exec.ts';
import { poll } from '../src/lib/deadline.ts';
import { exists } from '../src/lib/files.ts';
import type { World } from '../test/kit/world.ts';
import { BUNDLE } from './kit.ts';

export interface Ssh extends AsyncDisposable {
  /** Runs a command over a connection of its own; gives the number of bytes that it wrote. */
  fresh(command: string, input?: Readable): Promise<number>;
  /** Over a connection that is kept (ControlMaster). */
  kept(command: string): Promise<number>;
}

const SERVER = ['HostKey=/root/host_key', 'AuthorizedKeysFile=/root/keys', 'ListenAddress=127.0.0.1', 'UsePAM=no'];
const CLIENT = ['StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null', 'IdentitiesOnly=yes', 'LogLevel=ERROR'];
const flags = (options: readonly string[]) => options.flatMap(option => ['-o', option]);

const listen = async (w: World, vm: string, dir: string): Promise<void> => {
  const put = async (path: string, from: string) =>
    w.client.fs.write({ vm, path, mode: '0600' }, { body: await readFile(join(dir, from)) });
  for (const key of ['host', 'client'])
    await promisify(execFile)('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(dir, key)]);
  await put('/root/host_key', 'host');
  await put('/root/keys', 'client.pub');
  const options = flags([...SERVER, 'UseDNS=no', 'PidFile=none', 'StrictModes=no']).join(' ');
  const sshd = `setsid -f /usr/sbin/sshd -D -f /dev/null ${options} >/run/sshd.log 2>&1`;
  const listens =
    'for i in $(seq 100); do grep -q ":0016 .* 0A " /proc/net/tcp && exit 0; sleep 0.1; done; cat /run/sshd.log >&2; exit 1';
  const argv = ['sh', '-c', `mkdir -p /run/sshd; ${sshd}; ${listens}`];
  const { exit_code, stderr } = await execResult(w.client.exec.run({ vm, argv }));
  if (exit_code !== 0) throw new Error(`sshd: ${stderr}`);
};

const command = async (args: readonly string[], input?: Readable): Promise<number> => {
  const child = spawn('ssh', args, { stdio: [input === undefined ? 'ignore' : 'pipe', 'pipe', 'inherit'] });
  const closed = once(child, 'close');
  if (child.stdin !== null) input?.pipe(child.stdin);
  let bytes = 0;
  child.stdout?.on('data', (chunk: Buffer) => {
    bytes += chunk.length;
  });
  const [code] = await closed;
  if (code !== 0) throw new Error(`ssh ended with ${code}`);
  return bytes;
};

const end = async (child: ChildProcess): Promise<void> => {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = once(child, 'exit');
  child.kill();
  await gone;
};

/** `dir` is for its keys. */
export const openSsh = async (w: World, vm: string, dir: string): Promise<Ssh> => {
  await listen(w, vm, dir);
  const port = spawn(process.execPath, [BUNDLE, 'nexusctl', '--socket', w.socket, 'port', vm, ':22'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const [line] = await once(port.stdout.setEncoding('utf8'), 'data');
  const local = /:(\d+) is/.exec(line)?.[1] ?? '';
  const to = ['-F', 'none', '-i', join(dir, 'client'), ...flags(CLIENT), '-p', local, 'root@127.0.0.1'];
  const socket = join(dir, 'master');
  const master = spawn('ssh', ['-M', '-S', socket, '-N', ...to], { stdio: ['ignore', 'ignore', 'inherit'] });
  await poll('the connection that ssh keeps', 30_000, async () => (await exists(socket)) || undefined);
  return {
    fresh: (text, input) => command([...to, text], input),
    kept: text => command(['-S', socket, ...to, text]),
    [Symbol.asyncDispose]: async () => {
      await end(master);
      await end(port);
    },
  };
};
