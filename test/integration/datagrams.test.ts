import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import packet from 'dns-packet'
import t from 'tap'
import { startHost, type Run } from '../fixtures/host.ts'

// Real cells, and UDP servers of the test on addresses that look public.
const NAMES = { 'echo.example': '93.184.216.34', 'time.example': '93.184.216.35', 'both-a.example': '93.184.216.36', 'both-b.example': '93.184.216.36', 'six.example': '2606:2800:220::34' }
const SERVERS = `
import os, socket, struct, threading
def serve(family, host, port, answer):
    s = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND: the route makes it local, no interface has it
    s.bind((host, port))
    def loop():
        while True:
            data, peer = s.recvfrom(65536)
            for part in answer(data): s.sendto(part, peer)
    threading.Thread(target=loop).start()
def name_server(query):
    yield query[:2] + struct.pack('>HHHHH', 0x8180, 1, 1, 0, 0) + query[12:] + bytes.fromhex('c00c000100010000003c0004c6336407')
echo = lambda data: [b'echo ' + data]
for host in ['93.184.216.34', '93.184.216.36', '127.0.0.1']:
    for port in [443, 7000, 7001]: serve(socket.AF_INET, host, port, echo)
serve(socket.AF_INET6, '2606:2800:220::34', 7000, echo)
serve(socket.AF_INET, '93.184.216.34', 7002, lambda data: [b'%d' % part for part in range(20)])
serve(socket.AF_INET, '93.184.216.34', 5353, name_server)
serve(socket.AF_INET, '93.184.216.35', 123, lambda data: [b'\\x24\\x01' + bytes(38) + struct.pack('>II', 3900000000, 0)] if len(data) == 48 and data[0] & 7 == 3 else [])
open(os.environ['dir'] + '/servers', 'w')
`
const host = await startHost({ hosts: NAMES, ready: ['servers'], setup: `cat > "$dir/servers.py" <<'END'\n${SERVERS}\nEND\npython3 "$dir/servers.py" &` })
t.teardown(() => host.close())

writeFileSync(join(host.work, 'client.py'), `import socket, sys, time
def ask(where, port, data=b'hello', connected=True, answers=1, seconds=5):
    family, _, _, _, name = socket.getaddrinfo(where, port, type=socket.SOCK_DGRAM)[0]
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(seconds)
    try:
        if connected:
            s.connect(name)
            s.send(data)
        else:
            s.sendto(data, name)
        got = []
        for _ in range(answers):
            part, peer = s.recvfrom(65536)
            assert peer[:2] == name[:2], (peer, name)
            got.append(part)
        return got
    except OSError as error:
        return [type(error).__name__.encode()]
def show(*args, **more): print(b' '.join(ask(*args, **more)).decode('latin1')[:200], flush=True)
exec(sys.argv[1])
`)
const spec = (network: string): string => `authority:
  network: [${network}]
  filesystem: { read: [/usr, /bin, /lib, /lib64, /etc], write: [/workspace, /tmp] }
  exec: ['*']
  syscall: { profile: build }`
const python = (source: string): string[] => ['python3', 'client.py', source]
const network = (run: Run): string[] => run.rows.filter(row => row.kind === 'network').map(row => `${row.grant} ${row.outcome}`)
const ECHO = '{ host: echo.example, port: 7000, protocol: udp }'

t.test('a declared datagram leaves, and its answers come from where it was sent', async t => {
  const source = 'show("echo.example", 7000); show("echo.example", 7000, connected=False); show("echo.example", 7000, data=b"x" * 9000); show("echo.example", 7000, data=b"")'
  const bare = await host.bare(python(source))
  t.match(bare.stdout, /^echo hello\necho hello\necho x{195}\necho \n$/, bare.stderr)
  const run = await host.run(spec(ECHO), python(source))
  t.equal(run.stdout, bare.stdout, run.stderr)
  t.same(network(run), ['echo.example:7000/udp used'])
  const flows = run.records.filter(record => record.type === 'flow')
  t.match(flows[0], { protocol: 'udp', name: 'echo.example', nameSource: 'resolver', address: '93.184.216.34', port: 7000, decision: 'allowed', reason: 'declared', bytesOut: 5, bytesIn: 10 })
  t.equal(flows.length, 4, 'one for each client')
})

t.test('one question may have many answers, and many clients one server', async t => {
  const run = await host.run(spec('{ host: echo.example, port: "*", protocol: udp }'), python(`show("echo.example", 7002, answers=20)
import threading
out = []
threads = [threading.Thread(target=lambda n=n: out.append(ask("echo.example", 7000, data=b"%d" % n)[0] == b"echo %d" % n)) for n in range(50)]
for one in threads: one.start()
for one in threads: one.join()
print(all(out), len(out))`))
  t.equal(run.stdout, `${Array.from({ length: 20 }, (_, n) => n).join(' ')}\nTrue 50\n`, run.stderr)
})

t.test('what is not declared is refused at once, and told', async t => {
  const source = 'show("echo.example", 7001)'
  t.equal((await host.bare(python(source))).stdout, 'echo hello\n', 'bare')
  const port = await host.run(spec(ECHO), python(source))
  t.equal(port.stdout, 'ConnectionRefusedError\n', port.stderr)
  t.same(network(port), ['echo.example:7000/udp used', 'echo.example:7001/udp denied'], 'the name was looked up')
  t.match(port.rows.find(row => row.outcome === 'denied' && row.kind === 'network')!.proof, /echo.example is not declared at port 7001 over UDP/)

  const address = await host.run(spec(ECHO), python('show("93.184.216.36", 7000); show("93.184.216.36", 7000, connected=False, seconds=0.3)'))
  t.equal(address.stdout, 'ConnectionRefusedError\ntimeout\n'.replace('timeout', address.stdout.includes('TimeoutError') ? 'TimeoutError' : 'timeout'), address.stderr)
  t.ok(network(address).includes('93.184.216.36:7000/udp denied'))

  const tcp = await host.run(spec('{ host: echo.example, port: 7000 }'), python('show("echo.example", 7000)'))
  t.equal(tcp.stdout, 'ConnectionRefusedError\n', 'a grant over TCP is none over UDP')
  const loopback = await host.run(spec(ECHO), python('show("127.0.0.1", 7000)'))
  t.equal(loopback.stdout, 'ConnectionRefusedError\n', 'loopback is the cell\'s own')
})

t.test('private and special addresses are refused unless named, in observe too', async t => {
  for (const mode of ['enforce', 'observe'] as const) {
    const run = await host.run(spec('{ host: "0.0.0.0/0", port: "*", protocol: udp }'), python('show("169.254.169.254", 80); show("10.1.2.3", 161)'), { mode })
    t.equal(run.stdout, 'ConnectionRefusedError\nConnectionRefusedError\n', run.stderr)
    t.ok(network(run).includes('169.254.169.254:80/udp denied'), mode)
  }
})

t.test('QUIC is refused where it is not declared, with the reason, and goes where it is', async t => {
  const source = 'show("echo.example", 443)'
  t.equal((await host.bare(python(source))).stdout, 'echo hello\n', 'bare')
  for (const mode of ['enforce', 'observe'] as const) {
    const run = await host.run(spec('{ host: "*", port: 443 }'), python(source), { mode })
    t.equal(run.stdout, 'ConnectionRefusedError\n', mode)
    t.match(run.rows.find(row => row.grant === 'echo.example:443/udp'), { outcome: 'denied', proof: /QUIC \(UDP 443\) is not declared/ }, mode)
  }
  const declared = await host.run(spec('{ host: echo.example, port: 443, protocol: udp }'), python(source))
  t.equal(declared.stdout, 'echo hello\n', declared.stderr)
})

t.test('in observe any public destination is reached, and told as undeclared', async t => {
  const run = await host.run(spec(''), python('show("echo.example", 7001)'), { mode: 'observe' })
  t.equal(run.stdout, 'echo hello\n', run.stderr)
  t.same(network(run), ['echo.example:7001/udp undeclared'])
})

t.test('a name server on another port and a time server are asked as anywhere', async t => {
  const query = packet.encode({ type: 'query', id: 7, flags: packet.RECURSION_DESIRED, questions: [{ type: 'A', name: 'www.example' }] }).toString('hex')
  const run = await host.run(spec('{ host: "93.184.216.34", port: 5353, protocol: udp }, { host: time.example, port: 123, protocol: udp }'), python(`print(ask("93.184.216.34", 5353, bytes.fromhex("${query}"))[0].hex())
import struct
print(struct.unpack(">I", ask("time.example", 123, b"\\x1b" + bytes(47))[0][40:44])[0])`))
  const [answer, time] = run.stdout.split('\n')
  t.match(packet.decode(Buffer.from(answer!, 'hex')).answers, [{ name: 'www.example', type: 'A', data: '198.51.100.7' }], run.stderr)
  t.equal(time, '3900000000')
  t.same(network(run), ['93.184.216.34:5353/udp used', 'time.example:123/udp used'])
})

t.test('two names at one address are told as both, since no datagram says which is meant', async t => {
  const run = await host.run(spec('{ host: both-a.example, port: 7000, protocol: udp }, { host: both-b.example, port: 9, protocol: udp }'), python('socket.getaddrinfo("both-b.example", 9); show("both-a.example", 7000)'))
  t.equal(run.stdout, 'echo hello\n', run.stderr)
  t.match(run.records.find(record => record.type === 'flow'), { name: 'both-a.example', reason: /no name can be confirmed in a datagram.*both-a.example, both-b.example/ })
})

t.test('IPv6 goes as IPv4 does', async t => {
  const address = '"2606:2800:220::34"'
  const run = await host.run(spec(`{ host: ${address}, port: 7000, protocol: udp }`), python(`show(${address}, 7000); show(${address}, 7000, connected=False); show(${address}, 7001); show("2606:2800:220::35", 7000)`))
  t.equal(run.stdout, 'echo hello\necho hello\nConnectionRefusedError\nConnectionRefusedError\n', run.stderr)
  t.ok(network(run).includes('[2606:2800:220::34]:7001/udp denied'))
})

t.test('a server that is not there is told as such, and the client hears of it', async t => {
  const run = await host.run(spec('{ host: "93.184.216.35", port: "*", protocol: udp }'), python('show("93.184.216.35", 7999)'))
  t.equal(run.stdout, 'ConnectionRefusedError\n', run.stderr)
  t.match(run.records.find(record => record.type === 'flow'), { decision: 'allowed', reason: /the server could not be reached/ })
})

t.test('the contract\'s hosts reach the host\'s loopback over UDP as well', async t => {
  const run = await host.run(`hosts: { inner.example: 127.0.0.1 }\n${spec('{ host: inner.example, port: 7000, protocol: udp }')}`, python('show("inner.example", 7000); show("inner.example", 7001)'))
  t.equal(run.stdout, 'echo hello\nConnectionRefusedError\n', run.stderr)
})

t.test('a flood of destinations loses its own flows only, and none of it is silent', async t => {
  const run = await host.run(spec('{ host: "93.184.216.0/24", port: 7000, protocol: udp }'), python(`s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(1, 3000): s.sendto(b"x", ("93.184.216.36", 20000 + port))
time.sleep(0.5)
show("93.184.216.36", 7000)`))
  t.equal(run.stdout, 'echo hello\n', run.stderr)
  const flows = run.records.filter(record => record.type === 'flow').length
  const lost = run.records.filter(record => record.type === 'loss' && record.event === 'flow').reduce((sum, record) => sum + (record.type === 'loss' ? record.dropped : 0), 0)
  t.equal(flows + lost, 3000, `${flows} told, ${lost} lost`)
})
