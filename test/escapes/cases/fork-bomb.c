/* SPDX-License-Identifier: Apache-2.0 */
/* Processes without end; worked if nobody stopped it at the number given. With 0 it never gives up, and neither do its children. */
#include "../attack.h"
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv) {
  int wanted = argc > 1 ? atoi(argv[1]) : 2000, made = 0, error = 0;
  if (argc > 1 && wanted == 0) {
    signal(SIGTERM, SIG_IGN);
    for (;;) fork();
  }
  pid_t *children = calloc(wanted, sizeof *children);
  while (made < wanted) {
    pid_t child = fork();
    if (child == 0) for (;;) pause();
    if (child < 0) {
      error = errno;
      break;
    }
    children[made++] = child;
  }
  for (int i = 0; i < made; i++) kill(children[i], SIGKILL);
  while (wait(0) > 0) {}
  error == 0 ? worked("%d processes, and nobody stopped it", made) : held("no more after %d processes: %s", made, error_name(error));
}
