/* SPDX-License-Identifier: Apache-2.0 */
/* Stops the kernel in the middle of a copy for as long as the job likes: the tool of most races. */
#include "../attack.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  int fd = syscall(SYS_userfaultfd, O_CLOEXEC), error = errno;
  if (fd >= 0) worked("a descriptor for page faults was made");
  int device = open("/dev/userfaultfd", O_RDWR);
  if (device >= 0 && ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC) >= 0) worked("a descriptor for page faults came from the device");
  held("userfaultfd: %s; its device: %s", error_name(error), error_name(errno));
}
