import { closeSync, openSync } from 'node:fs'
import type { Attack, Statement } from './case.ts'
import { deniedFile, refusedCall } from './case.ts'
import { file, processOfHost } from './stand-ins.ts'

/** The rows of the escape table: what got out of other runtimes, tried against this one. */
export const ATTACKS: readonly Attack[] = [
  {
    name: 'mount-namespace', covers: ['row 9', 'row 11', 'nested user namespaces'],
    attempts: 'make a user namespace, be root in it and mount',
    evidence: refusedCall('unshare'),
  },
  {
    name: 'abstract-socket', covers: ['row 15', 'abstract sockets'],
    attempts: 'talk to a service of the host through an abstract socket',
    setUp: async stage => {
      const name = `ambit-escapes-${process.pid}`
      // Node's own sockets take no abstract name.
      await processOfHost(stage, ['python3', '-c', `import socket
s = socket.socket(socket.AF_UNIX)
s.bind("\\0${name}")
s.listen()
print("ready", flush=True)
while True:
    c, _ = s.accept()
    c.send(b"hello from outside")
    c.close()`])
      return [name]
    },
    evidence: { silent: 'connect fails as on a host where nobody listens: abstract names belong to the network namespace' },
  },
  {
    name: 'leaked-directory', covers: ['row 2', 'inherited descriptors'],
    attempts: 'reach a file of the host through an inherited descriptor or ".." from the working directory',
    setUp: stage => [file(stage)],
    inherits: stage => {
      const fd = openSync(stage.dir, 'r')
      stage.defer(() => { closeSync(fd) })
      return [fd]
    },
    evidence: deniedFile(stage => `${stage.dir}/outside.txt`),
  },
]

export const STATEMENTS: readonly Statement[] = []
