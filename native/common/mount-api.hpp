// SPDX-License-Identifier: Apache-2.0
// The mount calls of Linux 5.2 to 5.12 (open_tree, move_mount, fsopen, mount_setattr), which C libraries before glibc 2.36
// do not name; sys/mount.h of those that do clashes with linux/mount.h.
#pragma once
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cstdint>

namespace ambit {

inline int OpenTree(int dirfd, const char* path, unsigned flags) { return syscall(SYS_open_tree, dirfd, path, flags); }
// Onto what `to` stands for: no path is walked.
inline int MoveMount(int from, int to) { return syscall(SYS_move_mount, from, "", to, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH); }
inline int SetMountAttributes(int fd, const char* path, unsigned flags, struct mount_attr* attr) { return syscall(SYS_mount_setattr, fd, path, flags, attr, sizeof *attr); }
inline int FsOpen(const char* type) { return syscall(SYS_fsopen, type, FSOPEN_CLOEXEC); }
inline int FsSet(int fd, const char* key, const char* value) { return syscall(SYS_fsconfig, fd, FSCONFIG_SET_STRING, key, value, 0); }
inline int FsFlag(int fd, const char* key) { return syscall(SYS_fsconfig, fd, FSCONFIG_SET_FLAG, key, nullptr, 0); }
inline int FsCreate(int fd) { return syscall(SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0); }
inline int FsMount(int fd, unsigned attributes) { return syscall(SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes); }
inline int OpenAt2(int dirfd, const char* path, uint64_t flags, uint64_t resolve) {
  struct open_how how = {.flags = flags, .mode = 0, .resolve = resolve};
  return syscall(SYS_openat2, dirfd, path, &how, sizeof how);
}

}  // namespace ambit
