/** A real door on a real socket, with handlers of the test's own; the others answer `unsupported`. */
import { mkdtemp, rm } from 'node:fs/promises';
import { type IncomingHttpHeaders, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Fault } from '../../src/api/fault.ts';
import { OP_NAMES } from '../../src/api/ops.ts';
import type { Vm } from '../../src/api/vm.ts';
import { blankVm, vmOps } from '../../src/api/vm_ops.ts';
import { Nexus } from '../../src/client/nexus.ts';
import type { Handlers } from '../../src/core/handler.ts';
import { openHttp } from '../../src/daemon/http.ts';
import { type Log, silentLog } from '../../src/lib/log.ts';

export interface Answer {
  status: number;
  headers: IncomingHttpHeaders;
  text: string;
  json: unknown;
}

export interface Sent {
  method?: string;
  path: string;
  headers?: Record<string, string>;
  body?: string | Uint8Array;
}

/** One request without the client of ours in between. */
export const ask = (socketPath: string, sent: Sent): Promise<Answer> =>
  new Promise((resolve, reject) => {
    const { method = 'GET', path, headers = {}, body } = sent;
    const json = body === undefined ? {} : { 'content-type': 'application/json' };
    const req = request({ socketPath, agent: false, method, path, headers: { ...json, ...headers } }, async message => {
      let text = '';
      for await (const chunk of message.setEncoding('utf8')) text += chunk;
      const isJson = /json/.test(message.headers['content-type'] ?? '');
      const { headers: got, statusCode: status = 0 } = message;
      resolve({ status, headers: got, text, json: isJson ? JSON.parse(text) : undefined });
    });
    req.on('error', reject);
    req.end(body);
  });

export const stubs = (handlers: Partial<Handlers>): Handlers => {
  const all: Record<string, unknown> = {};
  for (const name of OP_NAMES) {
    all[name] = async () => {
      throw new Fault('unsupported', `The test has no handler for ${name}.`);
    };
  }
  return { ...all, ...handlers } as Handlers;
};

export interface TestDoor extends AsyncDisposable {
  socket: string;
  dir: string;
  nexus: Nexus;
  close(): Promise<void>;
}

export const testDoor = async (handlers: Partial<Handlers>, log: Log = silentLog()): Promise<TestDoor> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-door-'));
  const door = await openHttp({ handlers: stubs(handlers), socket: join(dir, 'd.sock'), log, check_output: true });
  const nexus = new Nexus({ socket: door.socket });
  return {
    socket: door.socket,
    dir,
    nexus,
    close: door.close,
    [Symbol.asyncDispose]: async () => {
      await nexus[Symbol.asyncDispose]();
      await door.close();
      await rm(dir, { recursive: true, force: true });
    },
  };
};

/** A VM as the contract wants it. */
export const sampleVm = (name: string): Vm => ({
  ...blankVm(vmOps['vm.create'].input.parse({ name }), 'vm_01k9zzzzzzzzzzzzzzzzzzzzzz', 1_700_000_000_000),
  vsock_cid: 3,
});

/** A job as the contract wants it. */
export const sampleJob = (state: 'running' | 'succeeded' | 'failed' | 'canceled') => ({
  id: 'job_01k9zzzzzzzzzzzzzzzzzzzzzz',
  kind: 'kernel.download',
  subject: 'debian:12',
  state,
  progress: null,
  error:
    state === 'failed' ? { code: 'unverified' as const, detail: 'The checksum differs.', hint: 'Try again.' } : null,
  result_id: state === 'succeeded' ? 'krn_01k9zzzzzzzzzzzzzzzzzzzzzz' : null,
  created_at_ms: 1,
  started_at_ms: 1,
  ended_at_ms: state === 'running' ? null : 2,
});
