/**
 * SQLite as Kysely sees it: `node:sqlite` in the shape of the driver that Kysely's SQLite dialect was written for, rows as the
 * contract's schemas describe them, and SQLite's result codes as faults.
 *
 * INVARIANTS: one connection a store. Kysely queues its users: a transaction has the connection to itself from `begin` to
 * `commit`. So inside a transaction only its own handle is used; the store's handle would wait for the transaction for ever.
 */
import { dirname } from 'node:path';
import type { DatabaseSync } from 'node:sqlite';
import {
  CompiledQuery,
  type DatabaseConnection,
  type Generated,
  Kysely,
  SqliteAdapter,
  SqliteDriver,
  SqliteIntrospector,
  SqliteQueryCompiler,
} from 'kysely';
import { z } from 'zod';
import type { Build } from '../api/build.ts';
import { Fault } from '../api/fault.ts';
import type { Firecracker } from '../api/firecracker.ts';
import type { Image } from '../api/image.ts';
import type { Job } from '../api/job.ts';
import type { Kernel } from '../api/kernel.ts';
import type { Provider } from '../api/provider.ts';
import type { Rootfs } from '../api/rootfs.ts';
import type { Template } from '../api/template.ts';
import type { VmHistoryEntry } from '../api/vm.ts';
import type { Workspace } from '../api/ws.ts';
import type { Provision, VmRecord } from './store.ts';

/** A field as SQLite keeps it: truth as 0 or 1, a list or an object as JSON text, all else as it is. */
type Column<V> = V extends boolean ? number : V extends object ? string : V;
export type Row<T> = { [K in keyof T]: Column<T[K]> };

export interface Tables {
  vms: Row<VmRecord>;
  vm_history: Row<VmHistoryEntry> & { seq: Generated<number>; vm_id: string };
  vm_provisions: Row<Provision> & { vm_id: string };
  workspaces: Row<Workspace>;
  /** Outlives the workspace while there is a snapshot that leads to it. */
  ws_lines: { ws_id: string; source_ws_id: string };
  images: Row<Image>;
  templates: Row<Template>;
  builds: Row<Build>;
  kernels: Row<Kernel>;
  rootfs: Row<Rootfs>;
  firecrackers: Row<Firecracker>;
  providers: Row<Provider>;
  jobs: Row<Job>;
  notes: { name: string; value: string };
}
export type Db = Kysely<Tables>;

type Value = null | number | bigint | string | Uint8Array;

type Values = readonly unknown[];

/** Of a longer answer nothing is kept. */
const KEPT_ROWS = 5000;

const equal = (a: Values, b: Values): boolean => {
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return a.length === b.length;
};

/**
 * Makes the rows of one statement. One whose values are those of a row of the last answer is that row itself, so what was decoded
 * from it need not be decoded again (see `codec`): of a thousand records few change from one answer to the next. The first column,
 * as a rule the ID, only finds the row to compare with.
 */
const rowMaker = (names: readonly string[]) => {
  // SQLite's own rows are dictionaries: to read a thousand of them takes twice as long. By way of JSON: an object that is filled
  // key by key becomes a dictionary too.
  const blank: Record<string, unknown> = JSON.parse(JSON.stringify(Object.fromEntries(names.map(n => [n, null]))));
  let kept = new Map<unknown, { values: Values; row: object }>();
  const make = (values: Values): object => {
    const row = { ...blank };
    for (const [i, name] of names.entries()) row[name] = values[i];
    return row;
  };
  const all = (answer: readonly Values[]): object[] => {
    const last = kept;
    kept = new Map();
    return answer.map(values => {
      const known = last.get(values[0]);
      const entry = known !== undefined && equal(values, known.values) ? known : { values, row: make(values) };
      if (answer.length <= KEPT_ROWS) kept.set(values[0], entry);
      return entry.row;
    });
  };
  return { make, all };
};

/** With `setReturnArrays` a row is an array, whatever Node's types say. */
const valuesOf = (row: unknown): Values => (Array.isArray(row) ? row : []);

const prepared = (db: DatabaseSync, sql: string) => {
  const statement = db.prepare(sql);
  const names = statement.columns().map(column => column.name);
  const reader = names.length > 0;
  if (reader) statement.setReturnArrays(true);
  return { statement, reader, rows: rowMaker(names) };
};

/**
 * What Kysely asks of a database. Its dialect alone does not do: without `reader` every SELECT gives no rows, and parameters
 * come as an array. Statements are kept: 0.16 ms instead of 0.29 ms a transaction; their texts are few, all from this room.
 */
const adapt = (db: DatabaseSync) => {
  const kept = new Map<string, ReturnType<typeof prepared>>();
  return {
    close: () => db.close(),
    prepare: (sql: string) => {
      const one = kept.get(sql) ?? prepared(db, sql);
      kept.set(sql, one);
      const { statement, reader, rows } = one;
      const values = (parameters: readonly unknown[]) => parameters as Value[];
      return {
        reader,
        all: (p: readonly unknown[]) => rows.all(statement.all(...values(p)).map(valuesOf)),
        run: (p: readonly unknown[]) => statement.run(...values(p)),
        iterate: (p: readonly unknown[]) => statement.iterate(...values(p)).map(row => rows.make(valuesOf(row))),
      };
    },
  };
};

class Driver extends SqliteDriver {
  readonly #db: DatabaseSync;
  constructor(db: DatabaseSync) {
    super({ database: adapt(db) });
    this.#db = db;
  }
  /** `immediate`: takes the write lock at once, so that a transaction never fails between its read and its write. */
  override async beginTransaction(connection: DatabaseConnection): Promise<void> {
    await connection.executeQuery(CompiledQuery.raw('begin immediate'));
  }
  /** A full disk may end the transaction by itself; a rollback would then hide the reason. */
  override async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
    if (this.#db.isTransaction) await connection.executeQuery(CompiledQuery.raw('rollback'));
  }
}

export const openDb = (db: DatabaseSync): Db =>
  new Kysely<Tables>({
    dialect: {
      createDriver: () => new Driver(db),
      createQueryCompiler: () => new SqliteQueryCompiler(),
      createAdapter: () => new SqliteAdapter(),
      createIntrospector: kysely => new SqliteIntrospector(kysely),
    },
  });

/**
 * Does `work` without waiting for the disk at its commits. They are in the file for every process from then on; a loss of power takes
 * them, and never one that came before or half of one. https://www.sqlite.org/pragma.html#pragma_synchronous
 */
export const unsynced = <T>(db: Db, work: (db: Db) => Promise<T>): Promise<T> =>
  db.connection().execute(async own => {
    await own.executeQuery(CompiledQuery.raw('pragma synchronous = normal'));
    try {
      return await work(own);
    } finally {
      await own.executeQuery(CompiledQuery.raw('pragma synchronous = full'));
    }
  });

/** Primary and extended result codes: https://www.sqlite.org/rescode.html */
const BUSY = 5;
const FULL = 13;
const IOERR_SHMSIZE = 4874;
const CONSTRAINT_PRIMARYKEY = 1555;
const CONSTRAINT_UNIQUE = 2067;

/** The extended result code of an error that came from SQLite. */
export const sqliteCode = (error: unknown): number | undefined =>
  error instanceof Error && 'errcode' in error && typeof error.errcode === 'number' ? error.errcode : undefined;

export const isBusy = (error: unknown): boolean => ((sqliteCode(error) ?? 0) & 0xff) === BUSY;

const isTaken = (error: unknown): boolean => {
  const code = sqliteCode(error);
  return code === CONSTRAINT_UNIQUE || code === CONSTRAINT_PRIMARYKEY;
};

/** READONLY, IOERR, CORRUPT, CANTOPEN, NOTADB: the file or the disk is at fault, not a statement. */
const OF_THE_FILE = [BUSY, 8, 10, 11, 14, 26];

/** Of Node's own file calls. */
const NO_ACCESS = ['EACCES', 'EPERM', 'EROFS', 'ENOTDIR', 'EEXIST'];

const errnoOf = (error: unknown): unknown => (error instanceof Error && 'code' in error ? error.code : undefined);

const isFull = (error: unknown): boolean => {
  const code = sqliteCode(error);
  return code === FULL || code === IOERR_SHMSIZE || errnoOf(error) === 'ENOSPC';
};

/** What SQLite says of the disk or the file, as a fault; anything else is given back as it came. */
export const asFault = (error: unknown, path: string): unknown => {
  if (isFull(error)) {
    const hint = `Free some space on the disk of ${dirname(path)}.`;
    return new Fault('no_room', `Cannot write to ${path}: the disk is full.`, { hint, cause: error });
  }
  const code = sqliteCode(error);
  const known = code === undefined ? NO_ACCESS.includes(String(errnoOf(error))) : OF_THE_FILE.includes(code & 0xff);
  if (!known) return error;
  const why = error instanceof Error ? error.message : String(error);
  return new Fault('host', `Cannot use ${path}: ${why}.`, { cause: error });
};

/** `work` with SQLite's errors as faults. */
export const guarded = async <T>(path: string, work: () => Promise<T>): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    throw asFault(error, path);
  }
};

/** `work`, whose unique key is the record that `what` names: VM 'web'. */
export const unlessTaken = async <T>(what: string, work: () => Promise<T>): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    if (isTaken(error)) throw new Fault('exists', `${what} exists already.`, { cause: error });
    throw error;
  }
};

export interface Codec<T> {
  toRow(record: T): Row<T>;
  /** Parses a row. The record is frozen, and given again for the same row. */
  fromRow(row: Readonly<Row<T>>): T;
}

const freeze = <T>(value: T): T => {
  if (typeof value !== 'object' || value === null) return value;
  for (const inner of Object.values(value)) freeze(inner);
  return Object.freeze(value);
};

/** Rows from records and back, after the schema of the record. Both ways are parsed: what cannot be read is not written. */
export const codec = <S extends z.ZodObject>(what: string, schema: S): Codec<z.output<S>> => {
  const unlike: (readonly [name: string, kind: 'json' | 'bool'])[] = [];
  for (const [name, field] of Object.entries(schema.shape)) {
    const inner = field instanceof z.ZodNullable ? field.unwrap() : field;
    if (inner instanceof z.ZodObject || inner instanceof z.ZodRecord || inner instanceof z.ZodArray)
      unlike.push([name, 'json']);
    if (inner instanceof z.ZodBoolean) unlike.push([name, 'bool']);
  }
  const decoded = new WeakMap<object, z.output<S>>();
  /** In place. */
  const convert = (fresh: object, json: (value: unknown) => unknown, bool: (value: unknown) => unknown): object => {
    const fields = fresh as Record<string, unknown>;
    for (const [name, kind] of unlike) {
      const value = fields[name];
      if (value !== null) fields[name] = kind === 'json' ? json(value) : bool(value);
    }
    return fields;
  };
  return {
    toRow: record => convert(schema.parse(record), JSON.stringify, Number) as Row<z.output<S>>,
    fromRow: row => {
      const known = decoded.get(row);
      if (known !== undefined) return known;
      try {
        const record = freeze(schema.parse(convert({ ...row }, value => JSON.parse(String(value)), Boolean)));
        decoded.set(row, record);
        return record;
      } catch (error) {
        const id = 'id' in row ? ` '${String(row.id)}'` : '';
        throw new Fault('internal', `Cannot read ${what}${id}: its record is damaged.`, { cause: error });
      }
    },
  };
};

export const none = (what: string, ref: string): Fault => new Fault('not_found', `There is no ${what} '${ref}'.`);
