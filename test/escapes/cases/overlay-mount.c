/* SPDX-License-Identifier: Apache-2.0 */
/* Mounts an overlay over directories of its own in a user namespace, as file systems in set-user-id tools were led astray (CVE-2021-26910, CVE-2023-0386). */
#include "../attack.h"
#include <sched.h>
#include <sys/mount.h>

int main(void) {
  const char *options = "lowerdir=lower,upperdir=upper,workdir=work,userxattr";
  const char *folders[] = {"lower", "upper", "work", "merged"};
  for (unsigned i = 0; i < sizeof folders / sizeof *folders; i++)
    mkdir(folders[i], 0755);
  step(unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare");
  /* Root stays root in it: an overlay's work directory must belong to somebody. */
  const char *settings[][2] = {{"/proc/self/setgroups", "deny"}, {"/proc/self/uid_map", "0 0 1"}, {"/proc/self/gid_map", "0 0 1"}};
  for (unsigned i = 0; i < sizeof settings / sizeof *settings; i++) {
    const char *path = settings[i][0], *text = settings[i][1];
    int fd = (int)step(open(path, O_WRONLY), path);
    step(write(fd, text, strlen(text)), path);
  }
  step(mount("overlay", "merged", "overlay", 0, options), "mount");
  worked("mounted an overlay");
}
