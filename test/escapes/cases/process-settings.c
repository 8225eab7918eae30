/* SPDX-License-Identifier: Apache-2.0 */
/* Changes what the kernel keeps of the process that started it, through the files that runtimes write (runc's CVE-2025-52881). */
#include "../attack.h"

int main(int argc, char **argv) {
  const char *files[] = {"oom_score_adj", "coredump_filter", "autogroup", "comm"};
  char path[64];
  int opened = 0, error = 0;
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
    snprintf(path, sizeof path, "/proc/%d/%s", atoi(argument(argc, argv, 1)), files[i]);
    int fd = open(path, O_WRONLY);
    if (fd >= 0) {
      opened++;
      close(fd);
    } else {
      error = errno;
    }
  }
  if (opened > 0)
    worked("%d of %zu files could be opened for writing", opened, sizeof files / sizeof *files);
  held("none of them can be opened for writing: %s", error_name(error));
}
