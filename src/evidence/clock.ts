/** How far the wall clock may be from where the monotonic one expects it before it is taken anew, ms. */
const STEP_MS = 5

let origin = performance.timeOrigin

/** Microseconds since the epoch. The wall clock alone has only milliseconds here; the monotonic one alone misses its steps. */
export function wallMicroseconds(): number {
  const elapsed = performance.now()
  if (Math.abs(Date.now() - (origin + elapsed)) > STEP_MS) origin = Date.now() - elapsed
  return Math.round((origin + elapsed) * 1000)
}

/** RFC 3339 in UTC with microseconds, as records carry it. */
export function rfc3339(microseconds: number): string {
  return `${new Date(Math.floor(microseconds / 1000)).toISOString().slice(0, -1)}${String(microseconds % 1000).padStart(3, '0')}Z`
}
