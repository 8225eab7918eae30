// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <map>
#include <string>
#include <vector>
#include "client/options.hpp"
#include "common/fd.hpp"

namespace ambit {

// The caller's signals as a descriptor; from here on none of those that are passed on ends this process.
Fd BlockSignals();

// The request as the daemon's `clientMessage` reads it; `profiles`: seccomp profiles that the contract may name. Throws Failure.
std::string RunRequest(const Options& options, const std::string& contract, const std::map<std::string, std::string>& profiles, char** environment);

// Connects and sends the request with its descriptors. Throws Failure.
Fd Ask(const Options& options, const std::string& request, const std::vector<int>& descriptors);

// Follows the cell to its end, passing signals on, and returns the exit status. A cell that outlives its daemon is asked for at the
// next one; `evidence` is the directory for the bundle, -1 if none is wanted. Throws Failure.
int Follow(const Options& options, Fd daemon, const Fd& signals, int evidence);

}  // namespace ambit
