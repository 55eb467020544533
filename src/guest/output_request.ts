/** The requests whose answers are a command's output. */
import { Fault } from '../api/fault.ts';
import type { Offsets } from './exec.ts';
import { refusal, spawnRefusal } from './refusal.ts';
import type { OutputRequest } from './requests.ts';
import { type Asked, encodePreamble, ID } from './wire.ts';

export const checkId = (id: string): string => {
  if (!ID.test(id)) throw new Fault('invalid', 'Cannot name a command so: an ID has 1 to 64 of A-Z a-z 0-9 _ -.');
  return id;
};

export const outputRequest = (id: string, offsets: Offsets): OutputRequest => ({
  id,
  from: offsets,
  what: `read the output of command ${id}`,
  headers: { ':path': `/v1/exec/${id}/output?stdout=${offsets.stdout}&stderr=${offsets.stderr}` },
  refused: (status, body) => refusal(`read the output of command ${id}`, status, body),
});

export const tailRequest = (id: string, tail: number): OutputRequest => ({
  ...outputRequest(checkId(id), { stdout: 0, stderr: 0 }),
  headers: { ':path': `/v1/exec/${id}/output?tail=${tail}` },
});

export const runRequest = (asked: Omit<Asked, 'stdin'> & { stdin: 'none' | 'open' | 'later' }): OutputRequest => ({
  what: 'run the command',
  id: checkId(asked.id),
  from: { stdout: 0, stderr: 0 },
  headers: { ':method': 'POST', ':path': asked.tty === undefined ? '/v1/exec' : '/v1/terminal' },
  body: encodePreamble(asked),
  once: true,
  refused: (status, body) => spawnRefusal(asked, status, body),
});
