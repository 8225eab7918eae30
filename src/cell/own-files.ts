/** Files of /etc that each cell has as its own, by name. */
export function ownFiles(id: string): { name: string; content: string }[] {
  return [
    { name: 'resolv.conf', content: 'nameserver 127.0.0.1\noptions timeout:5 attempts:2\n' },
    { name: 'hosts', content: '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 cell\n' },
    { name: 'hostname', content: `cell-${id}\n` },
  ]
}
