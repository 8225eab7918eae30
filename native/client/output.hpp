// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <unistd.h>
#include <cerrno>
#include <string>

namespace ambit {

inline void Say(int fd, const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    ssize_t wrote = write(fd, text.data() + at, text.size() - at);
    if (wrote < 0 && errno != EINTR) return;
    if (wrote > 0) at += static_cast<size_t>(wrote);
  }
}

}  // namespace ambit
