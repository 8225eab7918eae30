// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "common/fd.hpp"

namespace ambit {

struct Skeleton {
  Fd root;             // a tmpfs with /proc and /dev: the root already
  Fd user_namespaces;  // their limit, open for writing; nothing where the kernel has none
};

// What every cell's root has, whatever its plan. It takes longest of all that is built: letting go of the host's mounts
// waits for every processor (synchronize_rcu in namespace_unlock, fs/namespace.c).
Skeleton BuildSkeleton();

// Makes a mount that is part of the namespace its root, and lets go of the one before.
void EnterRoot(int root);

}  // namespace ambit
