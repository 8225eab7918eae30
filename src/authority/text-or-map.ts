import { z } from 'zod'

/**
 * An entry that is a text in the usual case and a map where more is said. The faults are those of the form that was written;
 * a union would only say that neither fits.
 */
export function textOrMap<M>(text: z.ZodType<string>, map: z.ZodType<M>): z.ZodType<string | M> {
  return z.unknown().transform((value, context): string | M => {
    const parsed: z.ZodSafeParseResult<string | M> = (typeof value === 'object' && value !== null ? map : text).safeParse(value)
    if (parsed.success) return parsed.data
    for (const issue of parsed.error.issues) {
      const message = issue.code === 'unrecognized_keys' ? `the key ${JSON.stringify(issue.keys[0])} is not known there` : issue.message
      context.addIssue({ code: 'custom', message, path: [...issue.path], input: value })
    }
    return z.NEVER
  })
}
