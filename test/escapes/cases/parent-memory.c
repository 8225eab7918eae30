/* SPDX-License-Identifier: Apache-2.0 */
/* Opens the memory of the process that started this one: in a sandbox often the sandbox's own, without its fences. */
#include "../attack.h"
#include <fcntl.h>
#include <unistd.h>

int main(void) {
  static const char *files[] = {"mem", "environ", "maps", "root/etc", "cwd", "fd/0"};
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", getppid(), files[i]);
    if (open(path, i == 0 ? O_RDWR : O_RDONLY) >= 0) worked("%s was opened", path);
    if (i + 1 == sizeof files / sizeof *files) held("%s and five others: %s", path, error_name(errno));
  }
}
