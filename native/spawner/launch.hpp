// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sys/types.h>
#include <vector>
#include "common/fd.hpp"
#include "common/plan.hpp"

namespace ambit {

// What cell-init is executed from: a copy of the program that nobody can change any more, not even through /proc/PID/exe.
Fd SealedCopy(const char* path);

struct Launch {
  int image;      // of cell-init
  int control;    // init's end of its socket
  int cgroup;     // v2 folder
  uid_t base;     // host id of the cell's id 0
  std::vector<int> tasks;  // `tasks` files of the v1 folders, open for writing
};

// Starts process 1 of a cell in namespaces of its own. It waits for kStart on its socket, which must not be sent before
// the ids are mapped, then executes cell-init with the socket as descriptor 3, and the spawner's stdin for all of stdio.
pid_t StartInit(const Launch& launch, Fd* pidfd);

// Whether the kernel ends this process together with the daemon that started it. Cells that are held need it to live on.
void DieWithDaemon(bool die);
// Says it to the kernel again: a change of ids makes it forget.
void DieAsBefore();

// Throws unless the descriptor is of a cgroup hierarchy of that version.
void MustBeCgroup(int fd, int version);

}  // namespace ambit
