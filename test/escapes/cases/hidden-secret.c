/* SPDX-License-Identifier: Apache-2.0 */
/* Reads a file of the host that others may not read, as root of a cell that sees the host's directories as their owner does. */
#include "../attack.h"

int main(int argc, char **argv) {
  const char *path = argument(argc, argv, 1);
  char text[16] = "";
  int fd = (int)step(open(path, O_RDONLY), path);
  if (read(fd, text, 7) == 7 && strcmp(text, "outside") == 0)
    worked("%s says: %s", path, text);
  held("%s is empty", path);
}
