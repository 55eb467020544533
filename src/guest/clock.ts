/**
 * Whether the guest's clock is right, and how it is put right: after its machine or this host stood still, and on each new connection.
 *
 * INVARIANTS: a clock is touched only if it is surely off by more than NEAR_MS, whatever the answer's way back took: what keeps time better
 * in the guest is left alone. It is put forward or back by a difference, so that the request's own way takes nothing from it.
 */
import { z } from 'zod';
import { DeadlineError } from '../lib/deadline.ts';
import { parseBody } from './facts.ts';
import { call, type Link } from './link.ts';
import { isUnknown } from './refusal.ts';

export const Clock = z.object({ clock_us: z.int().min(0) });

export interface Settle {
  clock_ms?: number;
  /** base64 */
  entropy?: string;
  hostname?: string;
}

const NEAR_MS = 500;
/** An answer that takes longer says too little. */
const SLOW_MS = 1000;
const ROUNDS = 3;

/** Older agents know nothing but this: they set the clock to what they are told, whenever that comes. */
const setBlindly = async (link: Link, signal: AbortSignal): Promise<void> => {
  await call(link, { method: 'POST', path: '/v1/settle', body: { clock_ms: Date.now() } }, signal);
};

interface Reading {
  /** How far the guest's clock is ahead. */
  off_ms: number;
  /** The round trip. */
  took_ms: number;
}

type Read = Reading | 'older' | undefined;

const read = async (link: Link, signal: AbortSignal): Promise<Read> => {
  const [asked_ms, begun] = [Date.now(), performance.now()];
  const { status, body } = await call(link, { method: 'GET', path: '/v1/clock' }, signal);
  const took_ms = performance.now() - begun;
  if (isUnknown(status, body)) return 'older';
  if (status !== 200) return undefined;
  try {
    const { clock_us } = parseBody(Clock, body, "the guest's clock");
    return { off_ms: clock_us / 1000 - (asked_ms + took_ms / 2), took_ms };
  } catch {
    return undefined;
  }
};

const LATE = 'its answers come too late to know how right its clock is';

/**
 * Looks at the guest's clock and puts it right if it is off; gives what is worth knowing of that. Any answer is as good as one to a ping: what throws is
 * a lost connection, and a first answer that does not come.
 */
export const rightClock = async (link: Link, signal: AbortSignal): Promise<string | undefined> => {
  const first = await read(link, signal);
  try {
    return await right(link, first, signal);
  } catch (error) {
    if (error instanceof DeadlineError) return LATE;
    throw error;
  }
};

const right = async (link: Link, first: Read, signal: AbortSignal): Promise<string | undefined> => {
  let stepped: number | undefined;
  for (let round = 0; round < ROUNDS; round++) {
    const reading = round === 0 ? first : await read(link, signal);
    if (reading === 'older') {
      await setBlindly(link, signal);
      return undefined;
    }
    if (reading === undefined) return 'its clock cannot be read';
    const { off_ms, took_ms } = reading;
    if (Math.abs(off_ms) > NEAR_MS + took_ms / 2) {
      const by_us = -Math.round(off_ms * 1000);
      const { status } = await call(link, { method: 'POST', path: '/v1/clock', body: { by_us } }, signal);
      if (status !== 200) return `its clock is off by ${Math.round(off_ms)} ms and cannot be set`;
      stepped = off_ms;
    } else if (took_ms > SLOW_MS) {
      return LATE;
    } else {
      return stepped === undefined ? undefined : `its clock was off by ${Math.round(stepped)} ms and was put right`;
    }
  }
  return 'its clock may be off: it does not stay as it is set';
};
