/* SPDX-License-Identifier: Apache-2.0 */
/* Fills a directory; worked if nobody stopped it at the size given, in MiB. What it wrote is removed. */
#include "../attack.h"
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1 << 20)

int main(int argc, char **argv) {
  const char *folder = argc > 1 ? argv[1] : ".";
  int wanted = argc > 2 ? atoi(argv[2]) : 256;
  char path[512];
  snprintf(path, sizeof path, "%.400s/ambit-filler", folder);
  struct { int written, error; } *told = mmap(0, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pid_t child = fork();
  if (child == 0) {
    char *block = malloc(MIB);
    memset(block, 1, MIB);
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY, 0600);
    if (fd < 0) told->error = errno;
    while (fd >= 0 && told->written < wanted) {
      if (write(fd, block, MIB) != MIB) {
        told->error = errno ? errno : ENOSPC;
        break;
      }
      told->written++;
    }
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  unlink(path);
  if (WIFSIGNALED(status)) held("%s: killed by %s after %d MiB", folder, strsignal(WTERMSIG(status)), told->written);
  told->error == 0 ? worked("%s: %d MiB, and nobody stopped it", folder, told->written) : held("%s: %s after %d MiB", folder, error_name(told->error), told->written);
}
