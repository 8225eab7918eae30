// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <napi.h>
#include <string>
#include <vector>
#include "common/plan.hpp"

// A Reservation of src/native.ts.
struct Reservation {
  std::string id;
  std::string cgroup;           // v2 folder
  std::vector<std::string> v1;  // v1 folders
  uint32_t base = 0, count = 0;
};

// Throws a TypeError that names the field.
Reservation ReadReservation(const Napi::Value& value);

// Reads a LaunchPlan of src/native.ts. `fds` gets stdin, stdout, stderr and then the descriptors that binds name.
// Throws a TypeError that names the field.
ambit::Plan ReadLaunchPlan(const Napi::Value& value, std::vector<int>* fds);
