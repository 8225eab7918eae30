// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/plan.hpp"

namespace ambit {

// Puts the plan's rules on the calling process, for good. It must have no_new_privs.
void RestrictByLandlock(const Plan& plan);

}  // namespace ambit
