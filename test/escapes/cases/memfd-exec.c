/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a program that lies in memory only, where no list of programs can name it. */
#include "../attack.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "again") == 0) worked("a program was run from memory");
  int memory = memfd_create("program", 0), own = open("/proc/self/exe", O_RDONLY);
  if (memory < 0) held("memfd_create: %s", error_name(errno));
  struct stat status;
  if (own < 0 || fstat(own, &status) < 0) held("reading this program: %s", error_name(errno));
  while (sendfile(memory, own, 0, status.st_size) > 0) {}
  char *const words[] = {argv[0], "again", 0}, *const none[] = {0};
  fexecve(memory, words, none);
  held("fexecve: %s", error_name(errno));
}
