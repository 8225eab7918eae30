/* SPDX-License-Identifier: Apache-2.0 */
/* Puts a key into the keyring that all processes of the user id share, and looks for it where they would. */
#include "../attack.h"
#include <linux/keyctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  long key = syscall(SYS_add_key, "user", "ambit-escape", "x", 1, KEY_SPEC_USER_KEYRING);
  int added = errno;
  long found = syscall(SYS_request_key, "user", "ambit-escape", 0, KEY_SPEC_USER_KEYRING);
  int asked = errno;
  long ring = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING, 0);
  int looked = errno;
  if (key >= 0) syscall(SYS_keyctl, KEYCTL_UNLINK, key, KEY_SPEC_USER_KEYRING);
  if (key < 0 && added == ENOSYS && looked == ENOSYS) absent("this kernel has no keyrings");
  if (key >= 0 || found >= 0 || ring >= 0) worked("the user's keyring: %s, %s, %s", key >= 0 ? "a key was added" : error_name(added), found >= 0 ? "found" : error_name(asked), ring >= 0 ? "named" : error_name(looked));
  held("add_key: %s; request_key: %s; keyctl: %s", error_name(added), error_name(asked), error_name(looked));
}
