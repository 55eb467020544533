/**
 * An HTTPS server with the layouts from which assets come, as two hosts: `origin` has the names, `storage` the bytes of what is
 * stored, to which `origin` redirects as GitHub does. Its certificate is made for the test by openssl. It misbehaves as it is told.
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createReadStream } from 'node:fs';
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer, type Server } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import { run } from '../../src/lib/proc.ts';

/** What goes wrong with a path. `times`: only so often, then all is well; default: always. */
export type Misdeed = { times?: number } & (
  | { cut: number } // the connection is cut after so many bytes of the answer
  | { flip: number } // this byte has a flipped bit
  | { stall: number } // nothing comes after so many bytes
  | { trickle: number; bytes?: number } // so many bytes (one) every so many ms
  | { loop: true } // redirects to itself
  | { redirect: string }
  | { longer: number } // Content-Length promises so many bytes more than there are
  | { html: true } // a page with status 200
  | { status: number; headers?: Record<string, string> }
  | { silent: true } // takes the request and never answers
  | { part: string } // answers a range with this Content-Range
  | { ranges: false } // knows no ranges
  | { validators: false } // neither ETag nor Last-Modified
  | { modified: number } // no ETag, but a Last-Modified so many seconds ago
  | { changes: true } // another ETag each time
  | { unsized: true } // no Content-Length: the answer is chunked
);

export type Content = Buffer | string | { file: string };

export interface Seen {
  host: 'origin' | 'storage';
  url: string;
  headers: IncomingMessage['headers'];
  status: number;
}

export type Handler = (
  request: IncomingMessage,
  url: URL,
) => { status?: number; headers?: Record<string, string>; body: string } | undefined;

const has = <K extends string>(deed: Misdeed | undefined, key: K): deed is Extract<Misdeed, Record<K, unknown>> =>
  deed !== undefined && key in deed;

const listening = async (server: Server): Promise<string> => {
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return `https://localhost:${(server.address() as AddressInfo).port}`;
};

/** Key and self-signed certificate for localhost. */
const certificate = async (dir: string): Promise<{ key: Buffer; cert: Buffer; path: string }> => {
  const [key, cert] = [join(dir, 'key.pem'), join(dir, 'cert.pem')];
  await run(
    ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2']
      .concat(['-keyout', key, '-out', cert, '-subj', '/CN=nexus test'])
      .concat(['-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1']),
  );
  return { key: await readFile(key), cert: await readFile(cert), path: cert };
};

export class Mirror implements AsyncDisposable {
  readonly seen: Seen[] = [];
  origin = '';
  storage = '';
  /** PEM file of the certificate, for NODE_EXTRA_CA_CERTS. */
  ca = '';
  /** Asked before the files: the answers of an API. */
  readonly handlers: Handler[] = [];
  readonly #files = new Map<string, Content>();
  readonly #stored = new Set<string>();
  readonly #misdeeds = new Map<string, Misdeed>();
  readonly #servers: Server[] = [];
  #dir = '';

  async open(): Promise<this> {
    this.#dir = await mkdtemp(join(tmpdir(), 'nexus-mirror-'));
    const { key, cert, path } = await certificate(this.#dir);
    this.ca = path;
    for (const host of ['origin', 'storage'] as const) {
      const server = createServer({ key, cert }, (request, response) => {
        this.#serve(host, request, response).catch(() => response.destroy());
      });
      this.#servers.push(server);
      this[host] = await listening(server);
    }
    return this;
  }

  /** This process trusts the mirror from now on. */
  async trust(): Promise<void> {
    tls.setDefaultCACertificates([...tls.getCACertificates('default'), await readFile(this.ca, 'utf8')]);
  }

  /** Serves `content` at `path` of `origin`. */
  put(path: string, content: Content): string {
    this.#files.set(path, content);
    return `${this.origin}${path}`;
  }

  /** The same by a redirect to `storage`. */
  store(path: string, content: Content): string {
    this.#stored.add(path);
    return this.put(path, content);
  }

  /** From now on that path does so; undefined: it behaves. */
  misbehave(path: string, deed: Misdeed | undefined): void {
    if (deed === undefined) this.#misdeeds.delete(path);
    else this.#misdeeds.set(path, deed);
  }

  /** Cuts every connection. */
  cut(): void {
    for (const server of this.#servers) server.closeAllConnections();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const server of this.#servers) {
      server.closeAllConnections();
      await new Promise(resolve => server.close(resolve));
    }
    await rm(this.#dir, { recursive: true, force: true });
  }

  #deed(path: string): Misdeed | undefined {
    const deed = this.#misdeeds.get(path);
    if (deed?.times === undefined) return deed;
    if (deed.times === 0) return undefined;
    deed.times--;
    return deed;
  }

  async #serve(host: 'origin' | 'storage', request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', this[host]);
    const path = host === 'storage' ? url.pathname.replace(/^\/stored/, '') : url.pathname;
    response.once('close', () =>
      this.seen.push({ host, url: request.url ?? '', headers: request.headers, status: response.statusCode }),
    );
    const own = host === 'origin' ? this.handlers.map(h => h(request, url)).find(a => a !== undefined) : undefined;
    if (own !== undefined) {
      response.writeHead(own.status ?? 200, { 'content-type': 'application/json', ...own.headers }).end(own.body);
      return;
    }
    const content = this.#files.get(path);
    if (content === undefined) {
      response.writeHead(404, { 'content-type': 'text/plain' }).end('Not Found');
      return;
    }
    if (host === 'origin' && this.#stored.has(path)) {
      response.writeHead(302, { location: `${this.storage}/stored${path}?signature=abc` }).end();
      return;
    }
    await answer(request, response, content, this.#deed(path), `${this[host]}${path}`);
  }
}

export const openMirror = async (): Promise<Mirror> => {
  const mirror = await new Mirror().open();
  await mirror.trust();
  return mirror;
};

let changes = 0;

/** Answers with what is not the file; true if it did. */
const refused = (response: ServerResponse, deed: Misdeed | undefined, self: string): boolean => {
  if (has(deed, 'silent')) return true;
  if (has(deed, 'loop')) response.writeHead(302, { location: `${self}?again` }).end();
  else if (has(deed, 'redirect')) response.writeHead(302, { location: deed.redirect }).end();
  else if (has(deed, 'status')) response.writeHead(deed.status, deed.headers).end('no');
  else if (has(deed, 'html'))
    response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end('<!doctype html><p>Please log in.');
  else return false;
  return true;
};

const etagOf = async (content: Content): Promise<string> => {
  const text =
    Buffer.isBuffer(content) || typeof content === 'string'
      ? createHash('sha256').update(content).digest('hex')
      : `${content.file}${(await stat(content.file)).size}`;
  return `"${createHash('md5').update(text).digest('hex')}"`;
};

const answer = async (
  request: IncomingMessage,
  response: ServerResponse,
  content: Content,
  deed: Misdeed | undefined,
  self: string,
): Promise<void> => {
  if (refused(response, deed, self)) return;
  const size =
    Buffer.isBuffer(content) || typeof content === 'string'
      ? Buffer.byteLength(content)
      : (await stat(content.file)).size;
  const etag = has(deed, 'changes') ? `"${changes++}"` : await etagOf(content);
  const asked = /^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1];
  const condition = request.headers['if-range'];
  const same = condition === undefined || condition === etag || String(condition).endsWith('GMT');
  const part = asked !== undefined && same && !has(deed, 'ranges');
  const from = part ? Number(asked) : 0;
  const headers: Record<string, string> = { 'content-type': 'application/octet-stream' };
  if (has(deed, 'modified')) headers['last-modified'] = new Date(Date.now() - deed.modified * 1000).toUTCString();
  else if (!has(deed, 'validators')) headers.etag = etag;
  if (!has(deed, 'unsized')) headers['content-length'] = String(size - from + (has(deed, 'longer') ? deed.longer : 0));
  if (part && from >= size) {
    response.writeHead(416, { 'content-range': `bytes */${size}` }).end();
    return;
  }
  if (part) headers['content-range'] = has(deed, 'part') ? deed.part : `bytes ${from}-${size - 1}/${size}`;
  response.writeHead(part ? 206 : 200, headers);
  await send(response, content, from, deed);
};

/** The bytes, in pieces; stops where the deed says so. */
const send = async (response: ServerResponse, content: Content, from: number, deed: Misdeed | undefined) => {
  const stream =
    Buffer.isBuffer(content) || typeof content === 'string'
      ? [Buffer.from(content).subarray(from)]
      : createReadStream(content.file, { start: from, highWaterMark: 256 * 1024 });
  const end = has(deed, 'cut') ? deed.cut : has(deed, 'stall') ? deed.stall : Number.POSITIVE_INFINITY;
  let at = from;
  for await (const chunk of stream) {
    const bytes: Buffer = Buffer.from(chunk);
    if (has(deed, 'flip') && deed.flip >= at && deed.flip < at + bytes.length)
      bytes[deed.flip - at] = (bytes[deed.flip - at] ?? 0) ^ 1;
    const piece = bytes.subarray(0, Math.max(0, from + end - at));
    if (has(deed, 'trickle')) {
      for (let next = 0; next < piece.length; next += deed.bytes ?? 1) {
        if (response.destroyed) return;
        response.write(piece.subarray(next, next + (deed.bytes ?? 1)));
        await new Promise(resolve => setTimeout(resolve, deed.trickle));
      }
    } else if (piece.length > 0)
      // flushed, or the connection is gone
      await new Promise(next => response.write(piece, next));
    if (response.destroyed) return;
    at += bytes.length;
    if (piece.length < bytes.length || at - from === end) break;
  }
  if (has(deed, 'stall')) return;
  if (has(deed, 'cut') || has(deed, 'longer')) response.destroy();
  else response.end();
};
