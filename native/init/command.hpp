// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sys/types.h>
#include "common/fd.hpp"
#include "common/plan.hpp"

namespace ambit {

// What the child could not do before its exec, as it comes through `trouble`.
struct Trouble {
  int error;
  char step[224];
};

// Forks the command. `trouble` becomes readable: at its end once the command executes, with a Trouble before if it never will.
pid_t StartCommand(const Plan& plan, Fd* trouble);

}  // namespace ambit
