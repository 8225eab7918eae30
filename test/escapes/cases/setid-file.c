/* SPDX-License-Identifier: Apache-2.0 */
/* Leaves a set-user-id program behind, for whoever the workspace belongs to. */
#include "../attack.h"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

int main(void) {
  const char *name = "ambit-left-behind";
  int fd = open(name, O_CREAT | O_EXCL | O_WRONLY, 0755);
  if (fd < 0) held("making a file: %s", error_name(errno));
  struct stat status;
  int done = fchmod(fd, 04755), error = errno;
  int kept = fstat(fd, &status) == 0 && (status.st_mode & 04000) != 0;
  unlink(name);
  done == 0 && kept ? worked("a set-user-id program was left") : held("fchmod: %s", error_name(error));
}
