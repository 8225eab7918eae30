/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a device node of the kernel's memory, or of the disk, in a directory of its own and opens it. */
#include "../attack.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

int main(void) {
  static const struct { mode_t type; int major, minor; } nodes[] = {{S_IFCHR, 1, 3}, {S_IFBLK, 7, 0}};
  int error = 0;
  for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++) {
    const char *name = "/tmp/ambit-node";
    if (mknod(name, nodes[i].type | 0600, makedev(nodes[i].major, nodes[i].minor)) < 0) {
      error = errno;
      continue;
    }
    int fd = open(name, O_RDONLY);
    error = errno;
    unlink(name);
    if (fd >= 0) worked("a node was made and opened");
  }
  held("making and opening a node: %s", error_name(error));
}
