/** The HTTP server of the stand-in, with the limits of the real one: ten connections, 51,200 bytes, one request at a time. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { createServer as listener, type Server, type Socket } from 'node:net';

// Not by `import`, which loads all that node:http can, a WebSocket client too: 40 ms for each stand-in.
const { createServer } = process.getBuiltinModule('node:http');

const MAX_CONNECTIONS = 10;
const MAX_BODY = 51_200;

/** A refusal of the VMM itself: status 400 and `fault_message`. */
export class Refused extends Error {}

export type Answer =
  | { status: 200; body: object; after?: () => void }
  | { status: 204; after?: () => void }
  | { lie: string };

export interface ApiOptions {
  answer: (method: string, path: string, body: string) => Promise<Answer>;
  /** Writes a line to the log. */
  say: (line: string) => void;
}

const json = (response: ServerResponse, status: number, body?: object): void => {
  response.statusCode = status;
  response.setHeader('Server', 'Firecracker API');
  if (body === undefined) response.end();
  else response.setHeader('Content-Type', 'application/json').end(JSON.stringify(body));
};

/** What no Firecracker says. */
const lies: Record<string, (response: ServerResponse) => void> = {
  garbage: ({ socket }) => socket?.end('\u0016\u0003\u0001 this is no HTTP\r\n\r\n'),
  huge: response => {
    response.statusCode = 400;
    const piece = Buffer.alloc(1024 * 1024, 'x');
    const more = (left: number): void => {
      if (left === 0) response.end();
      else response.write(piece, () => more(left - 1));
    };
    more(64);
  },
  nojson: response => void response.writeHead(400).end('<html>no</html>'),
  drip: ({ socket }) => {
    socket?.write('HTTP/1.1 204 No Content\r\nX-Slow: ');
    const timer = setInterval(() => socket?.write('x'), 20);
    socket?.once('close', () => clearInterval(timer));
  },
  close: ({ socket }) => void socket?.destroy(),
  busy: response => json(response, 503, { error: 'Too many open connections' }),
};

export class Api {
  readonly #path: string;
  readonly #options: ApiOptions;
  readonly #server: Server;
  /** One thread serves all. */
  #turn: Promise<unknown> = Promise.resolve();
  #open = 0;

  constructor(path: string, options: ApiOptions) {
    this.#path = path;
    this.#options = options;
    const http = createServer({ keepAliveTimeout: 0, requestTimeout: 0 }, (request, response) => {
      this.#turn = this.#turn.then(() => this.#serve(request, response));
    });
    this.#server = listener(socket => {
      if (this.#accept(socket)) http.emit('connection', socket);
    });
  }

  listen(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once('error', reject).listen(this.#path, resolve);
    });
  }

  #accept(socket: Socket): boolean {
    socket.on('error', () => {});
    if (this.#open >= MAX_CONNECTIONS) {
      const body = JSON.stringify({ error: 'Too many open connections' });
      const head = `HTTP/1.1 503 \r\nServer: Firecracker API\r\nConnection: close\r\nContent-Type: application/json`;
      socket.end(`${head}\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
      return false;
    }
    this.#open++;
    socket.once('close', () => this.#open--);
    return true;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = '', url = '' } = request;
    const size = Number(request.headers['content-length'] ?? 0);
    if (size > MAX_BODY) {
      const error = `Request payload with size ${size} is larger than the limit of ${MAX_BODY} allowed by server.`;
      json(response.setHeader('Connection', 'close'), 400, { error });
      return;
    }
    let body = '';
    try {
      for await (const chunk of request) body += chunk;
      const answer = await this.#options.answer(method, url, body);
      if ('lie' in answer) {
        lies[answer.lie]?.(response);
        return;
      }
      if (answer.after !== undefined) response.once('finish', answer.after);
      json(response, answer.status, 'body' in answer ? answer.body : undefined);
    } catch (error) {
      if (!(error instanceof Error)) throw error;
      this.#options.say(`Received Error on ${method} ${url}: ${error.message}`);
      json(response, 400, { fault_message: error.message });
    }
  }
}
