/* SPDX-License-Identifier: Apache-2.0 */
/* The calls of the x32 ABI: the same numbers with one bit more, which a filter by number may not know. */
#include "../attack.h"
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define X32 0x40000000

int main(void) {
  pid_t child = fork();
  if (child == 0) {
    long result = syscall(X32 | SYS_unshare, 0);
    _exit(result == 0 ? 0 : errno);
  }
  int status;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) held("unshare by x32: killed by %s", strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) == ENOSYS) absent("this kernel has no x32");
  WEXITSTATUS(status) == 0 ? worked("unshare reached the kernel by x32") : held("unshare by x32: %s", error_name(WEXITSTATUS(status)));
}
