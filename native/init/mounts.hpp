// SPDX-License-Identifier: Apache-2.0
// How mounts are made and put into a cell's root. `target` is absolute, and named in failures.
#pragma once
#include <cstdint>
#include <string>
#include "common/fd.hpp"

namespace ambit {

constexpr int kDetach = 2;  // MNT_DETACH of sys/mount.h, which clashes with linux/mount.h

// The folder that holds `target`, made where it is missing, and the last part of its name. No link is followed: a part
// that is one is no directory. All of it is ours; the plan was refused if it lies in a tree that a job can write.
Fd OpenParent(int root, const std::string& target, std::string* name);

// Moves a mount to its place, which is made if it is missing.
void Attach(int root, int mount, const std::string& target);

// Detached mounts; `attributes` and `more` are MOUNT_ATTR_ flags.
Fd MakeMount(int context, unsigned attributes, const std::string& target);
Fd MakeTmpfs(uint64_t size, uint32_t mode, const std::string& target, unsigned more = 0);

void SetReadOnly(int mount, const std::string& target);

}  // namespace ambit
