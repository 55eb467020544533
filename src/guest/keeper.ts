/**
 * Keeps one good control connection to the guest.
 *
 * INVARIANTS: no connection is opened before the bell rang. At most one link is current, and it has answered a ping.
 * A lost link is replaced at once (one that keeps flapping within FLAP_MOST_MS), then ever more slowly up to RETRY_MOST_MS; while there is none for UNREACHABLE_MS the
 * state says so. A silent link (two pings unanswered) is a lost one. A bell from another agent (a reboot) ends the link. A clock that is in doubt is
 * looked at instead of the next ping, at once.
 */
import type { Duplex } from 'node:stream';
import { Fault } from '../api/fault.ts';
import { raced, sleep, within } from '../lib/deadline.ts';
import type { Log } from '../lib/log.ts';
import { atMost } from '../lib/rate.ts';
import { rightClock, type Settle } from './clock.ts';
import type { Facts } from './facts.ts';
import { call, type Link, openLink, ping } from './link.ts';

export type GuestState = 'connecting' | 'ready' | 'unreachable';

export interface KeeperOptions {
  /** A fresh control connection; the signal is aborted when it takes too long. */
  open: (signal: AbortSignal) => Promise<Duplex>;
  onState: (state: GuestState, facts?: Facts) => void;
  /** Clock and randomness for a guest that has just rung: the first request, before any other may be made. */
  settle?: () => Settle;
  log: Log;
  /** Between two pings. Default 15 000 ms. */
  ping_every_ms?: number;
  /** How long a ping may take, and the opening of a connection. Default 5000 ms. */
  ping_ms?: number;
}

const PING_EVERY_MS = 15_000;
const PING_MS = 5000;
const RETRY_LEAST_MS = 10;
const RETRY_MOST_MS = 1000;
const UNREACHABLE_MS = 2000;
/** A link that lived shorter is a flap; after a few in a row even the first try waits. */
const FLAP_MS = 1000;
const FLAPS_FREE = 3;
const FLAP_MOST_MS = 20;

export class Keeper implements AsyncDisposable {
  readonly #options: KeeperOptions;
  readonly #closing = new AbortController();
  readonly #running: Promise<void>;
  readonly #may = atMost(5, 10_000);
  readonly #rang = Promise.withResolvers<void>();
  /** Replaced and resolved at each change of link, state or misfit. */
  #changed = Promise.withResolvers<void>();
  /** Ends the current wait of the loop early. */
  #nudged = Promise.withResolvers<void>();
  #link: Link | undefined;
  #state: GuestState = 'connecting';
  #facts: Facts | null = null;
  #misfit: Fault | undefined;
  #held = 0;
  /** The guest that rang last has had its clock set. */
  #settled = false;
  /** The guest's clock may be wrong. */
  #doubt = false;

  constructor(options: KeeperOptions) {
    this.#options = options;
    this.#running = this.#keep().catch(error => {
      if (!this.#closing.signal.aborted) options.log.error(error, 'guest: the upkeep of the connection ended');
    });
  }

  get state(): GuestState {
    return this.#state;
  }

  get facts(): Facts | null {
    return this.#facts;
  }

  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  bell(facts: Facts): void {
    const before = this.#facts;
    this.#facts = facts;
    this.#settled = false;
    this.#misfit = undefined;
    if (before !== null && before.agent_id !== facts.agent_id) {
      this.#say('connecting');
      this.#link?.close('the guest has started again');
    }
    this.#rang.resolve();
    this.#nudge();
  }

  misfit(fault: Fault): void {
    this.#misfit = fault;
    this.#change();
  }

  /** The facts as the guest says them now. */
  learn(facts: Facts): void {
    this.#facts = facts;
  }

  /** A link that answered; waits for one. */
  async link(signal: AbortSignal): Promise<Link> {
    for (;;) {
      signal.throwIfAborted();
      if (this.#link?.alive) return this.#link;
      await raced(this.#changed.promise, signal);
    }
  }

  async ready(signal: AbortSignal): Promise<Facts> {
    for (;;) {
      signal.throwIfAborted();
      if (this.#misfit !== undefined) throw this.#misfit;
      if (this.#state === 'ready' && this.#link?.alive && this.#facts !== null) return this.#facts;
      await raced(this.#changed.promise, signal);
    }
  }

  /** Something took too long: look at the link now. */
  suspect(): void {
    if (this.#held === 0) this.#nudge();
  }

  /** Its clock may be wrong: it, or this host, stood still, or this host's clock was set. */
  doubtClock(): void {
    this.#doubt = true;
    this.suspect();
  }

  /** No pings and no new connections until disposed: a paused guest answers none. */
  hold(): Disposable {
    this.#held++;
    let done = false;
    return {
      [Symbol.dispose]: () => {
        if (done) return;
        done = true;
        this.#held--;
        this.doubtClock();
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#closing.signal.aborted) {
      this.#closing.abort(new Fault('guest', 'The connection to the guest was closed: its VM is gone.'));
      this.#link?.close('the VM is gone');
      this.#rang.promise.catch(() => {});
    }
    await this.#running;
  }

  #change(): void {
    const { resolve } = this.#changed;
    this.#changed = Promise.withResolvers();
    resolve();
  }

  #nudge(): void {
    const { resolve } = this.#nudged;
    this.#nudged = Promise.withResolvers();
    resolve();
  }

  #say(state: GuestState): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#options.onState(state, this.#facts ?? undefined);
    this.#change();
  }

  async #keep(): Promise<void> {
    const { signal } = this.#closing;
    await raced(this.#rang.promise, signal);
    for (let flaps = 0; !signal.aborted; ) {
      const first = flaps <= FLAPS_FREE ? 0 : Math.min(FLAP_MOST_MS, RETRY_LEAST_MS * 2 ** (flaps - FLAPS_FREE - 1));
      this.#link = await this.#connect(first);
      const born = performance.now();
      this.#change();
      this.#say('ready');
      await this.#watch(this.#link);
      const { message } = await this.#link.ended;
      this.#link = undefined;
      flaps = performance.now() - born < FLAP_MS ? flaps + 1 : 0;
      this.#tell(`control connection ended: ${message}`);
    }
  }

  #tell(what: string): void {
    const { pass, swallowed } = this.#may();
    if (pass) this.#options.log.info({ swallowed }, `guest: ${what}`);
  }

  async #connect(first: number): Promise<Link> {
    const { signal } = this.#closing;
    const late = setInterval(() => {
      if (this.#held === 0) this.#say('unreachable');
    }, UNREACHABLE_MS);
    try {
      for (let delay = first; ; delay = Math.min(RETRY_MOST_MS, Math.max(RETRY_LEAST_MS, delay * 2))) {
        if (delay > 0 && (await this.#pause(delay))) delay = 0;
        while (this.#held > 0) await this.#pause(PING_EVERY_MS);
        try {
          return await this.#try();
        } catch (error) {
          signal.throwIfAborted();
          this.#options.log.debug(error, 'guest: control connection could not be opened');
        }
      }
    } finally {
      clearInterval(late);
    }
  }

  /** Waits; true if it was ended early by a nudge. */
  async #pause(ms: number): Promise<boolean> {
    const stop = new AbortController();
    const signal = AbortSignal.any([stop.signal, this.#closing.signal]);
    try {
      const nudged = this.#nudged.promise.then(() => true);
      return await raced(Promise.race([nudged, sleep(ms, false, { signal })]), this.#closing.signal);
    } finally {
      stop.abort();
    }
  }

  async #try(): Promise<Link> {
    using limit = within('opening the control connection', this.#options.ping_ms ?? PING_MS, this.#closing.signal);
    const opening = this.#options.open(limit.signal);
    // One that comes after its deadline is nobody's: it must not stay.
    const stream = await raced(opening, limit.signal).catch(error => {
      opening.then(
        late => late.on('error', () => {}).destroy(),
        () => {},
      );
      throw error;
    });
    const link = openLink(stream);
    this.#doubt = true;
    try {
      if (this.#settled || !(await this.#settle(link, limit.signal))) await ping(link, limit.signal);
      return link;
    } catch (error) {
      link.close('it did not answer');
      throw error;
    }
  }

  /** True if the guest took it: that is as good as a ping. One that refuses is told of and used all the same. */
  async #settle(link: Link, signal: AbortSignal): Promise<boolean> {
    if (this.#options.settle === undefined) return false;
    const body = this.#options.settle();
    const { status } = await call(link, { method: 'POST', path: '/v1/settle', body }, signal);
    this.#settled = true;
    if (status === 204) return true;
    this.#options.log.warn({ status }, 'guest: it did not take clock and entropy');
    return false;
  }

  /** Any answer will do. */
  async #look(link: Link, signal: AbortSignal): Promise<void> {
    const doubt = this.#doubt && this.#options.settle !== undefined;
    this.#doubt = false;
    if (!doubt) return await ping(link, signal);
    const found = await rightClock(link, signal).catch(error => {
      this.#doubt = true;
      throw error;
    });
    if (found !== undefined) this.#tell(found);
  }

  async #watch(link: Link): Promise<void> {
    link.ended.then(() => this.#nudge());
    let missed = 0;
    while (link.alive) {
      if (missed === 0 && !(this.#doubt && this.#held === 0)) {
        await this.#pause(this.#options.ping_every_ms ?? PING_EVERY_MS);
      }
      if (!link.alive) return;
      if (this.#held > 0) {
        missed = 0;
        continue;
      }
      try {
        using limit = within('the answer to a ping', this.#options.ping_ms ?? PING_MS, this.#closing.signal);
        await this.#look(link, limit.signal);
        missed = 0;
      } catch (error) {
        if (this.#closing.signal.aborted || !link.alive) return;
        missed++;
        this.#options.log.debug(error, 'guest: a ping was missed');
        if (missed >= 2 && this.#held === 0) link.close('it fell silent');
      }
    }
  }
}
