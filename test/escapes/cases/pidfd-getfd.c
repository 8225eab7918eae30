/* SPDX-License-Identifier: Apache-2.0 */
/* Takes a descriptor out of the process that started this one. */
#include "../attack.h"
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  int pidfd = syscall(SYS_pidfd_open, getppid(), 0);
  if (pidfd < 0) held("pidfd_open: %s", error_name(errno));
  syscall(SYS_pidfd_getfd, pidfd, 1, 0) < 0 ? held("pidfd_getfd: %s", error_name(errno)) : worked("descriptor 1 of process %d was taken", getppid());
}
