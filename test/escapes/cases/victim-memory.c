/* SPDX-License-Identifier: Apache-2.0 */
/* Looks through /proc for a process of another job, known by its name, and takes the secret from its environment or memory. */
#include "../attack.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

static int holds(const char *path, const char *wanted) {
  char text[4096];
  int fd = open(path, O_RDONLY);
  ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text);
  if (fd >= 0) close(fd);
  return size > 0 && memmem(text, size, wanted, strlen(wanted)) != 0;
}

int main(int argc, char **argv) {
  const char *name = argument(argc, argv, 1);
  if (strcmp(name, "--wait") == 0) {
    puts("ready");
    fflush(stdout);
    for (;;) pause();
  }
  DIR *proc = opendir("/proc");
  if (!proc) held("/proc: %s", error_name(errno));
  int seen = 0;
  for (struct dirent *entry; (entry = readdir(proc)) != 0;) {
    char path[300];
    if (atoi(entry->d_name) == 0) continue;
    seen++;
    snprintf(path, sizeof path, "/proc/%.64s/comm", entry->d_name);
    if (!holds(path, name)) continue;
    snprintf(path, sizeof path, "/proc/%.64s/environ", entry->d_name);
    int read_out = holds(path, "STAND_IN_SECRET=");
    snprintf(path, sizeof path, "/proc/%.64s/mem", entry->d_name);
    int memory = open(path, O_RDWR);
    if (read_out || memory >= 0) worked("process %s: its environment %s, its memory %s", entry->d_name, read_out ? "was read" : "was not read", memory >= 0 ? "was opened for writing" : error_name(errno));
    held("process %s is seen, and its memory: %s", entry->d_name, error_name(errno));
  }
  held("none of the %d processes in /proc is the other job's", seen);
}
