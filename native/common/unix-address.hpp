// SPDX-License-Identifier: Apache-2.0
// The address of a Unix socket by path. sockaddr_un holds 107 bytes (unix(7)); a longer path is reached through its folder's
// descriptor.
#pragma once
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include "fd.hpp"

namespace ambit {

// Largest message of the control socket, and descriptors that may come with one.
constexpr size_t kMaxMessage = 256 * 1024;
constexpr int kMaxPassed = 8;
// SOCK_SEQPACKET refuses a message above SO_SNDBUF - 32 (net/unix/af_unix.c, unix_dgram_sendmsg). The kernel doubles what is
// asked, after capping it at net.core.wmem_max, which is 208 KiB by default: even then 416 KiB are enough.
constexpr int kSendBuffer = 512 * 1024;

class UnixAddress {
 public:
  // Returns 0 or an errno. The address is good while this object lives.
  int Set(const std::string& path) {
    if (path.empty() || path.find('\0') != std::string::npos) return EINVAL;
    std::string name = path;
    if (path.size() >= sizeof(address_.sun_path)) {
      size_t slash = path.rfind('/');
      std::string folder = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
      folder_ = Fd(open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
      if (!folder_) return errno;
      name = "/proc/self/fd/" + std::to_string(folder_.get()) + "/" + path.substr(slash == std::string::npos ? 0 : slash + 1);
      if (name.size() >= sizeof(address_.sun_path)) return ENAMETOOLONG;
    }
    address_.sun_family = AF_UNIX;
    memcpy(address_.sun_path, name.c_str(), name.size() + 1);
    size_ = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size() + 1);
    return 0;
  }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address_); }
  socklen_t size() const { return size_; }

 private:
  sockaddr_un address_{};
  socklen_t size_ = 0;
  Fd folder_;
};

}  // namespace ambit
