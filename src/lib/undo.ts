/** An undo stack: what was done is undone in reverse if the story throws. */
export class Undo {
  readonly #steps: { name: string; undo: () => Promise<void> | void }[] = [];

  push(name: string, undo: () => Promise<void> | void): void {
    this.#steps.push({ name, undo });
  }

  /** Forgets all steps: the story succeeded. */
  commit(): void {
    this.#steps.length = 0;
  }

  /** Undoes everything, last first; a step that throws is reported and does not stop the others. */
  async unwind(onError: (name: string, error: unknown) => void): Promise<void> {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step.undo();
      } catch (error) {
        onError(step.name, error);
      }
    }
  }
}
