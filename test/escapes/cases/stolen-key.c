/* SPDX-License-Identifier: Apache-2.0 */
/* Finds a key that a process of the host keeps in its user's keyring, and reads it. With "plant" it is that process. */
#include "../attack.h"
#include <linux/keyctl.h>

#define NAME "ambit-escapes-stolen"

int main(int argc, char **argv) {
  if (strcmp(argument(argc, argv, 1), "plant") == 0) {
    step(syscall(SYS_add_key, "user", NAME, "outside", 7, KEY_SPEC_USER_KEYRING), "add_key");
    dprintf(1, "ready\n");
    for (;;)
      pause();
  }
  long key = syscall(SYS_keyctl, KEYCTL_SEARCH, KEY_SPEC_USER_KEYRING, "user", NAME, 0);
  if (key < 0 && errno == ENOSYS)
    absent("this kernel has no keyrings");
  step(key, "keyctl");
  char text[16] = "";
  long size = syscall(SYS_keyctl, KEYCTL_READ, key, text, sizeof text - 1);
  int error = errno;
  syscall(SYS_keyctl, KEYCTL_UNLINK, key, KEY_SPEC_USER_KEYRING);
  errno = error;
  step(size, "reading the key");
  worked("the key says: %s", text);
}
