/**
 * Capabilities of capabilities(7) that a command may keep, by Docker's words. All of them are of the cell's own user
 * namespace: they reach files whose owner has an id of the cell, the cell's processes and its own network namespace.
 */
export const CAPABILITIES = ['CHOWN', 'DAC_OVERRIDE', 'FOWNER', 'FSETID', 'KILL', 'NET_BIND_SERVICE', 'SETGID', 'SETUID'] as const
export type Capability = (typeof CAPABILITIES)[number]

/** Those that people ask for and no cell gives, with the reason. */
export const REFUSED_CAPABILITIES: ReadonlyMap<string, string> = new Map([
  ['SYS_ADMIN', 'it mounts, and most of the kernel\'s holes of the last years were reached with it'],
  ['SYS_PTRACE', 'it looks into processes whatever their user, and would reach the cell\'s own process 1'],
  ['NET_ADMIN', 'it changes routes and rules of the network, on which the way to the relay rests'],
  ['NET_RAW', 'it opens raw sockets, which the relay does not see'],
  ['SYS_CHROOT', 'it changes the root under the rules of Landlock; no package manager needs it for the cell\'s own root'],
  ['MKNOD', 'device nodes cannot be made in a user namespace, whoever asks'],
  ['SETFCAP', 'a capability written to a file of the workspace would hold on the host, too'],
  ['SETPCAP', 'it changes what processes hold and has no use where nothing more can be had'],
  ['DAC_READ_SEARCH', 'it opens files by handle, past every path; DAC_OVERRIDE is enough for files of the cell'],
  ['SYS_RESOURCE', 'it lifts the limits that the contract sets'],
  ['SYS_NICE', 'it takes processor time from the host\'s own processes'],
  ['IPC_LOCK', 'it lifts the limit of locked memory that the contract sets'],
  ['AUDIT_WRITE', 'the audit log is the host\'s'],
  ['BPF', 'it loads programs into the kernel'],
  ['PERFMON', 'it observes the host'],
  ['SYS_MODULE', 'it loads code into the kernel'],
  ['SYS_TIME', 'the clock is the host\'s'],
  ['SYS_BOOT', 'the machine is the host\'s'],
  ['SYS_RAWIO', 'the devices are the host\'s'],
  ['SYSLOG', 'the kernel\'s log is the host\'s'],
])
