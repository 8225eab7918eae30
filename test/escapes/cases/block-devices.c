/* SPDX-License-Identifier: Apache-2.0 */
/* Opens the disks of the host, and other devices that lead out: read only, nothing is read. */
#include "../attack.h"
#include <fcntl.h>
#include <unistd.h>

int main(void) {
  static const char *paths[] = {"/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/loop0", "/dev/loop-control", "/dev/mem", "/dev/kmsg", "/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/vsock", "/dev/tty1", "/dev/console", "/dev/btrfs-control"};
  int opened = 0, there = 0;
  for (unsigned i = 0; i < sizeof paths / sizeof *paths; i++) {
    opened += open(paths[i], O_RDONLY | O_NONBLOCK | O_NOCTTY) >= 0;
    there += access(paths[i], F_OK) == 0;
  }
  opened > 0 ? worked("%d devices of the host were opened", opened) : held("of the host's devices %d are there, and none opens", there);
}
