// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include "common/fd.hpp"
#include "common/plan.hpp"

namespace ambit {

// Makes the plan's mounts in an empty tmpfs and that the cell's root. `trees`: the detached mounts by their place in the plan.
void BuildRoot(const Plan& plan, std::map<uint16_t, Fd> trees);

}  // namespace ambit
