/* SPDX-License-Identifier: Apache-2.0 */
/* Executes a set-user-id program of root's: a copy of this one, which tells who it runs as. */
#include "../attack.h"
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc > 2) return geteuid() == (uid_t)atoi(argv[2]) ? 10 : 0;
  /* Root gains nothing by it: where this may be somebody else, it first becomes that. */
  if (geteuid() == 0) (void)!setresuid(65534, 65534, 65534);
  char before[16];
  snprintf(before, sizeof before, "%d", geteuid());
  pid_t child = fork();
  if (child == 0) {
    execl(argv[1], argv[1], "tell", before, (char *)0);
    _exit(30);
  }
  int status;
  waitpid(child, &status, 0);
  if (WEXITSTATUS(status) == 30) held("the program cannot be executed");
  WEXITSTATUS(status) == 0 ? worked("a program of root's ran as root for user %s", before) : held("the bit had no effect: user %s stayed so", before);
}
