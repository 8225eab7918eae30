// SPDX-License-Identifier: Apache-2.0
#include "call-table.hpp"
#include <bpf/bpf.h>
#include <seccomp.h>
#include <cerrno>
#include <iterator>

namespace {

// What a call's arguments mean, by libseccomp's name for it: the same on every architecture.
struct CallName { const char* name; ambit_call call; };
const CallName kCalls[] = {
    {"open", {AMBIT_CALL_OPEN, -1, 0, 1, -1, -1, {}}},
    {"openat", {AMBIT_CALL_OPEN, 0, 1, 2, -1, -1, {}}},
    {"openat2", {AMBIT_CALL_OPEN2, 0, 1, 2, -1, -1, {}}},
    {"creat", {AMBIT_CALL_CREAT, -1, 0, -1, -1, -1, {}}},
    {"open_by_handle_at", {AMBIT_CALL_HANDLE, 0, -1, 2, -1, -1, {}}},
    {"execve", {AMBIT_CALL_EXEC, -1, 0, -1, -1, -1, {}}},
    {"execveat", {AMBIT_CALL_EXEC, 0, 1, -1, -1, -1, {}}},
    {"unlink", {AMBIT_CALL_ENTRY, -1, 0, -1, -1, -1, {}}},
    {"unlinkat", {AMBIT_CALL_ENTRY, 0, 1, -1, -1, -1, {}}},
    {"mkdir", {AMBIT_CALL_ENTRY, -1, 0, -1, -1, -1, {}}},
    {"mkdirat", {AMBIT_CALL_ENTRY, 0, 1, -1, -1, -1, {}}},
    {"rmdir", {AMBIT_CALL_ENTRY, -1, 0, -1, -1, -1, {}}},
    {"mknod", {AMBIT_CALL_ENTRY, -1, 0, -1, -1, -1, {}}},
    {"mknodat", {AMBIT_CALL_ENTRY, 0, 1, -1, -1, -1, {}}},
    {"symlink", {AMBIT_CALL_ENTRY, -1, 1, -1, -1, -1, {}}},
    {"symlinkat", {AMBIT_CALL_ENTRY, 1, 2, -1, -1, -1, {}}},
    {"link", {AMBIT_CALL_ENTRY, -1, 1, -1, -1, -1, {}}},
    {"linkat", {AMBIT_CALL_ENTRY, 2, 3, -1, -1, -1, {}}},
    {"rename", {AMBIT_CALL_ENTRY, -1, 0, -1, -1, 1, {}}},
    {"renameat", {AMBIT_CALL_ENTRY, 0, 1, -1, 2, 3, {}}},
    {"renameat2", {AMBIT_CALL_ENTRY, 0, 1, -1, 2, 3, {}}},
    {"truncate", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"truncate64", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"chmod", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"fchmodat", {AMBIT_CALL_OBJECT, 0, 1, -1, -1, -1, {}}},
    {"fchmodat2", {AMBIT_CALL_OBJECT, 0, 1, -1, -1, -1, {}}},
    {"chown", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"chown32", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"lchown", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"lchown32", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"fchownat", {AMBIT_CALL_OBJECT, 0, 1, -1, -1, -1, {}}},
    {"setxattr", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"lsetxattr", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"removexattr", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"lremovexattr", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"utime", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"utimes", {AMBIT_CALL_OBJECT, -1, 0, -1, -1, -1, {}}},
    {"futimesat", {AMBIT_CALL_OBJECT, 0, 1, -1, -1, -1, {}}},
    {"utimensat", {AMBIT_CALL_OBJECT, 0, 1, -1, -1, -1, {}}},
    {"fchmod", {AMBIT_CALL_OBJECT, 0, -1, -1, -1, -1, {}}},
    {"fchown", {AMBIT_CALL_OBJECT, 0, -1, -1, -1, -1, {}}},
    {"fchown32", {AMBIT_CALL_OBJECT, 0, -1, -1, -1, -1, {}}},
    {"fsetxattr", {AMBIT_CALL_OBJECT, 0, -1, -1, -1, -1, {}}},
    {"fremovexattr", {AMBIT_CALL_OBJECT, 0, -1, -1, -1, -1, {}}},
    {"setxattrat", {AMBIT_CALL_OBJECT, 0, 1, -1, -1, -1, {}}},
    {"removexattrat", {AMBIT_CALL_OBJECT, 0, 1, -1, -1, -1, {}}},
    {"stat", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"lstat", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"stat64", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"lstat64", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"newfstatat", {AMBIT_CALL_LOOK, 0, 1, -1, -1, -1, {}}},
    {"fstatat64", {AMBIT_CALL_LOOK, 0, 1, -1, -1, -1, {}}},
    {"statx", {AMBIT_CALL_LOOK, 0, 1, -1, -1, -1, {}}},
    {"access", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"faccessat", {AMBIT_CALL_LOOK, 0, 1, -1, -1, -1, {}}},
    {"faccessat2", {AMBIT_CALL_LOOK, 0, 1, -1, -1, -1, {}}},
    {"readlink", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"readlinkat", {AMBIT_CALL_LOOK, 0, 1, -1, -1, -1, {}}},
    {"chdir", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"statfs", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"getxattr", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"lgetxattr", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"listxattr", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"llistxattr", {AMBIT_CALL_LOOK, -1, 0, -1, -1, -1, {}}},
    {"getxattrat", {AMBIT_CALL_LOOK, 0, 1, -1, -1, -1, {}}},
    {"listxattrat", {AMBIT_CALL_LOOK, 0, 1, -1, -1, -1, {}}},
    {"connect", {AMBIT_CALL_SPEAK, 0, 1, 2, -1, -1, {}}},
    {"sendto", {AMBIT_CALL_SPEAK, -1, 4, 5, -1, -1, {}}},
    {"sendmsg", {AMBIT_CALL_MESSAGE, -1, 1, -1, -1, -1, {}}},
    {"sendmmsg", {AMBIT_CALL_MESSAGES, -1, 1, -1, -1, -1, {}}},
    {"bind", {AMBIT_CALL_SOCKET, -1, 1, 2, -1, -1, {}}},
};

// The rows of the syscall sets on this machine; bpf/arch.h counts them the same way.
#if defined(__x86_64__)
constexpr uint32_t kArches[] = {SCMP_ARCH_X86_64, SCMP_ARCH_X86, SCMP_ARCH_X32};
#elif defined(__aarch64__)
constexpr uint32_t kArches[] = {SCMP_ARCH_AARCH64, SCMP_ARCH_ARM};
#endif
constexpr uint32_t kX32Bit = 0x40000000;

}  // namespace

int FillCallTable(bpf_object* files) {
  int map = bpf_object__find_map_fd_by_name(files, "calls");
  if (map < 0) return map;
  for (uint32_t row = 0; row < std::size(kArches); row++) {
    for (const CallName& entry : kCalls) {
      // Negative: this architecture has no such call.
      int nr = seccomp_syscall_resolve_name_arch(kArches[row], entry.name);
      if (nr < 0) continue;
      uint32_t number = static_cast<uint32_t>(nr) & ~kX32Bit;
      if (number >= AMBIT_NUMBERS) continue;
      uint32_t place = row * AMBIT_NUMBERS + number;
      if (bpf_map_update_elem(map, &place, &entry.call, BPF_ANY) != 0) return -errno;
    }
  }
  return 0;
}
