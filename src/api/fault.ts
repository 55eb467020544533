/**
 * The closed table of errors. Every door derives from it: the HTTP status, the exit code of `nexusctl`, and
 * the problem document of RFC 9457 (`application/problem+json`).
 */
/** code -> [HTTP status, exit code of nexusctl, title] */
export const FAULTS = {
  invalid: [400, 2, 'Invalid request'],
  denied: [403, 3, 'Denied'],
  not_found: [404, 4, 'Not found'],
  exists: [409, 5, 'Already exists'],
  bad_state: [409, 5, 'Not possible in this state'],
  in_use: [409, 5, 'In use'],
  busy: [409, 5, 'Busy'],
  unsupported: [422, 6, 'Not supported'],
  no_room: [507, 7, 'No room'],
  host: [503, 8, 'The host lacks something'],
  vmm: [502, 9, 'The VMM failed'],
  guest: [502, 10, 'The guest failed'],
  timeout: [504, 11, 'Timed out'],
  unverified: [422, 12, 'Not verified'],
  canceled: [499, 130, 'Canceled'],
  internal: [500, 1, 'Internal error'],
} as const satisfies Record<string, readonly [number, number, string]>;

export type FaultCode = keyof typeof FAULTS;
export const FAULT_CODES = Object.keys(FAULTS) as [FaultCode, ...FaultCode[]];

/** Exit code of `nexusctl` when no daemon answers (sysexits EX_UNAVAILABLE). */
export const EXIT_UNREACHABLE = 69;

/** RFC 9457 problem details, as every door sends them; their schema is in problem.ts. */
export interface Problem {
  type: string;
  title: string;
  status: number;
  code: FaultCode;
  detail: string;
  hint?: string | undefined;
  /** A finer word for programs, e.g. no_program: why a command could not be started. */
  reason?: string | undefined;
  /** Names the log line of an `internal` error. */
  ref?: string | undefined;
}

export interface FaultOptions {
  /** What the reader can do about it: a command where there is one. */
  hint?: string | undefined;
  /** A finer word than the code, for programs: no_program, no_cwd. */
  reason?: string | undefined;
  cause?: unknown;
  ref?: string | undefined;
}

/** The one error class of Nexus. `message` is one sentence for the reader: Cannot start VM 'web': it is running. */
export class Fault extends Error {
  readonly code: FaultCode;
  readonly hint: string | undefined;
  readonly reason: string | undefined;
  readonly ref: string | undefined;

  constructor(code: FaultCode, message: string, options: FaultOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'Fault';
    this.code = code;
    this.hint = options.hint;
    this.reason = options.reason;
    this.ref = options.ref;
  }

  get status(): number {
    return FAULTS[this.code][0];
  }

  get exit_code(): number {
    return FAULTS[this.code][1];
  }

  problem(): Problem {
    const [status, , title] = FAULTS[this.code];
    return {
      type: `urn:nexus:fault:${this.code}`,
      title,
      status,
      code: this.code,
      detail: this.message,
      ...(this.hint === undefined ? {} : { hint: this.hint }),
      ...(this.reason === undefined ? {} : { reason: this.reason }),
      ...(this.ref === undefined ? {} : { ref: this.ref }),
    };
  }

  static from(problem: Problem): Fault {
    return new Fault(problem.code, problem.detail, { hint: problem.hint, reason: problem.reason, ref: problem.ref });
  }
}
