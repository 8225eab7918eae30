/* SPDX-License-Identifier: Apache-2.0 */
/* A user namespace inside: root there, with the kernel's less tried parts open. By unshare, clone, clone3 and setns. */
#include "../attack.h"
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *outcome(pid_t pid) {
  if (pid < 0) return error_name(errno);
  waitpid(pid, 0, 0);
  return 0;
}

int main(void) {
  /* In a child: the next calls start from where this process is. */
  pid_t child = fork();
  if (child == 0) _exit(unshare(CLONE_NEWUSER) < 0 ? errno : 0);
  int status;
  waitpid(child, &status, 0);
  const char *unshared = WEXITSTATUS(status) == 0 ? 0 : error_name(WEXITSTATUS(status));

  pid_t plain = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
  if (plain == 0) _exit(0);
  const char *cloned = outcome(plain);

  struct clone_args args = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
  pid_t third = syscall(SYS_clone3, &args, sizeof args);
  if (third == 0) _exit(0);
  const char *cloned3 = outcome(third);

  int own = open("/proc/self/ns/uts", O_RDONLY);
  const char *joined = setns(own, 0) < 0 ? error_name(errno) : 0;
  if (!unshared || !cloned || !cloned3) worked("a user namespace was made by %s%s%s", unshared ? "" : "unshare ", cloned ? "" : "clone ", cloned3 ? "" : "clone3");
  held("unshare: %s; clone: %s; clone3: %s; setns: %s", unshared, cloned, cloned3, joined ? joined : "done");
}
