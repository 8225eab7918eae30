/* SPDX-License-Identifier: Apache-2.0 */
/* A user namespace of one's own gives CAP_SYS_ADMIN in it: the way to nf_tables, mounts and most kernel holes of the last ten years. */
#include "../attack.h"
#include <sched.h>
#include <sys/mount.h>

int main(void) {
  step(unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare");
  step(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "mount");
  step(mount("tmpfs", "/mnt", "tmpfs", 0, NULL), "mount tmpfs");
  worked("mounted a file system in a user namespace of its own");
}
