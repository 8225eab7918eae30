import type { Command } from 'commander'
import { subscribe } from '../daemon/feed-client.ts'
import { readText } from '../text.ts'
import { print } from './io.ts'

export function feedCommand(program: Command): void {
  program.command('feed')
    .description('follow a cell\'s evidence over the daemon\'s WebSocket feed, one JSON record a line')
    .argument('<cell>', 'the cell\'s id, as `ambit run --json` tells it')
    .option('--url <url>', 'the feed', 'ws://127.0.0.1:9466/v1/feed')
    .option('--token-file <file>', 'bearer token', '/var/lib/ambit/feed-token')
    .option('--from <seq>', 'the first record wanted', '0')
    .action(async (cell: string, options) => {
      const token = readText(options.tokenFile, 'the feed\'s token').trim()
      for await (const record of subscribe({ url: options.url, token, cell, from: Number(options.from) })) print(JSON.stringify(record))
    })
}
