// SPDX-License-Identifier: Apache-2.0
// The command's one form of error, as src/errors.ts has it: what was attempted, why it failed, what to do.
#pragma once
#include <string>

namespace ambit {

struct Failure {
  int exit = 2;
  std::string where;  // "file:line: " or empty
  std::string attempted, why, remedy;
};

constexpr int kExitUsage = 2;
constexpr int kExitCellFailed = 125;

}  // namespace ambit
