/* SPDX-License-Identifier: Apache-2.0 */
/* Memory without end; worked if nobody stopped it at the size given, in MiB. */
#include "../attack.h"
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1 << 20)

int main(int argc, char **argv) {
  int wanted = argc > 1 ? atoi(argv[1]) : 512;
  int *taken = mmap(0, sizeof *taken, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pid_t child = fork();
  if (child == 0) {
    for (; *taken < wanted; ++*taken) {
      char *more = mmap(0, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (more == MAP_FAILED) _exit(1);
      memset(more, 1, MIB);
    }
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) held("killed by %s after %d MiB", strsignal(WTERMSIG(status)), *taken);
  WEXITSTATUS(status) == 0 ? worked("%d MiB, and nobody stopped it", *taken) : held("no more after %d MiB", *taken);
}
