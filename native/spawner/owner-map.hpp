// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sys/types.h>
#include <cstdint>
#include <deque>
#include "common/fd.hpp"

namespace ambit {

// Mappings for idmapped mounts: `count` host owners from `uid` and `gid` on to a cell's ids from 0 on, everybody else to
// nobody. A mapping lives as a user namespace without processes; making one costs a process, so the last ones are kept (a
// cell's base is used again).
class OwnerMaps {
 public:
  explicit OwnerMaps(int proc) : proc_(proc) {}
  // A descriptor of the namespace, owned by this object until it makes many more.
  int For(uint32_t uid, uint32_t gid, uint32_t base, uint32_t count = 1);

 private:
  struct Entry { uint32_t uid, gid, base, count; Fd ns; };
  int proc_;
  std::deque<Entry> entries_;
};

// Writes one line to /proc/PID/NAME below `proc`.
void WriteIdMap(int proc, pid_t pid, const char* name, uint32_t inside, uint32_t outside, uint32_t count);

}  // namespace ambit
