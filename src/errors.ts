/** Every error that a person may see: its code, its exit status and what the code stands for. */
export const ERROR_CODES = {
  USAGE: { exit: 2, about: 'the command line is not one that ambit understands' },
  CONTRACT_INVALID: { exit: 2, about: 'the contract does not follow the schema' },
  POLICY_INVALID: { exit: 2, about: 'the admission policy of the host cannot be read' },
  POLICY_REFUSED: { exit: 125, about: 'the host\'s admission policy does not admit the contract' },
  PIPELINE_INVALID: { exit: 2, about: 'the pipeline file cannot be read as a pipeline' },
  SETTINGS_INVALID: { exit: 2, about: 'the file of loop settings or issuers does not follow its schema' },
  FILE_UNREADABLE: { exit: 2, about: 'a file that was named cannot be read' },
  FILE_UNWRITABLE: { exit: 2, about: 'a file that was named cannot be written' },
  NOT_ROOT: { exit: 2, about: 'the operation needs root' },
  KERNEL_LACKS: { exit: 2, about: 'the kernel lacks a feature that is needed' },
  NATIVE_MISSING: { exit: 2, about: 'the native part has not been built' },
  DAEMON_UNREACHABLE: { exit: 2, about: 'no daemon answers on the control socket' },
  FORBIDDEN: { exit: 2, about: 'the caller may not ask this' },
  CELL_FAILED: { exit: 125, about: 'the cell could not be built' },
  DAEMON_FAILED: { exit: 2, about: 'the daemon could not start' },
  PROBE_FAILED: { exit: 2, about: 'an eBPF program could not be loaded or attached' },
  CREDENTIAL_REFUSED: { exit: 125, about: 'an issuer did not mint what the contract declares' },
  EVIDENCE_INVALID: { exit: 1, about: 'the evidence does not verify' },
  EVIDENCE_UNREADABLE: { exit: 2, about: 'the evidence cannot be read' },
  LOOP_BROKEN: { exit: 1, about: 'one of the loop\'s promises did not hold' },
  INTERRUPTED: { exit: 130, about: 'somebody asked for the end before it was reached' },
  INTERNAL: { exit: 70, about: 'a defect in ambit' },
} as const

export type ErrorCode = keyof typeof ERROR_CODES

export type ErrorDetail = {
  /** What was attempted, as a clause: "read the contract". */
  attempted: string
  /** Why it failed. */
  why: string
  /** What the reader can do about it. */
  remedy: string
  /** Where: file, one-based line and column. */
  where?: { file: string; line?: number; column?: number }
  cause?: unknown
}

/** The one error shape. `message` is exactly what the command prints. */
export class AmbitError extends Error {
  readonly code: ErrorCode
  readonly detail: ErrorDetail

  constructor(code: ErrorCode, detail: ErrorDetail) {
    const at = detail.where
      ? `${detail.where.file}${detail.where.line === undefined ? '' : `:${detail.where.line}${detail.where.column === undefined ? '' : `:${detail.where.column}`}`}: `
      : ''
    super(`${at}could not ${detail.attempted}: ${detail.why}\n  ${detail.remedy}`, { cause: detail.cause })
    this.name = 'AmbitError'
    this.code = code
    this.detail = detail
  }

  get exitCode(): number {
    return ERROR_CODES[this.code].exit
  }

  toJSON(): object {
    const { attempted, why, remedy, where } = this.detail
    return { code: this.code, attempted, why, remedy, ...(where ? { where } : {}) }
  }
}
