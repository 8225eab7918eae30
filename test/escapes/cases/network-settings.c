/* SPDX-License-Identifier: Apache-2.0 */
/* Settings of the network: in a namespace of the cell's own its root might change them, and what the fences rest on. */
#include "../attack.h"
#include <fcntl.h>
#include <unistd.h>

int main(void) {
  static const char *paths[] = {"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ping_group_range", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/conf/lo/route_localnet", "/proc/sys/net/ipv6/conf/lo/disable_ipv6"};
  const int count = sizeof paths / sizeof *paths;
  int opened = 0, error = 0;
  const char *first = 0;
  for (int i = 0; i < count; i++) {
    int fd = open(paths[i], O_WRONLY);
    if (fd >= 0 && opened++ == 0) first = paths[i];
    if (fd < 0) error = errno;
    if (fd >= 0) close(fd);
  }
  opened > 0 ? worked("settings of the network: %d of %d open for writing, first %s", opened, count, first) : held("settings of the network: none of %d opens for writing, last %s", count, error_name(error));
}
