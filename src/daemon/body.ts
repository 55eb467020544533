/** Bodies of requests: those that are streams, and how long the others may take. */
import type { IncomingMessage } from 'node:http';
import { PassThrough, type Readable } from 'node:stream';
import type { FastifyInstance, FastifyRequest } from 'fastify';
import { Fault } from '../api/fault.ts';

/** The bytes of an upload. A handler may stop reading at any time: the rest is dropped, and the answer still gets out. */
export const uploadBody = (raw: IncomingMessage): Readable => {
  const body = new PassThrough();
  raw.pipe(body);
  raw.once('close', () => {
    if (!raw.readableEnded) body.destroy(new Fault('canceled', 'The client went away in the middle of its upload.'));
  });
  raw.on('error', () => {}); // 'close' follows
  body.on('error', () => {}); // a handler that has stopped reading does not hear it
  body.once('close', () => {
    raw.unpipe(body);
    raw.resume();
  });
  return body;
};

/** A body that trickles in for ever is ended. Uploads are exempt: a terminal may be at their other end. */
export const limitBodyTime = (scope: FastifyInstance, ms: number): void => {
  const timers = new WeakMap<FastifyRequest, NodeJS.Timeout>();
  scope.addHook('onRequest', async request => {
    const { headers, raw } = request;
    if (headers['content-length'] === undefined && headers['transfer-encoding'] === undefined) return;
    const late = () => raw.destroy(new Error('the body of the request did not come in time'));
    const timer = setTimeout(late, ms).unref();
    timers.set(request, timer);
    raw.once('close', () => clearTimeout(timer));
  });
  scope.addHook('preValidation', async request => clearTimeout(timers.get(request))); // the body has been read
};
