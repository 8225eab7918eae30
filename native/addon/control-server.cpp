// SPDX-License-Identifier: Apache-2.0
#include "control-server.hpp"
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <cerrno>
#include <cstring>
#include "common/unix-address.hpp"

using ambit::Fd;

namespace {

constexpr size_t kMaxConnections = 512;
// Of one user who is not root, so that root always finds room.
constexpr size_t kMaxPerUser = 128;
constexpr int kMaxUnhandled = 8;
constexpr size_t kMaxQueued = 64;
constexpr size_t kMaxQueuedBytes = 1024 * 1024;
constexpr int kReadsPerTurn = 4;
constexpr uint64_t kListenerKey = 0;
constexpr uint64_t kWakeKey = UINT64_MAX;

int Listening(const std::string& path) {
  ambit::UnixAddress address;
  if (int error = address.Set(path)) return error;
  Fd probe(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return errno;
  if (connect(probe.get(), address.get(), address.size()) == 0) return EADDRINUSE;
  // EPROTOTYPE: a server of another type; EAGAIN: one whose backlog is full. Only ECONNREFUSED says that nobody is there.
  return errno == ECONNREFUSED ? 0 : errno == ENOENT ? ENOENT : EADDRINUSE;
}

}  // namespace

int ControlServer::Open(const std::string& path, uint32_t mode, uint32_t gid, const char** step) {
  auto failed = [&](const char* what) { *step = what; return errno; };
  buffer_.resize(ambit::kMaxMessage);

  size_t slash = path.rfind('/');
  std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  name_ = slash == std::string::npos ? path : path.substr(slash + 1);
  folder_ = Fd(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder_) return failed("open the control socket's folder");
  // Two daemons that start at once must not both find the other's socket stale. Whoever can read the folder can hold this lock,
  // so it is waited for a second and no longer.
  for (int i = 0; i < 100 && flock(folder_.get(), LOCK_EX | LOCK_NB) != 0; i++) usleep(10'000);

  struct stat status;
  if (fstatat(folder_.get(), name_.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0) {
    *step = "replace what is at the control socket's path";
    if (!S_ISSOCK(status.st_mode)) return EEXIST;
    int answer = Listening(path);
    if (answer != 0 && answer != ENOENT) return answer;
    if (unlinkat(folder_.get(), name_.c_str(), 0) != 0 && errno != ENOENT) return errno;
  }

  ambit::UnixAddress address;
  *step = "bind the control socket";
  if (int error = address.Set(path)) return error;
  listener_ = Fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener_) return failed("socket");
  // bind gives the file the mode of the socket's own inode less the umask (af_unix.c, unix_bind_bsd), which is process-wide and
  // not ours to change: with mode 0 nobody gets in before owner and mode are right.
  if (fchmod(listener_.get(), 0) != 0) return failed("fchmod");
  if (bind(listener_.get(), address.get(), address.size()) != 0) return failed("bind the control socket");
  Fd made(openat(folder_.get(), name_.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  if (!made || fstat(made.get(), &status) != 0) return failed("open the control socket");
  inode_ = status.st_ino;
  std::string self = "/proc/self/fd/" + std::to_string(made.get());
  auto undo = [&](const char* what) { int error = failed(what); Unlink(); return error; };
  if (fchownat(made.get(), "", static_cast<uid_t>(-1), gid, AT_EMPTY_PATH) != 0) return undo("fchown the control socket");
  if (chmod(self.c_str(), mode) != 0) return undo("chmod the control socket");
  if (listen(listener_.get(), 128) != 0) return undo("listen");
  flock(folder_.get(), LOCK_UN);

  epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
  wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  spare_ = Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!epoll_ || !wake_ || !spare_) return undo("epoll_create1");
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kListenerKey}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.get(), &event) != 0) return undo("epoll_ctl");
  event.data.u64 = kWakeKey;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) return undo("epoll_ctl");
  return 0;
}

void ControlServer::Unlink() {
  struct stat status;
  if (fstatat(folder_.get(), name_.c_str(), &status, AT_SYMLINK_NOFOLLOW) != 0) return;
  if (S_ISSOCK(status.st_mode) && status.st_ino == inode_) unlinkat(folder_.get(), name_.c_str(), 0);
}

void ControlServer::Run(const Deliver& deliver) {
  deliver_ = deliver;
  epoll_event events[64];
  while (!stop_) {
    int count = epoll_wait(epoll_.get(), events, 64, -1);
    if (count < 0 && errno != EINTR) return;
    for (int i = 0; i < count; i++) {
      uint64_t key = events[i].data.u64;
      if (key == kListenerKey) {
        Accept();
      } else if (key == kWakeKey) {
        uint64_t ignored;
        if (read(wake_.get(), &ignored, sizeof ignored) < 0) continue;
      } else {
        std::lock_guard lock(mutex_);
        auto found = connections_.find(static_cast<uint32_t>(key));
        if (found == connections_.end()) continue;
        Connection& connection = found->second;
        if (events[i].events & EPOLLOUT) Flush(connection);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) Read(connection, events[i].events & (EPOLLHUP | EPOLLERR));
        touched_.push_back(connection.id);
      }
    }
    Settle();
  }
  std::lock_guard lock(mutex_);
  connections_.clear();
}

// Closes what has ended and asks the kernel for what each changed connection now waits for.
void ControlServer::Settle() {
  std::lock_guard lock(mutex_);
  for (uint32_t id : std::exchange(touched_, {})) {
    auto found = connections_.find(id);
    if (found == connections_.end()) continue;
    if (!found->second.ended) { Watch(found->second); continue; }
    Flush(found->second);
    ucred peer = found->second.peer;
    connections_.erase(found);
    deliver_(std::make_unique<ControlEvent>(ControlEvent{ControlEvent::kClosed, id, peer, {}, {}}));
  }
}

void ControlServer::Watch(Connection& connection) {
  uint32_t wanted = (connection.unhandled < kMaxUnhandled ? static_cast<uint32_t>(EPOLLIN) : 0) |
                    (connection.out.empty() ? 0 : static_cast<uint32_t>(EPOLLOUT));
  if (wanted == connection.interest) return;
  epoll_event event{.events = wanted, .data = {.u64 = connection.id}};
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.fd.get(), &event);
  connection.interest = wanted;
}

size_t ControlServer::CountOf(uint32_t uid) const {
  size_t count = 0;
  for (const auto& [id, connection] : connections_) count += connection.peer.uid == uid;
  return count;
}

void ControlServer::Accept() {
  for (int i = 0; i < 16; i++) {
    Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd && (errno == EMFILE || errno == ENFILE)) {
      // Without a free descriptor the waiting client would wake this thread for ever: turn it away with the spare one.
      spare_.Reset();
      Fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)).Reset();
      spare_ = Fd(open("/dev/null", O_RDONLY | O_CLOEXEC));
      return;
    }
    if (!fd) return;
    Connection connection;
    socklen_t size = sizeof connection.peer;
    if (getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &connection.peer, &size) != 0) continue;
    setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUF, &ambit::kSendBuffer, sizeof ambit::kSendBuffer);
    std::lock_guard lock(mutex_);
    if (connections_.size() >= kMaxConnections) continue;
    if (connection.peer.uid != 0 && CountOf(connection.peer.uid) >= kMaxPerUser) continue;
    while (next_ == 0 || connections_.count(next_) != 0) next_++;
    connection.id = next_++;
    connection.interest = EPOLLIN;
    epoll_event event{.events = EPOLLIN, .data = {.u64 = connection.id}};
    if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd.get(), &event) != 0) continue;
    connection.fd = std::move(fd);
    connections_.emplace(connection.id, std::move(connection));
  }
}

void ControlServer::Read(Connection& connection, bool hung_up) {
  // Of a peer that is gone, what it left is read to the end, whatever waits: it is no more than the kernel's short queue, and
  // EPOLLHUP cannot be masked.
  for (int i = 0; hung_up || (i < kReadsPerTurn && connection.unhandled < kMaxUnhandled); i++) {
    if (connection.ended) return;
    iovec vector{buffer_.data(), buffer_.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * ambit::kMaxPassed)];
    msghdr header{.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t size = recvmsg(connection.fd.get(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      if (hung_up) connection.ended = true;
      return;
    }
    std::vector<Fd> fds;
    for (cmsghdr* part = size < 0 ? nullptr : CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
      if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
      size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t at = 0; at < count; at++) {
        int fd;
        memcpy(&fd, CMSG_DATA(part) + at * sizeof fd, sizeof fd);
        fds.emplace_back(fd);
      }
    }
    // An empty message and the end look alike; no message of ours is empty. Truncated: too large, or too many descriptors.
    if (size <= 0 || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
      connection.ended = true;
      return;
    }
    connection.unhandled++;
    deliver_(std::make_unique<ControlEvent>(ControlEvent{ControlEvent::kMessage, connection.id, connection.peer,
                                                         std::vector<uint8_t>(buffer_.begin(), buffer_.begin() + size), std::move(fds)}));
  }
}

void ControlServer::Flush(Connection& connection) {
  while (!connection.out.empty()) {
    const auto& message = connection.out.front();
    ssize_t sent = send(connection.fd.get(), message.data(), message.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) {
      if (errno != EAGAIN && errno != EWOULDBLOCK) connection.ended = true;
      return;
    }
    connection.out_bytes -= message.size();
    connection.out.pop_front();
  }
}

void ControlServer::Send(uint32_t id, const uint8_t* bytes, size_t size) {
  std::lock_guard lock(mutex_);
  auto found = connections_.find(id);
  if (found == connections_.end() || found->second.ended) return;
  Connection& connection = found->second;
  // A client that does not read what it asked for is let go, rather than remembered without end.
  if (connection.out.size() >= kMaxQueued || connection.out_bytes + size > kMaxQueuedBytes) {
    connection.ended = true;
  } else {
    connection.out.emplace_back(bytes, bytes + size);
    connection.out_bytes += size;
    if (connection.out.size() == 1) Flush(connection);
  }
  if (connection.out.empty() && !connection.ended) return;
  touched_.push_back(id);
  Wake();
}

void ControlServer::Disconnect(uint32_t id) {
  std::lock_guard lock(mutex_);
  auto found = connections_.find(id);
  if (found == connections_.end()) return;
  found->second.ended = true;
  touched_.push_back(id);
  Wake();
}

void ControlServer::Handled(uint32_t id) {
  std::lock_guard lock(mutex_);
  auto found = connections_.find(id);
  if (found == connections_.end()) return;
  if (found->second.unhandled-- < kMaxUnhandled) return;
  touched_.push_back(id);
  Wake();
}

void ControlServer::Wake() {
  uint64_t one = 1;
  // The counter can only overflow, and then the thread is awake anyway.
  if (write(wake_.get(), &one, sizeof one) < 0) return;
}

void ControlServer::Stop() {
  stop_ = true;
  Wake();
}
