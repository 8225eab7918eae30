/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a program whose file is gone: written to a directory of the job's own, opened, removed, executed by its descriptor. */
#include "../attack.h"
#include <fcntl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "again") == 0) worked("a program without a file was run");
  char path[] = "/tmp/ambit-deleted-program";
  int own = open("/proc/self/exe", O_RDONLY), copy = open(path, O_CREAT | O_EXCL | O_WRONLY, 0700);
  struct stat status;
  if (own < 0 || copy < 0 || fstat(own, &status) < 0) held("copying this program: %s", error_name(errno));
  while (sendfile(copy, own, 0, status.st_size) > 0) {}
  close(copy);
  int program = open(path, O_RDONLY | O_CLOEXEC);
  unlink(path);
  char *const words[] = {argv[0], "again", 0}, *const none[] = {0};
  fexecve(program, words, none);
  held("fexecve: %s", error_name(errno));
}
