/* SPDX-License-Identifier: Apache-2.0 */
/* Writes lines to its output as fast as they are taken; worked if all of them arrived at the reader, which the runner knows. */
#include "../attack.h"
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv) {
  long wanted = (argc > 1 ? atol(argv[1]) : 64) << 20, written = 0;
  char block[1 << 16];
  memset(block, 'x', sizeof block);
  block[sizeof block - 1] = '\n';
  while (written < wanted) {
    ssize_t size = write(1, block, sizeof block);
    if (size < 0) held("the output took %ld bytes: %s", written, error_name(errno));
    written += size;
  }
  worked("%ld MiB of output, and nobody stopped it", written >> 20);
}
