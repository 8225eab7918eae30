/* SPDX-License-Identifier: Apache-2.0 */
/* Reads the memory of the process that started this one without attaching to it. */
#include "../attack.h"
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

int main(void) {
  char path[64], line[256] = "", first[8];
  snprintf(path, sizeof path, "/proc/%d/maps", getppid());
  FILE *maps = fopen(path, "r");
  if (maps && !fgets(line, sizeof line, maps)) line[0] = 0;
  struct iovec local = {first, sizeof first}, remote = {(void *)strtoul(line[0] ? line : "400000", 0, 16), sizeof first};
  process_vm_readv(getppid(), &local, 1, &remote, 1, 0) < 0 ? held("process_vm_readv: %s", error_name(errno)) : worked("memory at %p of process %d was read", remote.iov_base, getppid());
}
