/* SPDX-License-Identifier: Apache-2.0 */
/* Leaves links in its workspace to a directory of the host, and goes through them: by name, by "..", by a magic link. */
#include "../attack.h"

static int reads(const char *path) {
  char text[8] = "";
  int fd = open(path, O_RDONLY);
  return fd >= 0 && read(fd, text, sizeof text - 1) == 7 && strcmp(text, "outside") == 0;
}

int main(int argc, char **argv) {
  const char *path = argument(argc, argv, 1);
  char deep[600];
  const char *ways[] = {"%s", "../../../../../../../..%s", "/proc/self/root/%s", "/proc/self/cwd/../../../../../../..%s", "/proc/1/root/%s", "/proc/self/task/../../1/cwd/%s"};
  for (unsigned i = 0; i < sizeof ways / sizeof *ways; i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(deep, sizeof deep, ways[i], path);
#pragma GCC diagnostic pop
    unlink("way-out");
    step(symlink(deep, "way-out"), "making a link");
    if (reads("way-out"))
      worked("reached %s by a link to %s", path, deep);
  }
  held("none of %zu links leads out", sizeof ways / sizeof *ways);
}
