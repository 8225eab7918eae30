// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <vector>
#include "common/fd.hpp"

namespace ambit {

struct Sockets {
  uint32_t mask = 0;    // bit N: ListeningSocket N is there
  std::vector<Fd> fds;  // in that order
};

// Brings the only interface up, gives every address a local route, and opens the sockets that are the only way out.
// Without IPv6 on the host the sockets of that family are missing in the mask, and nothing else.
Sockets SetUpNetwork();

}  // namespace ambit
