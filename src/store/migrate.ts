/** Brings a database to the newest shape: forward only, each step whole or not at all, with a copy of what was before. */
import { rm } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';
import { Fault } from '../api/fault.ts';
import { publish } from '../lib/files.ts';
import { MIGRATIONS, type Migration } from './migrations.ts';

const versionOf = (db: DatabaseSync): number => Number(db.prepare('pragma user_version').get()?.user_version ?? 0);

/** Throws if a newer Nexus wrote this database. Opens it for reading only: not a byte of it changes. */
export const refuseNewer = (path: string, migrations = MIGRATIONS): void => {
  const db = new DatabaseSync(path, { readOnly: true, timeout: 5000 });
  try {
    const found = versionOf(db);
    const newest = migrations.at(-1)?.version ?? 0;
    if (found <= newest) return;
    throw new Fault('host', `Cannot open ${path}: it has version ${found}, this Nexus knows up to ${newest}.`, {
      hint: 'Run the Nexus that wrote it, or a newer one.',
    });
  } finally {
    db.close();
  }
};

/** A copy of the whole database beside it: `state.db.v1.bak`, before a step changes data of version 1. */
const backUp = async (db: DatabaseSync, path: string, version: number): Promise<void> => {
  const temp = `${path}.bak.tmp`;
  await rm(temp, { force: true });
  db.prepare('vacuum into ?').run(temp);
  await publish(temp, `${path}.v${version}.bak`);
};

/** One step: its SQL, the check that no reference dangles, and the new number, or nothing of it. */
const apply = (db: DatabaseSync, migration: Migration): void => {
  db.exec('begin immediate');
  try {
    db.exec(migration.sql);
    const dangling = db.prepare('pragma foreign_key_check').get();
    if (dangling !== undefined)
      throw new Error(`step ${migration.version} left a dangling reference in ${dangling.table}`);
    db.exec(`pragma user_version = ${migration.version}`);
    db.exec('commit');
  } catch (error) {
    if (db.isTransaction) db.exec('rollback');
    throw error;
  }
};

/** Brings a database to the newest version. Foreign keys are off meanwhile, for a step may rebuild a table. */
export const migrate = async (db: DatabaseSync, path: string, migrations = MIGRATIONS): Promise<void> => {
  const found = versionOf(db);
  const missing = migrations.filter(m => m.version > found);
  if (missing.length === 0) return;
  if (found > 0) await backUp(db, path, found);
  db.exec('pragma foreign_keys = off');
  try {
    for (const migration of missing) apply(db, migration);
  } finally {
    db.exec('pragma foreign_keys = on');
  }
};
