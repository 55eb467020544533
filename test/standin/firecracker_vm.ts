/** The machine behind the stand-in's API: what it is made of, in which order, and what it refuses. */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { lockDisk } from './disk_lock.ts';
import { type Answer, Refused } from './firecracker_api.ts';

export interface Deeds {
  vsock: (path: string, cid: number) => Promise<void>;
  InstanceStart: () => void;
  FlushMetrics: () => void;
  SendCtrlAltDel: () => void;
}

type Body = Record<string, unknown>;
/** Undefined: valid; else why not. Made from `firecracker.yaml`, see test/kit/standin.ts. */
type Validate = (method: string, path: string, body: unknown) => string | undefined;

const MAX_CMDLINE = 2048;
const { O_RDONLY, O_RDWR } = constants;

const loadSchema = async (): Promise<Validate> => {
  const { validate } = await import(pathToFileURL(join(import.meta.dirname, 'schema.mjs')).href);
  return validate;
};

const text = (body: Body, name: string): string => (typeof body[name] === 'string' ? body[name] : '');

const readable = (what: string, path: string, flags = O_RDONLY): void => {
  try {
    const fd = openSync(path, flags);
    const { size } = fstatSync(fd);
    closeSync(fd);
    if (size === 0) throw new Error('it is empty');
  } catch (error) {
    throw new Refused(`The ${what} file cannot be opened: ${error instanceof Error ? error.message : error}: ${path}`);
  }
};

const isBody = (value: unknown): value is Body => typeof value === 'object' && value !== null && !Array.isArray(value);

export class Vm {
  readonly #id: string;
  readonly #deeds: Deeds;
  readonly #schema = loadSchema();
  readonly #parts = new Map<string, Body>();
  #running = false;

  constructor(id: string, deeds: Deeds) {
    this.#id = id;
    this.#deeds = deeds;
    this.#schema.catch(() => {}); // awaited at the first request
  }

  /** The name of a request; an action has its own. */
  point(method: string, path: string, body: string): string {
    return (path === '/actions' && /"action_type":"(\w+)"/.exec(body)?.[1]) || `${method} ${path}`;
  }

  async ask(method: string, path: string, body: string): Promise<Answer> {
    if (method === 'GET') return { status: 200, body: this.#get(path) };
    const json = this.#parse(body);
    const why = (await this.#schema)(method, path, json);
    if (why !== undefined) throw new Refused(why);
    if (path === '/actions') this.#act(text(json, 'action_type'));
    else if (method === 'PATCH') this.#patch(path, json);
    else if (method !== 'PUT') throw new Refused(`the stand-in has no ${method} ${path}`);
    else await this.#put(path, json);
    return { status: 204 };
  }

  #parse(body: string): Body {
    try {
      const json: unknown = JSON.parse(body);
      if (isBody(json)) return json;
    } catch {
      // said below
    }
    throw new Refused('An error occurred when deserializing the json body of a request: expected an object.');
  }

  #get(path: string): object {
    const state = this.#running ? 'Running' : 'Not started';
    if (path === '/') return { app_name: 'Firecracker', id: this.#id, state, vmm_version: '1.12.1' };
    if (path === '/version') return { firecracker_version: '1.12.1' };
    if (path === '/machine-config') return this.#parts.get(path) ?? { vcpu_count: 1, mem_size_mib: 128 };
    if (path === '/vm/config') return { drives: this.#drives() };
    throw new Refused(`Invalid request method and/or path: GET ${path}.`);
  }

  #act(action: string): void {
    const start = action === 'InstanceStart';
    if (start === this.#running) {
      const when = this.#running ? 'after' : 'before';
      throw new Refused(`The requested operation is not supported ${when} starting the microVM.`);
    }
    if (start && !this.#parts.has('/boot-source')) {
      throw new Refused('Cannot start microvm without kernel configuration.');
    }
    if (start) this.#running = true;
    if (action === 'InstanceStart' || action === 'FlushMetrics' || action === 'SendCtrlAltDel') this.#deeds[action]();
  }

  async #put(path: string, body: Body): Promise<void> {
    if (this.#running) {
      throw new Refused('The requested operation is not supported after starting the microVM.');
    }
    if (path === '/boot-source') this.#checkBoot(body);
    if (path.startsWith('/drives/')) await this.#checkDrive(path, body);
    if (path === '/machine-config') {
      const { vcpu_count, smt } = body;
      if (smt === true && Number(vcpu_count) % 2 === 1 && vcpu_count !== 1) throw new Refused('an odd vCPU count');
    }
    if (path === '/vsock') await this.#deeds.vsock(text(body, 'uds_path'), Number(body.guest_cid));
    this.#parts.set(path, body);
  }

  #drives(): Body[] {
    return [...this.#parts].filter(([name]) => name.startsWith('/drives/')).map(([, body]) => body);
  }

  /** A drive is opened anew, by whatever name. */
  #patch(path: string, body: Body): void {
    const drive = this.#parts.get(path);
    if (!this.#running || drive === undefined || path !== `/drives/${body.drive_id}`)
      throw new Refused(`the stand-in has no such drive: PATCH ${path}`);
    readable('disk', text(body, 'path_on_host'), drive.is_read_only === true ? O_RDONLY : O_RDWR);
    this.#parts.set(path, { ...drive, ...body });
  }

  #checkBoot(body: Body): void {
    readable('kernel', text(body, 'kernel_image_path'));
    if (body.initrd_path !== undefined) readable('initrd', text(body, 'initrd_path'));
    // what it appends itself counts too
    if (`${text(body, 'boot_args')} pci=off root=/dev/vda rw`.length >= MAX_CMDLINE) {
      throw new Refused('The kernel command line is invalid: Command line string overflows the capacity.');
    }
  }

  async #checkDrive(path: string, body: Body): Promise<void> {
    const { drive_id, is_root_device, is_read_only } = body;
    if (path !== `/drives/${drive_id}`) throw new Refused('The id from the path does not match the id from the body!');
    if (!/^[A-Za-z0-9_]{1,64}$/.test(String(drive_id))) throw new Refused(`Invalid drive id: ${drive_id}`);
    const others = [...this.#parts].filter(([name]) => name.startsWith('/drives/') && name !== path);
    if (is_root_device === true && others.some(([, other]) => other.is_root_device === true)) {
      throw new Refused('A root block device already exists!');
    }
    const file = text(body, 'path_on_host');
    readable('disk', file, is_read_only === true ? O_RDONLY : O_RDWR);
    if (is_read_only !== true) await lockDisk(openSync(file, O_RDWR));
  }
}
