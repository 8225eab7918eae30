// SPDX-License-Identifier: Apache-2.0
#include "datagram-relay.hpp"
#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <linux/sock_diag.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>
#include "relay.h"

using ambit::Fd;

namespace {

constexpr size_t kLargest = 65536;
// Datagrams of one flow, and flows of one cell, that wait to be ruled on: what comes on top is lost, as in any full queue.
constexpr size_t kHeld = 8;
constexpr size_t kWaitingFlows = 64;
// Taken from one socket before the others have their turn.
constexpr int kAtOnce = 64;
constexpr int kSweepMs = 1000;

// The upper byte of an epoll tag says whose the rest is.
enum Tag : uint64_t { kWake, kCell4, kCell6, kInner, kOuter };
constexpr uint64_t TagOf(Tag tag, uint64_t id) { return static_cast<uint64_t>(tag) << 56 | id; }

int64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

union Name {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

socklen_t NameOf(const Endpoint& endpoint, Name* name) {
  *name = {};
  if (endpoint.family == AF_INET) {
    name->v4.sin_family = AF_INET;
    name->v4.sin_port = htons(endpoint.port);
    memcpy(&name->v4.sin_addr, endpoint.address.data(), 4);
    return sizeof name->v4;
  }
  name->v6.sin6_family = AF_INET6;
  name->v6.sin6_port = htons(endpoint.port);
  memcpy(&name->v6.sin6_addr, endpoint.address.data(), 16);
  return sizeof name->v6;
}

bool EndpointOf(const Name& name, Endpoint* endpoint) {
  *endpoint = {};
  endpoint->family = name.any.sa_family;
  if (name.any.sa_family == AF_INET) {
    endpoint->port = ntohs(name.v4.sin_port);
    memcpy(endpoint->address.data(), &name.v4.sin_addr, 4);
    return true;
  }
  endpoint->port = ntohs(name.v6.sin6_port);
  memcpy(endpoint->address.data(), &name.v6.sin6_addr, 16);
  return name.any.sa_family == AF_INET6;
}

// Runs on a thread of its own, which never comes back from the cell's namespace: this one must never be in it.
template <typename Make>
int InNamespace(int netns, Make make) {
  int error = 0;
  try {
    std::thread([&] {
      if (setns(netns, CLONE_NEWNET) != 0) error = errno;
      else error = make();
    }).join();
  } catch (const std::system_error&) {
    // The host has no thread to give: this flow is refused, and the others go on.
    return EAGAIN;
  }
  return error;
}

// A socket with the destination's own name, so that answers come from where the client sent to.
int OpenInner(const Endpoint& dialled, const Endpoint& client, Fd* out) {
  Fd fd(socket(dialled.family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno;
  const int yes = 1;
  // Several clients may talk to one destination; every address is local there, but IPv6 asks for each (ip(7)).
  const int level = dialled.family == AF_INET ? IPPROTO_IP : IPPROTO_IPV6;
  const int freebind = dialled.family == AF_INET ? IP_FREEBIND : IPV6_FREEBIND;
  if (setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) != 0 || setsockopt(fd.get(), level, freebind, &yes, sizeof yes) != 0) return errno;
  if (dialled.family == AF_INET6 && setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes) != 0) return errno;
  Name name;
  socklen_t size = NameOf(dialled, &name);
  if (bind(fd.get(), &name.any, size) != 0) return errno;
  size = NameOf(client, &name);
  if (connect(fd.get(), &name.any, size) != 0) return errno;
  *out = std::move(fd);
  return 0;
}

int OpenOuter(const Endpoint& target, Fd* out) {
  Fd fd(socket(target.family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno;
  // The cell's own limit on sizes is that of `lo`: what is larger than the path takes goes on in fragments.
  const int dont = IP_PMTUDISC_DONT;
  if (target.family == AF_INET) setsockopt(fd.get(), IPPROTO_IP, IP_MTU_DISCOVER, &dont, sizeof dont);
  Name name;
  socklen_t size = NameOf(target, &name);
  if (connect(fd.get(), &name.any, size) != 0) return errno;
  *out = std::move(fd);
  return 0;
}

ambit_answer AnswerOf(const Endpoint& client, const Endpoint& dialled) {
  ambit_answer answer = {};
  memcpy(answer.client, client.address.data(), sizeof answer.client);
  memcpy(answer.dialled, dialled.address.data(), sizeof answer.dialled);
  answer.client_port = client.port;
  answer.dialled_port = dialled.port;
  return answer;
}

// Datagrams that the kernel could not queue for a socket (include/uapi/linux/sock_diag.h).
uint32_t DropsOf(int fd) {
  uint32_t memory[SK_MEMINFO_VARS] = {};
  socklen_t size = sizeof memory;
  return fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &size) == 0 ? memory[SK_MEMINFO_DROPS] : 0;
}

uint16_t Checksum(const uint8_t* data, size_t size) {
  uint32_t sum = 0;
  for (size_t at = 0; at + 1 < size; at += 2) sum += data[at] << 8 | data[at + 1];
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return htons(static_cast<uint16_t>(~sum));
}

// "Port unreachable", with the header of the datagram as far as its ports (RFC 792, RFC 4443): connected clients hear it at once.
size_t Unreachable(const Endpoint& client, const Endpoint& dialled, uint8_t* out) {
  udphdr udp = {};
  udp.source = htons(client.port);
  udp.dest = htons(dialled.port);
  udp.len = htons(sizeof udp);
  if (client.family == AF_INET) {
    icmphdr icmp = {};
    icmp.type = ICMP_DEST_UNREACH;
    icmp.code = ICMP_PORT_UNREACH;
    iphdr ip = {};
    ip.version = 4;
    ip.ihl = 5;
    ip.tot_len = htons(sizeof ip + sizeof udp);
    ip.ttl = 64;
    ip.protocol = IPPROTO_UDP;
    memcpy(&ip.saddr, client.address.data(), 4);
    memcpy(&ip.daddr, dialled.address.data(), 4);
    ip.check = Checksum(reinterpret_cast<uint8_t*>(&ip), sizeof ip);
    memcpy(out + sizeof icmp, &ip, sizeof ip);
    memcpy(out + sizeof icmp + sizeof ip, &udp, sizeof udp);
    constexpr size_t size = sizeof icmp + sizeof ip + sizeof udp;
    memcpy(out, &icmp, sizeof icmp);
    icmp.checksum = Checksum(out, size);
    memcpy(out, &icmp, sizeof icmp);
    return size;
  }
  // The kernel adds the checksum of a raw ICMPv6 socket (RFC 3542, 3.1).
  icmp6_hdr icmp = {};
  icmp.icmp6_type = ICMP6_DST_UNREACH;
  icmp.icmp6_code = ICMP6_DST_UNREACH_NOPORT;
  ip6_hdr ip = {};
  ip.ip6_flow = htonl(6u << 28);
  ip.ip6_plen = htons(sizeof udp);
  ip.ip6_nxt = IPPROTO_UDP;
  ip.ip6_hlim = 64;
  memcpy(&ip.ip6_src, client.address.data(), 16);
  memcpy(&ip.ip6_dst, dialled.address.data(), 16);
  memcpy(out, &icmp, sizeof icmp);
  memcpy(out + sizeof icmp, &ip, sizeof ip);
  memcpy(out + sizeof icmp + sizeof ip, &udp, sizeof udp);
  return sizeof icmp + sizeof ip + sizeof udp;
}

}  // namespace

std::string Endpoint::Text() const {
  char text[INET6_ADDRSTRLEN] = "";
  inet_ntop(family, address.data(), text, sizeof text);
  return text;
}

DatagramRelay::DatagramRelay(uint32_t idle_ms, size_t flows_of_one) : idle_ms_(idle_ms), flows_of_one_(flows_of_one), buffer_(kLargest) {}

bool DatagramRelay::Open() {
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll_ || !wake_) return false;
  Watch(wake_.get(), TagOf(kWake, 0));
  return true;
}

void DatagramRelay::Watch(int fd, uint64_t tag) {
  epoll_event interest = {};
  interest.events = EPOLLIN;
  interest.data.u64 = tag;
  epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &interest);
}

void DatagramRelay::Push(Command command) {
  {
    std::lock_guard lock(mutex_);
    commands_.push_back(std::move(command));
  }
  const uint64_t one = 1;
  // A full counter wakes as well.
  if (write(wake_.get(), &one, sizeof one) < 0) return;
}

uint32_t DatagramRelay::Add(Fd netns, Fd udp4, Fd udp6, Fd answers) {
  Command command = {Command::kAdd};
  command.given.netns = std::move(netns);
  command.given.udp4 = std::move(udp4);
  command.given.udp6 = std::move(udp6);
  command.given.answers = std::move(answers);
  {
    std::lock_guard lock(mutex_);
    command.cell = next_cell_++;
  }
  const uint32_t cell = command.cell;
  Push(std::move(command));
  return cell;
}

void DatagramRelay::Rule(uint64_t flow, const Endpoint* target) {
  Command command = {Command::kRule};
  command.flow = flow;
  command.allowed = target != nullptr;
  if (target != nullptr) command.target = *target;
  Push(std::move(command));
}

void DatagramRelay::Remove(uint32_t cell) {
  Command command = {Command::kRemove};
  command.cell = cell;
  Push(std::move(command));
}

void DatagramRelay::Stop() {
  stop_ = true;
  const uint64_t one = 1;
  if (write(wake_.get(), &one, sizeof one) < 0) return;
}

void DatagramRelay::Run(const Deliver& deliver) {
  deliver_ = deliver;
  int64_t swept = NowMs();
  while (!stop_) {
    epoll_event events[64];
    int count = epoll_wait(epoll_.get(), events, 64, flows_.empty() ? -1 : kSweepMs);
    if (count < 0 && errno != EINTR) return;
    for (int i = 0; i < count; i++) {
      const uint64_t tag = events[i].data.u64 >> 56, id = events[i].data.u64 & ~(0xffull << 56);
      if (tag == kWake) {
        uint64_t drained;
        if (read(wake_.get(), &drained, sizeof drained) > 0) Obey();
      } else if (tag == kCell4 || tag == kCell6) {
        // An earlier event of this round may have removed whose this one is.
        auto cell = cells_.find(static_cast<uint32_t>(id));
        if (cell != cells_.end()) Take(cell->first, cell->second, (tag == kCell4 ? cell->second.udp4 : cell->second.udp6).get());
      } else {
        auto flow = flows_.find(id);
        if (flow != flows_.end() && flow->second.state == Flow::kOpen) Forward(id, flow->second, tag == kInner);
      }
    }
    if (!flows_.empty() && NowMs() - swept >= kSweepMs) {
      swept = NowMs();
      Sweep();
    }
  }
}

void DatagramRelay::Obey() {
  std::vector<Command> commands;
  {
    std::lock_guard lock(mutex_);
    commands.swap(commands_);
  }
  for (Command& command : commands) {
    if (command.kind == Command::kAdd) Accept(command);
    if (command.kind == Command::kRule) Decide(command);
    if (command.kind == Command::kRemove) Drop(command.cell);
  }
}

void DatagramRelay::Accept(Command& command) {
  Cell& cell = cells_[command.cell];
  cell = std::move(command.given);
  if (cell.udp4) Watch(cell.udp4.get(), TagOf(kCell4, command.cell));
  if (cell.udp6) Watch(cell.udp6.get(), TagOf(kCell6, command.cell));
}

void DatagramRelay::Take(uint32_t id, Cell& cell, int fd) {
  for (int i = 0; i < kAtOnce; i++) {
    Name from, to = {};
    alignas(cmsghdr) uint8_t control[256];
    iovec room = {buffer_.data(), buffer_.size()};
    msghdr message = {};
    message.msg_name = &from;
    message.msg_namelen = sizeof from;
    message.msg_iov = &room;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t size = recvmsg(fd, &message, 0);
    if (size < 0) return;
    for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
      const bool v4 = part->cmsg_level == SOL_IP && part->cmsg_type == IP_ORIGDSTADDR && part->cmsg_len >= CMSG_LEN(sizeof to.v4);
      const bool v6 = part->cmsg_level == SOL_IPV6 && part->cmsg_type == IPV6_ORIGDSTADDR && part->cmsg_len >= CMSG_LEN(sizeof to.v6);
      if (v4) memcpy(&to.v4, CMSG_DATA(part), sizeof to.v4);
      if (v6) memcpy(&to.v6, CMSG_DATA(part), sizeof to.v6);
    }
    Endpoint client, dialled;
    // A datagram that came from port 0 cannot be answered, and nobody can say where one without a destination went.
    if (!EndpointOf(from, &client) || !EndpointOf(to, &dialled) || client.family != dialled.family || client.port == 0) continue;
    TakeOne(id, cell, client, dialled, buffer_.data(), size);
  }
}

void DatagramRelay::TakeOne(uint32_t id, Cell& cell, const Endpoint& client, const Endpoint& dialled, const uint8_t* data, size_t size) {
  auto known = cell.flows.find({client, dialled});
  if (known == cell.flows.end()) {
    if (cell.waiting >= kWaitingFlows) {
      cell.unheard++;
      return;
    }
    if (cell.flows.size() >= flows_of_one_) MakeRoom(cell);
    const uint64_t number = next_flow_++;
    Flow& flow = flows_[number];
    flow.cell = id;
    flow.client = client;
    flow.dialled = dialled;
    flow.last_ms = NowMs();
    flow.held.emplace_back(data, data + size);
    cell.flows.emplace(std::pair{client, dialled}, number);
    cell.waiting++;
    auto event = std::make_unique<DatagramEvent>();
    event->kind = DatagramEvent::kFlow;
    event->cell = id;
    event->flow = number;
    event->client = client;
    event->dialled = dialled;
    deliver_(std::move(event));
    return;
  }
  Flow& flow = flows_.at(known->second);
  flow.last_ms = NowMs();
  if (flow.state == Flow::kOpen) SendOut(known->second, flow, data, size);
  else if (flow.state == Flow::kRefused) Refuse(cell, flow);
  else if (flow.held.size() < kHeld) flow.held.emplace_back(data, data + size);
  else cell.unheard++;
}

// The flow that was silent the longest: a cell that wants more than its share loses its own.
void DatagramRelay::MakeRoom(Cell& cell) {
  uint64_t oldest = 0;
  int64_t since = INT64_MAX;
  for (auto& [key, number] : cell.flows) {
    const Flow& flow = flows_.at(number);
    if (flow.state == Flow::kWaiting || flow.last_ms >= since) continue;
    since = flow.last_ms;
    oldest = number;
  }
  if (oldest != 0) End(oldest, "made room for another", 0);
}

void DatagramRelay::Decide(Command& command) {
  auto found = flows_.find(command.flow);
  if (found == flows_.end() || found->second.state != Flow::kWaiting) return;
  Flow& flow = found->second;
  Cell& cell = cells_.at(flow.cell);
  cell.waiting--;
  flow.last_ms = NowMs();
  std::vector<std::vector<uint8_t>> held = std::move(flow.held);
  flow.held = {};
  if (!command.allowed) {
    flow.state = Flow::kRefused;
    Refuse(cell, flow);
    return;
  }
  const char* step = "";
  int error = 0;
  if (!OpenFlow(cell, flow, command.target, &step, &error)) {
    flow.state = Flow::kRefused;
    Refuse(cell, flow);
    End(command.flow, step, error);
    return;
  }
  flow.state = Flow::kOpen;
  Watch(flow.inner.get(), TagOf(kInner, command.flow));
  Watch(flow.outer.get(), TagOf(kOuter, command.flow));
  for (auto& datagram : held) {
    auto still = flows_.find(command.flow);
    if (still == flows_.end()) return;
    SendOut(command.flow, still->second, datagram.data(), datagram.size());
  }
}

bool DatagramRelay::OpenFlow(Cell& cell, Flow& flow, const Endpoint& target, const char** step, int* error) {
  *step = "the server could not be reached";
  *error = OpenOuter(target, &flow.outer);
  if (*error != 0) return false;
  *step = "no socket could be made in the cell";
  *error = InNamespace(cell.netns.get(), [&] { return OpenInner(flow.dialled, flow.client, &flow.inner); });
  if (*error != 0) return false;
  const ambit_answer key = AnswerOf(flow.client, flow.dialled);
  const uint8_t one = 1;
  if (bpf_map_update_elem(cell.answers.get(), &key, &one, BPF_ANY) != 0) *error = errno;
  return *error == 0;
}

void DatagramRelay::SendOut(uint64_t id, Flow& flow, const uint8_t* data, size_t size) {
  if (send(flow.outer.get(), data, size, MSG_NOSIGNAL) >= 0) {
    flow.bytes_out += size;
    return;
  }
  // A full queue and a datagram larger than any are lost, as datagrams are.
  if (errno == EAGAIN || errno == EMSGSIZE || errno == ENOBUFS) return;
  const int error = errno;
  Refuse(cells_.at(flow.cell), flow);
  End(id, "the server could not be reached", error);
}

void DatagramRelay::Forward(uint64_t id, Flow& flow, bool outwards) {
  for (int i = 0; i < kAtOnce; i++) {
    ssize_t size = recv((outwards ? flow.inner : flow.outer).get(), buffer_.data(), buffer_.size(), 0);
    if (size < 0) {
      if (errno == EAGAIN || errno == EINTR) return;
      const int error = errno;
      if (!outwards) Refuse(cells_.at(flow.cell), flow);
      End(id, outwards ? "the client is gone" : "the server could not be reached", outwards ? 0 : error);
      return;
    }
    flow.last_ms = NowMs();
    if (outwards) {
      SendOut(id, flow, buffer_.data(), size);
      if (flows_.count(id) == 0) return;
    } else {
      flow.bytes_in += size;
      // A client that is gone is told of by the next receive.
      if (send(flow.inner.get(), buffer_.data(), size, MSG_NOSIGNAL) < 0) continue;
    }
  }
}

void DatagramRelay::Refuse(Cell& cell, const Flow& flow) {
  Fd& raw = flow.client.family == AF_INET ? cell.icmp4 : cell.icmp6;
  if (!raw) {
    InNamespace(cell.netns.get(), [&] {
      raw = Fd(flow.client.family == AF_INET ? socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMP) : socket(AF_INET6, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_ICMPV6));
      return 0;
    });
    // It only sends: what comes in would fill its queue.
    const int none = 0;
    if (raw) setsockopt(raw.get(), SOL_SOCKET, SO_RCVBUF, &none, sizeof none);
  }
  uint8_t packet[128];
  const size_t size = Unreachable(flow.client, flow.dialled, packet);
  Endpoint where = flow.client;
  where.port = 0;
  Name name;
  const socklen_t length = NameOf(where, &name);
  // Without it the client waits for its own time-out: refused all the same.
  if (raw && sendto(raw.get(), packet, size, MSG_NOSIGNAL, &name.any, length) < 0) return;
}

void DatagramRelay::End(uint64_t id, const char* step, int error) {
  auto found = flows_.find(id);
  Flow& flow = found->second;
  auto event = std::make_unique<DatagramEvent>();
  event->kind = DatagramEvent::kEnd;
  event->cell = flow.cell;
  event->flow = id;
  event->bytes_out = flow.bytes_out;
  event->bytes_in = flow.bytes_in;
  event->step = step;
  event->error = error;
  Cell& cell = cells_.at(flow.cell);
  if (flow.state == Flow::kWaiting) cell.waiting--;
  cell.flows.erase({flow.client, flow.dialled});
  const ambit_answer key = AnswerOf(flow.client, flow.dialled);
  bpf_map_delete_elem(cell.answers.get(), &key);
  flows_.erase(found);
  deliver_(std::move(event));
}

void DatagramRelay::Sweep() {
  const int64_t now = NowMs();
  std::vector<uint64_t> idle;
  for (auto& [id, flow] : flows_) if (flow.state != Flow::kWaiting && now - flow.last_ms >= idle_ms_) idle.push_back(id);
  for (uint64_t id : idle) End(id, "", 0);
}

void DatagramRelay::Drop(uint32_t id) {
  auto cell = cells_.find(id);
  if (cell == cells_.end()) return;
  std::vector<uint64_t> open;
  for (auto& [key, number] : cell->second.flows) open.push_back(number);
  // Told as they began.
  std::sort(open.begin(), open.end());
  for (uint64_t number : open) End(number, "", 0);
  auto event = std::make_unique<DatagramEvent>();
  event->kind = DatagramEvent::kRemoved;
  event->cell = id;
  event->unheard = cell->second.unheard + DropsOf(cell->second.udp4.get()) + DropsOf(cell->second.udp6.get());
  cells_.erase(cell);
  deliver_(std::move(event));
}
