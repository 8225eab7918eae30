/* SPDX-License-Identifier: Apache-2.0 */
/* Executes a program whose file carries capabilities, and looks whether they arrive. */
#include "../attack.h"
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static int holds_any(void) {
  char text[4096] = "";
  int fd = open("/proc/self/status", O_RDONLY);
  ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  const char *line = size < 0 ? NULL : strstr(text, "CapEff:\t");
  return line != NULL && strtoull(line + 8, NULL, 16) != 0;
}

int main(int argc, char **argv) {
  if (argc > 2)
    return holds_any() ? WORKED : REFUSED;
  /* Root has them without a file: that is given up first. */
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0, 0);
  step(syscall(SYS_capset, &header, none), "giving up capabilities");
  pid_t child = fork();
  if (child == 0) {
    execl(argument(argc, argv, 1), argv[1], "tell", "it", (char *)0);
    _exit(30);
  }
  int status;
  waitpid(child, &status, 0);
  if (WEXITSTATUS(status) == WORKED)
    worked("the file's capabilities were effective");
  held(WEXITSTATUS(status) == REFUSED ? "the file's capabilities had no effect" : "the program cannot be executed");
}
