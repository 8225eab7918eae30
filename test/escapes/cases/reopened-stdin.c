/* SPDX-License-Identifier: Apache-2.0 */
/* The caller hands over a file to be read; the job opens it anew by its descriptor, for writing. */
#include "../attack.h"
#include <fcntl.h>
#include <unistd.h>

int main(void) {
  int again = open("/proc/self/fd/0", O_RDWR);
  if (again < 0) held("opening the input again, for writing: %s", error_name(errno));
  write(again, "x", 1) == 1 ? worked("the caller's file was changed through a descriptor that only reads") : held("writing: %s", error_name(errno));
}
