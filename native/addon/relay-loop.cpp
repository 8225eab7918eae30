// SPDX-License-Identifier: Apache-2.0
#include "relay-loop.hpp"
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cerrno>
#include <utility>

using ambit::Fd;

namespace {

constexpr uint64_t kWakeKey = UINT64_MAX;
constexpr size_t kCopyBytes = 16 * 1024;
constexpr size_t kSpliceBytes = 1024 * 1024;
// Turns of one way before the other flows get theirs.
constexpr int kTurns = 16;
// Far more than the head of an answer, which is all that is ever looked for.
constexpr size_t kMaxShown = 64 * 1024;
constexpr int kLingerMs = 20;

constexpr size_t kMaxPipes = 128;
constexpr size_t kMaxPipesOfGroup = 32;
// A page of the sender's stays in memory for as long as a byte of it is in a pipe: large ones are few.
constexpr size_t kMaxLargePipes = 16;
constexpr int kLargePipe = 1024 * 1024;
constexpr size_t kMaxIdlePipes = 4;

// Whatever ends the daemon, a peer must not take a stream that was cut for one that is whole.
void ResetOnClose(int fd, bool reset) {
  linger value{.l_onoff = reset, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &value, sizeof value);
}

bool IsClosed(int fd) {
  tcp_info info{};
  socklen_t size = sizeof info;
  return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 && info.tcpi_state == TCP_CLOSE;
}

int PendingError(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
  // The descriptor's other holder was told it.
  return error != 0 ? error : ECONNRESET;
}

}  // namespace

std::unique_ptr<PipePool::Pipe> PipePool::Take(uint32_t group) {
  if (idle_.empty() && count_ >= kMaxPipes) return nullptr;
  size_t& lent = lent_[group];
  if (lent >= kMaxPipesOfGroup) return nullptr;
  std::unique_ptr<Pipe> pipe;
  if (!idle_.empty()) {
    pipe = std::move(idle_.back());
    idle_.pop_back();
  } else {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
      if (lent == 0) lent_.erase(group);
      return nullptr;
    }
    pipe = std::make_unique<Pipe>();
    pipe->out = Fd(ends[0]);
    pipe->in = Fd(ends[1]);
    // EPERM: this user's share (pipe-user-pages-soft) is used up, or pipe-max-size is smaller. It stays as it is.
    pipe->large = large_ < kMaxLargePipes && fcntl(ends[0], F_SETPIPE_SZ, kLargePipe) >= 0;
    large_ += pipe->large;
    count_++;
  }
  lent++;
  return pipe;
}

void PipePool::Give(std::unique_ptr<Pipe> pipe, uint32_t group, bool empty) {
  auto lent = lent_.find(group);
  if (--lent->second == 0) lent_.erase(lent);
  if (empty && idle_.size() < kMaxIdlePipes) {
    // The last one given is the first one taken: a large one, if there is one.
    idle_.insert(pipe->large ? idle_.end() : idle_.begin(), std::move(pipe));
    return;
  }
  count_--;
  large_ -= pipe->large;
}

int RelayLoop::Open(const char** step) {
  auto failed = [&](const char* what) { *step = what; return errno; };
  buffer_.resize(kCopyBytes);
  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_) return failed("epoll_create1");
  wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) return failed("eventfd");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWakeKey}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) return failed("epoll_ctl");
  return 0;
}

void RelayLoop::Run(const Deliver& deliver) {
  deliver_ = deliver;
  epoll_event events[64];
  while (!stop_) {
    int timeout = !ready_.empty() ? 0 : lingering_.empty() ? -1 : kLingerMs;
    int count = epoll_wait(epoll_.get(), events, 64, timeout);
    if (count < 0 && errno != EINTR) return;
    for (int i = 0; i < count; i++) {
      if (events[i].data.u64 == kWakeKey) Obey();
      else Happened(events[i].data.u64, events[i].events);
    }
    CheckLingering();
    for (uint64_t id : std::exchange(ready_, {})) {
      auto found = flows_.find(id);
      if (found == flows_.end()) continue;
      found->second->queued = false;
      Pump(*found->second);
    }
  }
}

void RelayLoop::Obey() {
  uint64_t ignored;
  if (read(wake_.get(), &ignored, sizeof ignored) < 0 && errno != EAGAIN) return;
  std::vector<RelayCommand> commands;
  {
    std::lock_guard lock(mutex_);
    commands.swap(commands_);
  }
  for (RelayCommand& command : commands) Do(command);
}

void RelayLoop::Do(RelayCommand& command) {
  if (command.kind == RelayCommand::kOpen) {
    auto made = std::make_unique<Flow>();
    Flow& flow = *made;
    flow.id = command.flow;
    flow.group = command.group;
    flow.client.fd = std::move(command.client);
    flow.server.fd = std::move(command.server);
    flow.in.open = true;
    flows_.emplace(flow.id, std::move(made));
    int error = 0;
    for (const Side* side : {&flow.client, &flow.server}) {
      epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data = {.u64 = flow.id << 1 | (side == &flow.server)}};
      if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, side->fd.get(), &event) != 0) error = errno;
    }
    if (error != 0) End(flow, RelayEvent::kCut, error);
    else Queue(flow);
    return;
  }
  auto found = flows_.find(command.flow);
  if (found == flows_.end()) return;
  Flow& flow = *found->second;
  switch (command.kind) {
    case RelayCommand::kSend:
      if (flow.server.error != 0) break;
      flow.out.open = true;
      flow.out.held = std::move(command.bytes);
      flow.out.at = 0;
      break;
    case RelayCommand::kSent:
      if (command.error == 0) flow.out.done = true;
      else if (Broke(flow, flow.server, command.error) == Step::kGone) return;
      break;
    case RelayCommand::kWatch:
      flow.watched = true;
      flow.shown = 0;
      Shown(flow, 0);
      break;
    case RelayCommand::kUnwatch:
      flow.watched = false;
      break;
    case RelayCommand::kCut:
      return End(flow, RelayEvent::kCut, 0);
    case RelayCommand::kOpen:
      break;
  }
  Queue(flow);
}

void RelayLoop::Happened(uint64_t key, uint32_t events) {
  auto found = flows_.find(key >> 1);
  if (found == flows_.end()) return;
  Flow& flow = *found->second;
  Side& side = (key & 1) != 0 ? flow.server : flow.client;
  if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) side.readable = true;
  if (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) side.writable = true;
  // Told even while nothing is read or written here, because the other side does not keep up.
  if ((events & EPOLLERR) && Broke(flow, side, PendingError(side.fd.get())) == Step::kGone) return;
  Queue(flow);
}

void RelayLoop::Queue(Flow& flow) {
  if (flow.queued) return;
  flow.queued = true;
  ready_.push_back(flow.id);
}

void RelayLoop::Pump(Flow& flow) {
  Step in = Move(flow, flow.in);
  if (in == Step::kGone) return;
  Step out = Move(flow, flow.out);
  if (out == Step::kGone || Settle(flow)) return;
  if (in == Step::kMore || out == Step::kMore) Queue(flow);
}

RelayLoop::Step RelayLoop::Move(Flow& flow, Way& way) {
  for (int turn = 0; turn < kTurns; turn++) {
    if (!way.open || way.done) return Step::kWait;
    Step step = way.Pending() ? Drain(flow, way) : way.ended ? Finish(flow, way) : Fill(flow, way);
    if (step != Step::kMore) return step;
  }
  return Step::kMore;
}

// Towards the receiver, until it takes no more.
RelayLoop::Step RelayLoop::Drain(Flow& flow, Way& way) {
  Side& to = &way == &flow.out ? flow.server : flow.client;
  if (!to.writable) return Step::kWait;
  bool copied = way.at < way.held.size();
  ssize_t size = copied ? send(to.fd.get(), way.held.data() + way.at, way.held.size() - way.at, MSG_DONTWAIT | MSG_NOSIGNAL)
                        : splice(way.pipe->out.get(), nullptr, to.fd.get(), nullptr, way.piped, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
  if (size < 0 && errno == EINTR) return Step::kMore;
  if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    to.writable = false;
    return Step::kWait;
  }
  if (size < 0) return Broke(flow, to, errno);
  if (&way == &flow.out) way.bytes += size;
  if (!copied) way.piped -= size;
  else if ((way.at += size) == way.held.size()) {
    std::vector<uint8_t>().swap(way.held);
    way.at = 0;
  }
  return Step::kMore;
}

RelayLoop::Step RelayLoop::Fill(Flow& flow, Way& way) {
  Side& from = &way == &flow.out ? flow.client : flow.server;
  bool watched = flow.watched && &way == &flow.in;
  if (from.readable && way.bulk && !watched) {
    if (!way.pipe) way.pipe = pool_.Take(flow.group);
    if (way.pipe) {
      ssize_t size = splice(from.fd.get(), nullptr, way.pipe->in.get(), nullptr, kSpliceBytes, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
      if (size > 0) {
        way.piped = size;
        if (&way == &flow.in) way.bytes += size;
        return Step::kMore;
      }
      // The call takes the socket's error away with it, so that the next one would see a mere end.
      if (size < 0 && errno != EAGAIN && errno != EINTR && errno != EINVAL && errno != ENOMEM) return Broke(flow, from, errno);
    }
  }
  if (way.pipe) pool_.Give(std::move(way.pipe), flow.group, true);
  if (!from.readable) return Step::kWait;
  // splice stops before an urgent byte, with EAGAIN or as if at the end (net/ipv4/tcp.c, tcp_read_sock): what is the end, and what
  // is nothing yet, is asked of recv alone.
  return Copy(flow, way);
}

RelayLoop::Step RelayLoop::Copy(Flow& flow, Way& way) {
  bool out = &way == &flow.out;
  Side& from = out ? flow.client : flow.server;
  Side& to = out ? flow.server : flow.client;
  ssize_t size = recv(from.fd.get(), buffer_.data(), buffer_.size(), MSG_DONTWAIT);
  if (size < 0 && errno == EINTR) return Step::kMore;
  if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    from.readable = false;
    way.bulk = false;
    if (from.error != 0) way.ended = true;
    return Step::kWait;
  }
  if (size < 0) {
    way.ended = true;
    return Broke(flow, from, errno);
  }
  if (size == 0) {
    way.ended = true;
    return Step::kMore;
  }
  way.bulk = static_cast<size_t>(size) == buffer_.size();
  if (!out) {
    way.bytes += size;
    if (flow.watched) Shown(flow, size);
  }
  ssize_t sent = to.writable ? send(to.fd.get(), buffer_.data(), size, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
  if (sent < 0) {
    // What it may mean is told by the next attempt, with the bytes held.
    if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) return Broke(flow, to, errno);
    sent = 0;
  }
  if (out) way.bytes += sent;
  if (sent < size) {
    way.held.assign(buffer_.begin() + sent, buffer_.begin() + size);
    way.at = 0;
  }
  return Step::kMore;
}

// All was passed on: the receiver is told that no more comes.
RelayLoop::Step RelayLoop::Finish(Flow& flow, Way& way) {
  bool out = &way == &flow.out;
  Side& from = out ? flow.client : flow.server;
  const Way& back = out ? flow.in : flow.out;
  if (from.error != 0) return Step::kWait;
  // An end on a connection that is closed for both, though we have not ended ours, is a reset whose error somebody else was told.
  if (!back.done && IsClosed(from.fd.get())) return back.open ? Broke(flow, from, ECONNRESET) : Step::kWait;
  shutdown((out ? flow.server : flow.client).fd.get(), SHUT_WR);
  way.done = true;
  if (!out) Over(flow);
  return Step::kWait;
}

RelayLoop::Step RelayLoop::Broke(Flow& flow, Side& side, int error) {
  if (&side == &flow.client) {
    End(flow, RelayEvent::kClient, error);
    return Step::kGone;
  }
  // What the server sent before it broke off is the client's to read.
  if (side.error == 0) side.error = error;
  side.readable = true;
  Drop(flow, flow.out);
  flow.out.open = false;
  return Step::kWait;
}

void RelayLoop::Shown(Flow& flow, size_t size) {
  auto event = std::make_unique<RelayEvent>();
  event->kind = RelayEvent::kHeard;
  event->flow = flow.id;
  event->bytes_in = flow.in.bytes;
  event->bytes.assign(buffer_.begin(), buffer_.begin() + size);
  flow.shown += size;
  deliver_(std::move(event));
  if (flow.shown >= kMaxShown) Over(flow);
}

void RelayLoop::Over(Flow& flow) {
  if (!std::exchange(flow.watched, false)) return;
  auto event = std::make_unique<RelayEvent>();
  event->kind = RelayEvent::kOver;
  event->flow = flow.id;
  deliver_(std::move(event));
}

void RelayLoop::Drop(Flow& flow, Way& way) {
  if (way.pipe) pool_.Give(std::move(way.pipe), flow.group, way.piped == 0);
  way.piped = way.at = 0;
  std::vector<uint8_t>().swap(way.held);
}

// Ends the flow if nothing is left to do; says whether it has.
bool RelayLoop::Settle(Flow& flow) {
  if (flow.server.error != 0) {
    if (!flow.in.ended && !flow.in.done) {
      if (flow.in.Pending()) return false;
      Queue(flow);
      return false;
    }
    if (flow.in.Pending()) return false;
    // A reset would take away what the client's side has not been given by the kernel yet, and no event tells when it has.
    int unsent = 0;
    if (ioctl(flow.client.fd.get(), SIOCOUTQ, &unsent) == 0 && unsent > 0) {
      lingering_.insert(flow.id);
      return false;
    }
    End(flow, RelayEvent::kServer, flow.server.error);
    return true;
  }
  if (!flow.in.done || !flow.out.done) return false;
  End(flow, RelayEvent::kNobody, 0);
  return true;
}

void RelayLoop::CheckLingering() {
  for (uint64_t id : std::exchange(lingering_, {})) {
    auto found = flows_.find(id);
    if (found != flows_.end()) Settle(*found->second);
  }
}

void RelayLoop::End(Flow& flow, RelayEvent::Culprit culprit, int error) {
  auto event = std::make_unique<RelayEvent>();
  event->kind = RelayEvent::kEnded;
  event->culprit = culprit;
  event->flow = flow.id;
  event->error = error;
  event->bytes_out = flow.out.bytes;
  event->bytes_in = flow.in.bytes;
  for (const Side* side : {&flow.client, &flow.server}) {
    // As long as JavaScript holds the socket too, closing our descriptor does not take it off the list.
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, side->fd.get(), nullptr);
    if (culprit == RelayEvent::kNobody) ResetOnClose(side->fd.get(), false);
  }
  Drop(flow, flow.in);
  Drop(flow, flow.out);
  lingering_.erase(flow.id);
  flows_.erase(flow.id);
  deliver_(std::move(event));
}

void RelayLoop::Post(RelayCommand command) {
  if (command.kind == RelayCommand::kOpen) {
    for (const Fd* fd : {&command.client, &command.server}) {
      ResetOnClose(fd->get(), true);
      // An urgent byte keeps its place among the others (RFC 6093, 3.1), as does all that follows it.
      int on = 1;
      setsockopt(fd->get(), SOL_SOCKET, SO_OOBINLINE, &on, sizeof on);
    }
  }
  bool first;
  {
    std::lock_guard lock(mutex_);
    first = commands_.empty();
    commands_.push_back(std::move(command));
  }
  if (first) Wake();
}

void RelayLoop::Wake() {
  uint64_t one = 1;
  // The counter can only overflow, and then the thread is awake anyway.
  if (write(wake_.get(), &one, sizeof one) < 0) return;
}

void RelayLoop::Stop() {
  stop_ = true;
  Wake();
}
