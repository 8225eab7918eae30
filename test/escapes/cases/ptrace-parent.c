/* SPDX-License-Identifier: Apache-2.0 */
/* Attaches to the process that started this one. The tie ends with this program, and nothing was stopped. */
#include "../attack.h"
#include <sys/ptrace.h>
#include <unistd.h>

int main(void) {
  pid_t parent = getppid();
  ptrace(PTRACE_SEIZE, parent, 0, 0) < 0 ? held("ptrace of process %d: %s", parent, error_name(errno)) : worked("process %d was attached to", parent);
}
