/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For test/native/system.test.ts: puts a seccomp filter on itself, makes one system call and says what came back.
 *   seccomp-probe FILTER|none call|int80|x32 NUMBER [ARGUMENT]...
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc < 4)
    return 2;
  static struct sock_filter code[BPF_MAXINSNS];
  long args[6] = {0}, result;
  for (int i = 4; i < argc && i < 10; i++)
    args[i - 4] = strtoul(argv[i], 0, 0);
  long number = strtol(argv[3], 0, 0);
  if (strcmp(argv[1], "none") != 0) {
    int fd = open(argv[1], O_RDONLY);
    ssize_t size = fd < 0 ? -1 : read(fd, code, sizeof code);
    if (size <= 0 || size % sizeof code[0] != 0)
      return 3;
    struct sock_fprog program = {.len = size / sizeof code[0], .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
      return 4;
  }
  if (strcmp(argv[2], "int80") == 0) {
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(args[0]), "c"(args[1]), "d"(args[2]) : "memory", "r8", "r9", "r10", "r11");
  } else {
    if (strcmp(argv[2], "x32") == 0)
      number |= 0x40000000;
    result = syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]);
    if (result < 0)
      result = -errno;
  }
  char line[64];
  int length = snprintf(line, sizeof line, "%ld\n", result < 0 ? result : 0);
  syscall(SYS_write, 1, line, length);
  syscall(SYS_exit_group, 0);
}
