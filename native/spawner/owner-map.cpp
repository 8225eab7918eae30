// SPDX-License-Identifier: Apache-2.0
#include "spawner/owner-map.hpp"
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstdio>
#include <string>
#include "common/failure.hpp"
#include "common/mount-api.hpp"

namespace ambit {

constexpr size_t kKeptMaps = 64;

static Fd OpenProc(int proc, pid_t pid, const char* name, int flags) {
  char path[64];
  snprintf(path, sizeof path, "%d/%s", pid, name);
  return Fd(openat(proc, path, flags | O_CLOEXEC));
}

void WriteIdMap(int proc, pid_t pid, const char* name, uint32_t inside, uint32_t outside, uint32_t count) {
  Fd file = OpenProc(proc, pid, name, O_WRONLY);
  Must(file.get(), "open", name);
  char line[64];
  int size = snprintf(line, sizeof line, "%u %u %u\n", inside, outside, count);
  // The kernel takes a map in one write or not at all (user_namespaces(7)).
  Must(static_cast<int>(write(file.get(), line, size)), "write", name);
}

int OwnerMaps::For(uint32_t uid, uint32_t gid, uint32_t base, uint32_t count) {
  for (auto& entry : entries_) if (entry.uid == uid && entry.gid == gid && entry.base == base && entry.count == count) return entry.ns.get();
  struct clone_args args = {};
  args.flags = CLONE_NEWUSER;
  args.exit_signal = SIGCHLD;
  pid_t pid = syscall(SYS_clone3, &args, sizeof args);
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) pause();
  }
  Must(pid, "make a user namespace for the owner's files");
  struct Child {
    pid_t pid;
    ~Child() { kill(pid, SIGKILL); while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {} }
  } child{pid};
  // In the map of a mount the first number is the owner on disk, the second who that is in the mount (mount_setattr(2)).
  WriteIdMap(proc_, pid, "uid_map", uid, base, count);
  WriteIdMap(proc_, pid, "gid_map", gid, base, count);
  Fd ns = OpenProc(proc_, pid, "ns/user", O_RDONLY);
  Must(ns.get(), "open the user namespace for the owner's files");
  if (entries_.size() >= kKeptMaps) entries_.pop_front();
  entries_.push_back({uid, gid, base, count, std::move(ns)});
  return entries_.back().ns.get();
}

}  // namespace ambit
