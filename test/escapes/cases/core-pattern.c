/* SPDX-License-Identifier: Apache-2.0 */
/* The program that the kernel runs as the host's root when a process dumps its core; opened for writing, nothing is written. */
#include "../attack.h"
#include <fcntl.h>
#include <unistd.h>

int main(void) {
  static const char *paths[] = {"/proc/sys/kernel/core_pattern"};
  const int count = sizeof paths / sizeof *paths;
  int opened = 0, error = 0;
  const char *first = 0;
  for (int i = 0; i < count; i++) {
    int fd = open(paths[i], O_WRONLY);
    if (fd >= 0 && opened++ == 0) first = paths[i];
    if (fd < 0) error = errno;
    if (fd >= 0) close(fd);
  }
  opened > 0 ? worked("core_pattern: %d of %d open for writing, first %s", opened, count, first) : held("core_pattern: none of %d opens for writing, last %s", count, error_name(error));
}
