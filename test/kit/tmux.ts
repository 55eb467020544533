/** A person at a terminal: programs in a tmux of the test's own, what is typed and what is seen. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { poll } from '../../src/lib/deadline.ts';
import { run, runAny } from '../../src/lib/proc.ts';

export const NO_TMUX = (await runAny(['tmux', '-V']).catch(() => undefined)) === undefined && 'tmux is not installed';

export interface Pane {
  /** Names of keys (`C-p`, `Enter`, `Escape`) or text, as tmux takes them. */
  keys(...keys: string[]): Promise<void>;
  /** As it is, every character for itself. */
  type(text: string): Promise<void>;
  screen(): Promise<string>;
  /** Waits until the screen fits. */
  see(what: RegExp, ms?: number): Promise<string>;
  /** `cursor_x`, `alternate_on`, `pane_pid`: see FORMATS of tmux(1). */
  ask(format: string): Promise<string>;
  resize(cols: number, rows: number): Promise<void>;
}

export interface Desk extends AsyncDisposable {
  /** A new terminal that runs a shell with this environment. */
  open(size?: { cols: number; rows: number }): Promise<Pane>;
}

export const desk = async (env: Record<string, string>): Promise<Desk> => {
  const dir = await mkdtemp(join(tmpdir(), 'nexus-desk-'));
  const tmux = (...args: string[]) =>
    run(['tmux', '-S', join(dir, 's'), '-f', '/dev/null', ...args], {
      env: { ...process.env, ...env, SHELL: '/bin/sh', PS1: 'desk$ ', TMUX: '', LANG: 'C.UTF-8' },
    });
  let count = 0;
  const open = async ({ cols, rows } = { cols: 100, rows: 30 }): Promise<Pane> => {
    const name = `p${count++}`;
    await tmux('-u', 'new-session', '-d', '-s', name, '-x', String(cols), '-y', String(rows), 'exec /bin/sh');
    await tmux('set-option', '-t', name, 'status', 'off');
    const screen = async () => (await tmux('capture-pane', '-p', '-t', name)).stdout;
    return {
      keys: async (...keys) => void (await tmux('send-keys', '-t', name, ...keys)),
      type: async text => void (await tmux('send-keys', '-t', name, '-l', text)),
      screen,
      see: async (what, ms = 60_000) => {
        let seen = '';
        try {
          return await poll(
            `${what} on the screen`,
            ms,
            async () => {
              seen = await screen();
              return what.test(seen) ? seen : undefined;
            },
            { every_ms: 100 },
          );
        } catch (error) {
          throw new Error(`${error instanceof Error ? error.message : error}:\n${seen}`);
        }
      },
      ask: async format => (await tmux('display-message', '-p', '-t', name, `#{${format}}`)).stdout.trim(),
      resize: async (x, y) => void (await tmux('resize-window', '-t', name, '-x', String(x), '-y', String(y))),
    };
  };
  const close = async () => {
    await tmux('kill-server').catch(() => {}); // none was opened
    await rm(dir, { recursive: true, force: true });
  };
  return { open, [Symbol.asyncDispose]: close };
};
