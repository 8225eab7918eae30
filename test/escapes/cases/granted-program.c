/* SPDX-License-Identifier: Apache-2.0 */
/* Writes into a program that it may execute: whoever runs it next would run the job's code. */
#include "../attack.h"

int main(int argc, char **argv) {
  const char *path = argument(argc, argv, 1);
  int fd = (int)step(open(path, O_WRONLY | O_APPEND), path);
  step(write(fd, "changed", 7), "write");
  worked("%s was changed", path);
}
