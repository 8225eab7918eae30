/* SPDX-License-Identifier: Apache-2.0 */
/* Types into the terminal that the user reads from once the job is over (TIOCSTI), also with bits above the low 32. */
#include "../attack.h"
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  if (!isatty(0)) absent("the input is no terminal");
  char key = 'x';
  int typed = ioctl(0, TIOCSTI, &key), error = errno;
  int hidden = syscall(SYS_ioctl, 0, 1ul << 32 | TIOCSTI, &key), hidden_error = errno;
  syscall(SYS_ioctl, 0, 0x541cul /* TIOCLINUX */, &key);
  if (typed == 0 || hidden == 0) worked("a key was typed into the user's terminal");
  if (error == EIO) absent("the kernel has TIOCSTI turned off");
  held("TIOCSTI: %s; with a bit above: %s", error_name(error), error_name(hidden_error));
}
