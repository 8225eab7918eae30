import type { z } from 'zod'

type Def = { type: string; innerType?: Def2; in?: Def2; shape?: Record<string, Def2>; element?: Def2; valueType?: Def2 }
type Def2 = { _zod: { def: Def } }

/** The schema without its defaults, pipes and the like. */
function bare(schema: Def2): Def {
  let def = schema._zod.def
  for (;;) {
    const inner = def.innerType ?? (def.type === 'pipe' ? def.in : undefined)
    if (inner === undefined) return def
    def = inner._zod.def
  }
}

/** The keys that a schema knows at a path; empty where it has no fixed ones. */
export function keysAt(schema: z.ZodType, path: readonly PropertyKey[]): string[] {
  let at: Def2 | undefined = schema as unknown as Def2
  for (const step of path) {
    const def = bare(at)
    at = def.shape?.[String(step)] ?? def.element ?? def.valueType
    if (at === undefined) return []
  }
  return Object.keys(bare(at).shape ?? {})
}
