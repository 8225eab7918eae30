// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <napi.h>
#include <vector>
#include "common/plan.hpp"

// Reads a LaunchPlan of src/native.ts. `fds` gets stdin, stdout, stderr and then the descriptors that binds name.
// Throws a TypeError that names the field.
ambit::Plan ReadLaunchPlan(const Napi::Value& value, std::vector<int>* fds);
