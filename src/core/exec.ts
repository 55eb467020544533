import { createHash } from 'node:crypto';
import { ID_PATTERN } from '../api/common.ts';
import type { ExecInfo, ExecMessage } from '../api/exec.ts';
import { Fault } from '../api/fault.ts';
import type { OpIn } from '../api/ops.ts';
import type { ExecStream } from '../guest/exec.ts';
import type { GuestExecs } from '../guest/exec_list.ts';
import type { HandlersOf } from './handler.ts';
import type { Host, Live } from './host.ts';
import { idOf, newId } from './ids.ts';
import { awaitGuest, brokenOff, needLive, small } from './inside.ts';
import { withEnv } from './provision.ts';

/** One message carries at most this much output, so that slow readers see progress. */
const MESSAGE_BYTES = 64 * 1024;

export const execHandlers = (host: Host): HandlersOf<'exec'> => ({
  'exec.run': async (ctx, input) => {
    const live = await needLive(host, input.vm);
    await awaitGuest(live, input.vm, ctx.signal);
    const stream = await startExec(live, input, ctx.signal);
    return messages(host, live, stream, ctx.signal);
  },
  'exec.list': async (ctx, { vm }) => {
    const live = await needLive(host, vm);
    await awaitGuest(live, vm, ctx.signal);
    return infos(await live.guest.execs(small(live)));
  },
  'exec.attach': async (ctx, { vm, exec, stdout, stderr }) => {
    const live = await needLive(host, vm);
    await awaitGuest(live, vm, ctx.signal);
    return messages(host, live, await live.guest.attachExec(exec, { stdout, stderr }, ctx.signal), ctx.signal);
  },
  'exec.resize': async (_ctx, { vm, exec, cols, rows }) => {
    const live = await needLive(host, vm);
    await live.guest.resizeExec(exec, cols, rows, small(live));
    return {};
  },
  'exec.stdin': async (ctx, { vm, exec }) => {
    const live = await needLive(host, vm);
    if (ctx.body === undefined) throw new Fault('invalid', 'Cannot feed the standard input: the request has no body.');
    return { bytes: await live.guest.writeStdin(exec, ctx.body, AbortSignal.any([ctx.signal, live.gone.signal])) };
  },
  'exec.signal': async (_ctx, { vm, exec, signal }) => {
    const live = await needLive(host, vm);
    await live.guest.signalExec(exec, signal, small(live));
    return {};
  },
});

const startExec = (live: Live, input: OpIn<'exec.run'>, client: AbortSignal): Promise<ExecStream> => {
  const { vm, idempotency_key: key, ...spec } = input;
  const env = withEnv(live, spec.env);
  if (key === undefined) return live.guest.exec({ id: newId('exec'), ...spec, env }, { signal: client });
  const asked = { id: idOf('exec', live.vm_id, key), digest: digestOf(spec), ...spec, env };
  return live.guest.exec(asked, { signal: client }).catch((error: unknown) => {
    if (!(error instanceof Fault && error.code === 'exists')) throw error;
    throw new Fault(
      'exists',
      `Cannot run the command in VM '${vm}': its idempotency key was used for another command.`,
    );
  });
};

/** The same for the same request, in whatever order its environment came. */
const digestOf = (spec: { env: Record<string, string> }): string => {
  const env = Object.entries(spec.env).sort(([a], [b]) => (a < b ? -1 : 1));
  return createHash('sha256')
    .update(JSON.stringify({ ...spec, env }))
    .digest('hex');
};

/** Those that were started through a daemon. */
const infos = (list: GuestExecs): ExecInfo[] =>
  list
    .filter(({ id }) => ID_PATTERN.test(id) && id.startsWith('exec_'))
    .map(({ id, pid, running, command, tty, session, started_ms, exit_code, exit_signal }) => ({
      exec: id,
      pid,
      command,
      running,
      tty,
      session: session ?? null,
      started_at_ms: started_ms,
      exit_code: exit_code ?? null,
      signal: exit_signal ?? null,
    }))
    .sort((a, b) => a.started_at_ms - b.started_at_ms);

const messages = async function* (
  host: Host,
  live: Live,
  stream: ExecStream,
  client: AbortSignal,
): AsyncGenerator<ExecMessage> {
  const detach = () => stream.detach();
  client.addEventListener('abort', detach, { once: true });
  try {
    yield { type: 'started', exec: stream.id, pid: stream.pid };
    for await (const piece of stream) {
      if ('gap' in piece) {
        yield { type: 'gap', channel: piece.channel, bytes: piece.gap };
        continue;
      }
      for (let at = 0; at < piece.data.length; at += MESSAGE_BYTES) {
        yield { type: piece.channel, data: piece.data.subarray(at, at + MESSAGE_BYTES).toString('base64') };
      }
    }
    yield await stream.result;
  } catch (error) {
    throw await brokenOff(host, live, stream.id, error);
  } finally {
    client.removeEventListener('abort', detach);
    stream.detach();
  }
};
