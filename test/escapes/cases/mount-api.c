/* SPDX-License-Identifier: Apache-2.0 */
/* The new calls for mounts, which filters of the old ones do not know: each tried by itself. */
#include "../attack.h"
#include <fcntl.h>
#include <linux/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  struct mount_attr attributes = {.attr_set = MOUNT_ATTR_NOEXEC};
  int context = syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
  int configured = syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0);
  int made = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
  int copied = syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), error = errno;
  int changed = syscall(SYS_mount_setattr, copied, "", AT_EMPTY_PATH, &attributes, sizeof attributes);
  /* Onto nothing: a kernel that lets the call in says that the place is missing. */
  int moved = syscall(SYS_move_mount, made, "", AT_FDCWD, "/ambit-no-such-place", MOVE_MOUNT_F_EMPTY_PATH), place = errno;
  syscall(SYS_fspick, AT_FDCWD, "/", FSPICK_CLOEXEC);
  if (configured == 0 || copied >= 0 || changed == 0) worked("%s%s%s", made >= 0 ? "a file system was made; " : "", copied >= 0 ? "the tree was copied; " : "", changed == 0 ? "its attributes were changed" : "");
  (void)moved;
  held("open_tree: %s; move_mount: %s; fsopen, fsconfig, fsmount, mount_setattr and fspick alike", error_name(error), error_name(place));
}
