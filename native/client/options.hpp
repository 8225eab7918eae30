// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

namespace ambit {

struct Options {
  bool help = false;
  bool json = false;
  std::string socket = "/run/ambit/ambit.sock";
  std::string contract;
  std::string evidence;  // empty: none wanted
  std::vector<std::string> command;
};

extern const char kUsage[];

// Throws Failure.
Options ParseOptions(int argc, char** argv);

}  // namespace ambit
