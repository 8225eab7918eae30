/* SPDX-License-Identifier: Apache-2.0 */
/* Exchanges two names for as long as it lives: whoever looks at one and then opens it meets the other half of the time. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc != 3 || renameat2(AT_FDCWD, argv[1], AT_FDCWD, argv[2], RENAME_EXCHANGE) < 0) {
    perror("exchange");
    return 1;
  }
  write(1, "ready\n", 6);
  for (;;) {
    renameat2(AT_FDCWD, argv[1], AT_FDCWD, argv[2], RENAME_EXCHANGE);
    /* Long enough that each state is met, short enough that it changes while a cell is built. */
    usleep(200);
  }
}
