// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>
#include "common/fd.hpp"
#include "common/plan.hpp"
#include "spawner/owner-map.hpp"

namespace ambit {

struct Tree {
  uint16_t mount;  // which one of the plan
  Fd fd;
};

// A detached, attributed copy of each bind's source. `given`: the descriptors that came with the plan.
std::vector<Tree> OpenTrees(const Plan& plan, const std::vector<Fd>& given, OwnerMaps& owners, uint32_t* unheld);

}  // namespace ambit
