/* SPDX-License-Identifier: Apache-2.0 */
/* Settings of the kernel that start programs, load code or stop the machine; opened for writing, nothing is written. */
#include "../attack.h"
#include <fcntl.h>
#include <unistd.h>

int main(void) {
  static const char *paths[] = {"/proc/sys/kernel/modprobe", "/proc/sys/kernel/sysrq", "/proc/sys/kernel/core_uses_pid", "/proc/sys/kernel/panic", "/proc/sys/kernel/randomize_va_space", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/drop_caches", "/proc/sys/fs/protected_symlinks", "/proc/sys/fs/suid_dumpable", "/proc/sys/user/max_user_namespaces", "/proc/sysrq-trigger", "/proc/irq/default_smp_affinity", "/sys/kernel/uevent_helper", "/sys/kernel/mm/ksm/run", "/sys/kernel/profiling", "/sys/power/state"};
  const int count = sizeof paths / sizeof *paths;
  int opened = 0, error = 0;
  const char *first = 0;
  for (int i = 0; i < count; i++) {
    int fd = open(paths[i], O_WRONLY);
    if (fd >= 0 && opened++ == 0) first = paths[i];
    if (fd < 0) error = errno;
    if (fd >= 0) close(fd);
  }
  opened > 0 ? worked("settings: %d of %d open for writing, first %s", opened, count, first) : held("settings: none of %d opens for writing, last %s", count, error_name(error));
}
