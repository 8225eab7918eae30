// SPDX-License-Identifier: Apache-2.0
// One packet with descriptors on a SOCK_SEQPACKET socket, sent and received whole or not at all.
#pragma once
#include <sys/socket.h>
#include <sys/uio.h>
#include <cerrno>
#include <cstring>
#include <vector>
#include "common/fd.hpp"
#include "common/messages.hpp"

namespace ambit {

// Returns 0 or -1 with errno. `fds` stay the caller's.
inline int SendPacket(int socket, const void* data, size_t size, const std::vector<int>& fds = {}, int flags = 0) {
  if (fds.size() > kMaxDescriptors) { errno = E2BIG; return -1; }
  struct iovec part = {const_cast<void*>(data), size};
  struct msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  std::vector<char> control(fds.empty() ? 0 : CMSG_SPACE(fds.size() * sizeof(int)));
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    struct cmsghdr* rights = CMSG_FIRSTHDR(&header);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    memcpy(CMSG_DATA(rights), fds.data(), fds.size() * sizeof(int));
  }
  for (;;) {
    ssize_t sent = sendmsg(socket, &header, MSG_NOSIGNAL | flags);
    if (sent == static_cast<ssize_t>(size)) return 0;
    if (sent >= 0) { errno = EIO; return -1; }
    if (errno != EINTR) return -1;
  }
}

// Returns 1, 0 at the end of the stream, or -1 with errno; EPROTO for a packet of another size or with its descriptors cut off.
inline int ReceivePacket(int socket, void* data, size_t size, std::vector<Fd>* fds, int flags = 0) {
  struct iovec part = {data, size};
  alignas(struct cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  struct msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  ssize_t got;
  // A peer that ended without reading all that was sent to it leaves this error in front of its own last words (unix_release_sock, net/unix/af_unix.c).
  do got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC | flags);
  while (got < 0 && (errno == EINTR || errno == ECONNRESET));
  if (got < 0) return -1;
  for (struct cmsghdr* item = CMSG_FIRSTHDR(&header); item != nullptr; item = CMSG_NXTHDR(&header, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(item) + i * sizeof fd, sizeof fd);
      fds->emplace_back(fd);
    }
  }
  if (got == 0) return 0;
  if (got != static_cast<ssize_t>(size) || (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) { errno = EPROTO; return -1; }
  return 1;
}

}  // namespace ambit
