/* SPDX-License-Identifier: Apache-2.0 */
/* The calls of 32-bit programs, from a 64-bit one: other numbers, so that a filter of the usual ones lets another call pass. */
#include "../attack.h"
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* unshare in arch/x86/entry/syscalls/syscall_32.tbl; by the 64-bit table the number is vmsplice's neighbour. */
#define UNSHARE_I386 310

int main(void) {
  pid_t child = fork();
  if (child == 0) {
    long result = -ENOSYS;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(UNSHARE_I386), "b"(0) : "memory", "r8", "r9", "r10", "r11");
    _exit(result == 0 ? 0 : (int)-result);
  }
  int status;
  waitpid(child, &status, 0);
  /* Without 32-bit calls in the kernel the instruction is a general protection fault. */
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) absent("this kernel has no calls of 32-bit programs");
  if (WIFSIGNALED(status)) held("unshare by int 0x80: killed by %s", strsignal(WTERMSIG(status)));
  if (WEXITSTATUS(status) == ENOSYS) absent("this kernel has no calls of 32-bit programs");
  WEXITSTATUS(status) == 0 ? worked("unshare reached the kernel by int 0x80") : held("unshare by int 0x80: %s", error_name(WEXITSTATUS(status)));
}
