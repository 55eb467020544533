/** Deadlines: every wait in Nexus has one. */
import { setTimeout as sleepFor } from 'node:timers/promises';

export class DeadlineError extends Error {
  constructor(what: string, ms: number) {
    super(`${what} took longer than ${ms} ms`);
    this.name = 'DeadlineError';
  }
}

/** Rejects with the signal's reason as soon as it is aborted; the promise itself is left to settle unseen. */
export const raced = <T>(promise: Promise<T>, signal: AbortSignal): Promise<T> => {
  if (signal.aborted) {
    promise.catch(() => {});
    return Promise.reject(signal.reason);
  }
  return new Promise<T>((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    const over = () => signal.removeEventListener('abort', onAbort);
    promise.then(
      value => {
        over();
        resolve(value);
      },
      error => {
        over();
        reject(error);
      },
    );
  });
};

/** A signal that is aborted after `ms` or with `signal`. */
export const within = (what: string, ms: number, signal: AbortSignal): Disposable & { signal: AbortSignal } => {
  const timer = new AbortController();
  const handle = setTimeout(() => timer.abort(new DeadlineError(what, ms)), ms);
  return { signal: AbortSignal.any([timer.signal, signal]), [Symbol.dispose]: () => clearTimeout(handle) };
};

/** The promise's value, or a `DeadlineError` after `ms`, or the reason of `signal`. */
export const withDeadline = async <T>(
  what: string,
  ms: number,
  promise: Promise<T>,
  signal?: AbortSignal,
): Promise<T> => {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => late.reject(new DeadlineError(what, ms)), ms);
  try {
    const first = Promise.race([promise, late.promise]);
    return await (signal === undefined ? first : raced(first, signal));
  } finally {
    clearTimeout(timer);
  }
};

/** Calls `probe` until it gives something other than undefined. Throws a `DeadlineError` after `ms`. */
export const poll = async <T>(
  what: string,
  ms: number,
  probe: () => Promise<T | undefined> | T | undefined,
  options: { every_ms?: number; signal?: AbortSignal } = {},
): Promise<T> => {
  const end = performance.now() + ms;
  for (;;) {
    options.signal?.throwIfAborted();
    const value = await probe();
    if (value !== undefined) return value;
    if (performance.now() >= end) throw new DeadlineError(what, ms);
    await sleepFor(options.every_ms ?? 10, undefined, options.signal === undefined ? {} : { signal: options.signal });
  }
};

export { sleepFor as sleep };

/** Waits `ms`. Rejects with the signal's own reason, not with an AbortError around it. */
export const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  raced(sleepFor(ms, undefined, { signal }), signal);
