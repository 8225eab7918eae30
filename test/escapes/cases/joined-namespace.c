/* SPDX-License-Identifier: Apache-2.0 */
/* Joins a namespace of another process by setns, from its file in /proc and by a pidfd. */
#include "../attack.h"
#include <sched.h>

int main(int argc, char **argv) {
  int pid = atoi(argument(argc, argv, 1));
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/ns/uts", pid);
  int by_file = open(path, O_RDONLY), file_error = errno;
  if (by_file >= 0 && setns(by_file, CLONE_NEWUTS) == 0)
    worked("joined by %s", path);
  int by_pid = (int)syscall(SYS_pidfd_open, pid, 0), pid_error = errno;
  if (syscall(SYS_setns, by_pid, CLONE_NEWUTS | CLONE_NEWIPC) == 0)
    worked("joined by a pidfd");
  held("%s: %s; pidfd: %s; setns: %s", path, by_file < 0 ? error_name(file_error) : "open", by_pid < 0 ? error_name(pid_error) : "open", error_name(errno));
}
