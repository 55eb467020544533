/** What a guest says of itself (the body of the bell) and when it goes down; checked, bounded, safe to show. */
import { z } from 'zod';
import { Arch } from '../api/common.ts';
import { Fault } from '../api/fault.ts';
import { plain } from '../lib/text.ts';

export const GENERATION = 1;

const Line = z.string().max(1024).transform(plain);

/** Unknown fields are left out: a later agent of the same generation may say more. */
export const Facts = z.object({
  generation: z.literal(GENERATION),
  agent_version: Line,
  agent_id: z.string().regex(/^[0-9a-f]{32}$/),
  boot_id: Line,
  kernel: Line,
  os: Line,
  hostname: Line,
  init: Line,
  arch: Arch,
  problems: z.array(Line).max(64).default([]),
});
export type Facts = z.infer<typeof Facts>;

const Size = z.int().min(0);
const MOST = 64;

/** What changes all the time; asked for when somebody wants to know. */
export const Now = z.object({
  load: z.tuple([z.number().min(0), z.number().min(0), z.number().min(0)]),
  uptime_ms: Size,
  memory_total_bytes: Size,
  memory_available_bytes: Size,
  disks: z.array(z.object({ path: Line, type: Line, size_bytes: Size, free_bytes: Size })).max(MOST),
  addresses: z.array(z.object({ interface: Line, address: Line })).max(MOST),
  ports: z.array(z.object({ address: Line, port: z.int().min(0).max(65_535) })).max(MOST),
});
export type Now = z.infer<typeof Now>;

export const Ending = z.object({
  kind: z.enum(['poweroff', 'reboot', 'halt', 'down']),
  by: z.enum(['host', 'guest']),
});
export type Ending = z.infer<typeof Ending>;

const OtherGeneration = z.object({ generation: z.int().min(0) });

/** Parses the bytes of a JSON body. Throws a `guest` fault that says what is wrong. */
export const parseBody = <T>(schema: z.ZodType<T>, body: Buffer, what: string): T => {
  let json: unknown;
  try {
    json = JSON.parse(body.toString('utf8'));
  } catch (cause) {
    throw new Fault('guest', `Cannot read ${what}: the guest sent no valid JSON.`, { cause });
  }
  const parsed = schema.safeParse(json);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const where = plain(issue?.path.join('.') ?? '').slice(0, 64);
  throw new Fault('guest', `Cannot read ${what}: ${where === '' ? 'it' : `'${where}'`} is not as agreed.`);
};

/** Facts from the bytes of a bell. Another generation is a fault of its own: `unsupported`. */
export const parseFacts = (body: Buffer): Facts => {
  const { generation } = parseBody(OtherGeneration, body, "the guest's facts");
  if (generation !== GENERATION) {
    throw new Fault(
      'unsupported',
      `Cannot talk to the guest: its agent speaks generation ${generation}, this daemon ${GENERATION}.`,
      {
        hint:
          generation < GENERATION
            ? 'Build the image again with the agent of this version.'
            : 'Install a newer Nexus, or build the image again with the agent of this version.',
      },
    );
  }
  return parseBody(Facts, body, "the guest's facts");
};
