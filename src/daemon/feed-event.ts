import { CloudEvent } from 'cloudevents'
import { z } from 'zod'
import { evidenceRecord, type EvidenceRecord } from '../evidence/records.ts'

const TYPE = 'dev.ambit.evidence.'

/** What the feed sends for a record: a CloudEvent 1.0 in JSON (github.com/cloudevents/spec, formats/json-format.md) whose data is the record as it stands in the log. */
export function feedEvent(host: string, cell: string, line: string): string {
  const record = JSON.parse(line) as { seq: number; time: string; type: string }
  return JSON.stringify(new CloudEvent({
    id: `${cell}/${record.seq}`, source: `/ambit/${encodeURIComponent(host)}`, type: `${TYPE}${record.type}`, subject: cell,
    time: record.time, datacontenttype: 'application/json', data: record,
  }))
}

const envelope = z.object({ specversion: z.literal('1.0'), id: z.string(), source: z.string(), type: z.string(), subject: z.string(), data: evidenceRecord })

/** Reads a message of the feed; throws in words if it is not one. `line` is the record as it stands in the log, whose form is canonical (evidence/chain.ts). */
export function readFeedEvent(text: string): { cell: string; record: EvidenceRecord; line: string } {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw new Error('it is not JSON', { cause })
  }
  const parsed = envelope.safeParse(value)
  if (!parsed.success) throw new Error(`${parsed.error.issues[0]!.path.join('.') || 'the event'}: ${parsed.error.issues[0]!.message}`)
  const { id, subject, data, type } = parsed.data
  const record = data as EvidenceRecord
  if (id !== `${subject}/${record.seq}` || type !== `${TYPE}${record.type}`) throw new Error('its id or type is not that of its record')
  return { cell: subject, record, line: JSON.stringify((value as { data: unknown }).data) }
}
