/**
 * The guest's files.
 *
 * INVARIANTS: whatever streams holds one of the places of commands and their input until it is over. Bytes of a file are given
 * at the place where they belong: after a lost connection reading goes on at the next byte, and only in the same content.
 */
import http2 from 'node:http2';
import { Readable } from 'node:stream';
import { Fault } from '../api/fault.ts';
import type { FsEntry, FsWatchMessage } from '../api/fs.ts';
import { raced } from '../lib/deadline.ts';
import type { Slots } from '../lib/slots.ts';
import type { Source } from './exec.ts';
import { parseBody } from './facts.ts';
import { fileRefusal, shown } from './file_fault.ts';
import { Change, Entry, pathOf, Taken, Written } from './file_wire.ts';
import { content, lines } from './incoming.ts';
import { LostError } from './link.ts';
import type { Requests, SmallRequest } from './requests.ts';
import { framed } from './send.ts';
import { upload } from './upload.ts';

/** From the request to the head of the answer, lost connections included. */
const HEAD_MS = 30_000;
/** How long the guest may send nothing while we wait for content. */
const SILENCE_MS = 60_000;
/** A tree of a million files takes its time to go. */
const REMOVE_MS = 600_000;
/** Times in a row that a connection may be lost without a byte in between. */
const BARREN_MOST = 10;

/** Bytes that are on their way from the guest. Dispose it, read or not. */
export interface Incoming<Head> extends Disposable {
  head: Head;
  /** How many bytes there are to come; null: that is not known. */
  length: number | null;
  bytes: AsyncIterable<Buffer>;
}

export interface ReadRange {
  offset_bytes: number;
  length_bytes?: number | undefined;
  etag?: string | undefined;
}

export interface WriteOptions {
  mode?: string | undefined;
  uid?: number | undefined;
  gid?: number | undefined;
  modified_at_ms?: number | undefined;
  append?: boolean | undefined;
  offset_bytes?: number | undefined;
}

interface Opened {
  source: Source;
  entry: FsEntry;
  length: number | null;
}

export class Files {
  readonly #requests: Requests;
  readonly #bulk: Slots;
  readonly #silence_ms: number;

  constructor(requests: Requests, bulk: Slots, silence_ms = SILENCE_MS) {
    this.#silence_ms = silence_ms;
    this.#requests = requests;
    this.#bulk = bulk;
  }

  async stat(path: string, follow: boolean, signal: AbortSignal): Promise<FsEntry> {
    const what = `look at ${shown(path)}`;
    const { body } = await this.#requests.call(
      {
        what,
        method: 'GET',
        path: pathOf('stat', { path, follow: follow ? 1 : 0 }),
        again: true,
        refused: fileRefusal,
      },
      signal,
    );
    return parseBody(Entry, body, 'what the guest says of the file');
  }

  /** Ends when the path itself is gone; events that the guest had no room for are told as `overflow`. */
  async *watch(path: string, recursive: boolean, signal: AbortSignal): AsyncGenerator<FsWatchMessage> {
    const what = `watch ${shown(path)}`;
    const query = pathOf('watch', { path, recursive: recursive ? 1 : 0 });
    yield* this.#streamed(what, query, null, signal, chunks => lines(chunks, Change, what));
  }

  async *list(path: string, signal: AbortSignal): AsyncGenerator<FsEntry> {
    const what = `list ${shown(path)}`;
    yield* this.#streamed(what, pathOf('list', { path }), this.#silence_ms, signal, chunks =>
      lines(chunks, Entry, what),
    );
  }

  async read(path: string, range: ReadRange, signal: AbortSignal): Promise<Incoming<FsEntry>> {
    const what = `read ${shown(path)}`;
    const limit = this.#requests.bounded(signal);
    const place = await this.#bulk.take(1, limit);
    const over = new AbortController();
    const both = AbortSignal.any([limit, over.signal]);
    const close = () => {
      over.abort(new Fault('canceled', `Reading ${shown(path)} was given up.`));
      place[Symbol.dispose]();
    };
    try {
      const first = await this.#openRead(what, path, range, both);
      const bytes = this.#bytes(what, path, range, first, both);
      // nobody may ever ask for the first of them
      over.signal.addEventListener('abort', () => first.source.stream.close(http2.constants.NGHTTP2_CANCEL), {
        once: true,
      });
      return { head: first.entry, length: first.length, bytes, [Symbol.dispose]: close };
    } catch (error) {
      close();
      throw error;
    }
  }

  /** Writes what `body` gives: whole or not at all, unless it is to be appended or put at an offset. */
  async write(path: string, options: WriteOptions, body: Readable, signal: AbortSignal): Promise<Written> {
    const { append, offset_bytes: offset, ...rest } = options;
    const query = pathOf('write', { path, offset, append: append === true ? 1 : undefined, ...rest });
    body.on('error', () => {}); // the frames' reader hears it
    const answer = await this.#send(`write ${shown(path)}`, query, framed(body), signal).finally(() => body.destroy());
    return parseBody(Written, answer, 'what the guest wrote');
  }

  /** A directory and all in it as a tar archive: it ends whole or throws. */
  async exportTree(path: string, devices: boolean, signal: AbortSignal): Promise<Incoming<FsEntry>> {
    const what = `read all of ${shown(path)}`;
    const head = await this.stat(path, false, signal);
    const limit = this.#requests.bounded(signal);
    const over = new AbortController();
    const chunks = this.#streamed(
      what,
      pathOf('tree', { path, devices: devices ? 1 : 0 }),
      this.#silence_ms,
      AbortSignal.any([limit, over.signal]),
      bytes => bytes,
    );
    const close = () => {
      over.abort(new Fault('canceled', `Reading ${shown(path)} was given up.`));
      void chunks.return(undefined).catch(() => {}); // one that waits for its reader would keep its place
    };
    return { head, length: null, bytes: chunks, [Symbol.dispose]: close };
  }

  async importTree(path: string, body: Readable, signal: AbortSignal): Promise<Taken> {
    const what = `unpack into ${shown(path)}`;
    body.on('error', () => {}); // the frames' reader hears it
    const answer = await this.#send(what, pathOf('tree', { path }), framed(body), signal).finally(() => body.destroy());
    return parseBody(Taken, answer, 'what the guest unpacked');
  }

  async remove(path: string, recursive: boolean, signal: AbortSignal): Promise<void> {
    const body = Readable.from([Buffer.from(JSON.stringify({ path, recursive }))]);
    const limit = AbortSignal.any([signal, AbortSignal.timeout(REMOVE_MS)]);
    const hint = recursive ? undefined : '--recursive removes a directory and all in it';
    await this.#send(`remove ${shown(path)}`, '/v1/fs/remove', body, limit, hint);
  }

  async mkdir(path: string, options: Record<string, unknown>, signal: AbortSignal): Promise<void> {
    await this.#change('mkdir', `make directory ${shown(path)}`, { path, ...options }, signal);
  }

  async rename(path: string, new_path: string, replace: boolean, signal: AbortSignal): Promise<void> {
    const what = `rename ${shown(path)} to ${shown(new_path)}`;
    await this.#change('rename', what, { path, new_path, replace }, signal);
  }

  async chmod(path: string, options: Record<string, unknown>, signal: AbortSignal): Promise<void> {
    await this.#change('chmod', `change ${shown(path)}`, { path, ...options }, signal);
  }

  async #change(verb: string, what: string, body: Record<string, unknown>, signal: AbortSignal): Promise<void> {
    const path = `/v1/fs/${verb}`;
    const request: SmallRequest = { what, method: 'POST', path, body, again: false, refused: fileRefusal };
    await this.#requests.call(request, signal);
  }

  /** A request with a body, and its answer. */
  async #send(what: string, path: string, body: Readable, signal: AbortSignal, hint?: string): Promise<Buffer> {
    const limit = this.#requests.bounded(signal);
    try {
      using _place = await this.#bulk.take(1, limit);
      const answer = await upload(
        this.#requests,
        { what, path, body, noun: 'what was sent', silence_ms: this.#silence_ms },
        limit,
        signal,
      );
      if (answer.status < 200 || answer.status > 299) throw fileRefusal(what, answer.status, answer.body, hint);
      return answer.body;
    } finally {
      body.destroy();
    }
  }

  /** An answer that is streamed once: a lost connection ends it. */
  async *#streamed<T>(
    what: string,
    path: string,
    silence_ms: number | null,
    signal: AbortSignal,
    parse: (chunks: AsyncGenerator<Buffer>) => AsyncGenerator<T>,
  ): AsyncGenerator<T> {
    const limit = this.#requests.bounded(signal);
    using _place = await this.#bulk.take(1, limit);
    const { source } = await this.#open(what, path, limit);
    const cancel = () => source.stream.close(http2.constants.NGHTTP2_CANCEL);
    limit.addEventListener('abort', cancel, { once: true });
    try {
      yield* parse(content(source, what, silence_ms));
    } catch (error) {
      limit.throwIfAborted();
      if (error instanceof LostError) throw new Fault('guest', `Cannot ${what}: ${error.message}.`, { cause: error });
      throw error;
    } finally {
      limit.removeEventListener('abort', cancel);
      cancel();
    }
  }

  #open(what: string, path: string, signal: AbortSignal) {
    const refused = (status: number, body: Buffer) => fileRefusal(what, status, body);
    return this.#requests.stream({ what, headers: { ':path': path }, refused }, HEAD_MS, signal);
  }

  async #openRead(what: string, path: string, range: ReadRange, signal: AbortSignal): Promise<Opened> {
    const { offset_bytes: offset, length_bytes: length, etag } = range;
    const { source, headers } = await this.#open(what, pathOf('read', { path, offset, length, etag }), signal);
    try {
      const told = headers['nexus-entry'];
      const count = headers['nexus-length'];
      if (typeof told !== 'string' || (count !== undefined && !/^\d{1,15}$/.test(String(count)))) {
        throw new Fault('guest', `Cannot ${what}: the guest did not say what it sends.`);
      }
      const text = Buffer.from(decodeURIComponent(told), 'utf8');
      const entry = parseBody(Entry, text, 'what the guest says of the file');
      return { source, entry, length: count === undefined ? null : Number(count) };
    } catch (error) {
      source.stream.close(http2.constants.NGHTTP2_CANCEL);
      if (error instanceof URIError) throw new Fault('guest', `Cannot ${what}: the guest sent no valid text.`);
      throw error;
    }
  }

  async *#bytes(
    what: string,
    path: string,
    range: ReadRange,
    first: Opened,
    limit: AbortSignal,
  ): AsyncGenerator<Buffer> {
    let { source, length } = first;
    let at = 0;
    for (let barren = 0; ; ) {
      const cancel = () => source.stream.close(http2.constants.NGHTTP2_CANCEL);
      limit.addEventListener('abort', cancel, { once: true });
      if (limit.aborted) cancel();
      try {
        for await (const chunk of content(source, what, this.#silence_ms)) {
          at += chunk.length;
          barren = 0;
          if (length !== null && at > length) throw new Fault('guest', `Cannot ${what}: the guest sends too much.`);
          yield chunk;
        }
        if (length !== null && at !== length) throw new Fault('guest', `Cannot ${what}: the guest sent too little.`);
        return;
      } catch (error) {
        limit.throwIfAborted();
        if (!(error instanceof LostError)) throw error;
        // Without a length there is no telling whether the content is the same.
        if (length === null || ++barren > BARREN_MOST)
          throw new Fault('guest', `Cannot ${what}: ${error.message}.`, { cause: error });
      } finally {
        limit.removeEventListener('abort', cancel);
      }
      const rest = { offset_bytes: range.offset_bytes + at, length_bytes: length - at, etag: first.entry.etag };
      ({ source } = await raced(this.#openRead(what, path, rest, limit), limit));
    }
  }
}
