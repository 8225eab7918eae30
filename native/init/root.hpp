// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include "common/fd.hpp"
#include "common/plan.hpp"
#include "init/skeleton.hpp"

namespace ambit {

// Makes the plan's mounts in the skeleton, or in the image that the plan has for a root. `trees`: the detached mounts by
// their place in the plan.
void BuildRoot(const Plan& plan, std::map<uint16_t, Fd> trees, Skeleton skeleton);

}  // namespace ambit
