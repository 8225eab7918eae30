/** Colour only on a terminal, and not where the reader asked for none (no-color.org). */
export function colour(stream: NodeJS.WriteStream): boolean {
  return stream.isTTY === true && (process.env['NO_COLOR'] ?? '') === ''
}

export function print(text: string): void {
  process.stdout.write(text.endsWith('\n') ? text : `${text}\n`)
}

export function printJson(value: unknown): void {
  print(JSON.stringify(value, (_, item) => (typeof item === 'bigint' ? item.toString() : item), 2))
}
