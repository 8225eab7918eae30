/* SPDX-License-Identifier: Apache-2.0 */
/* The old calls that change the tree of mounts: each tried by itself, on a directory of its own. */
#include "../attack.h"
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  char folder[] = "/tmp/ambit-mount-XXXXXX";
  if (!mkdtemp(folder)) held("making a directory: %s", error_name(errno));
  int mounted = mount("none", folder, "tmpfs", 0, 0), mount_error = errno;
  int unmounted = umount2(folder, MNT_DETACH), unmount_error = errno;
  rmdir(folder);
  int rooted = chroot("/"), root_error = errno;
  syscall(SYS_pivot_root, "/", "/");
  if (mounted == 0) worked("a file system was mounted%s", unmounted == 0 ? " and unmounted" : "");
  if (rooted == 0) worked("chroot is open");
  held("mount: %s; umount2: %s; chroot: %s; pivot_root: %s", error_name(mount_error), error_name(unmount_error), error_name(root_error), error_name(errno));
}
