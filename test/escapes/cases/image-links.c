/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs from an image whose /dev, /proc, /tmp and more are links to a directory of the host, and looks whether the runtime mounted its own
 * through them (runc's CVE-2019-19921, CVE-2023-27561, CVE-2025-31133, CVE-2026-41579).
 */
#include "../attack.h"
#include <linux/magic.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

int main(void) {
  struct statfs proc;
  struct stat null;
  if (statfs("/proc", &proc) < 0 || proc.f_type != PROC_SUPER_MAGIC)
    worked("/proc is not the kernel's");
  if (lstat("/dev/null", &null) < 0 || !S_ISCHR(null.st_mode) || null.st_rdev != makedev(1, 3))
    worked("/dev/null is not the device");
  const char *places[] = {"/dev/shm/mark", "/tmp/mark", "/proc/mark", "/run/mark", "/etc/mark", "/sys/mark", "/workspace/mark"};
  int made = 0;
  for (unsigned i = 0; i < sizeof places / sizeof *places; i++) {
    int fd = open(places[i], O_WRONLY | O_CREAT, 0600);
    if (fd >= 0) {
      made++;
      unlink(places[i]);
    }
  }
  held("/proc and /dev are the cell's own, and files could be made in %d places of the cell", made);
}
