/* SPDX-License-Identifier: Apache-2.0 */
/* Makes IP packets of its own. */
#include "../attack.h"
#include <sys/socket.h>

int main(void) {
  int fd = socket(AF_INET, SOCK_RAW, 1);
  if (fd >= 0) worked("a raw socket was opened");
  held("a raw socket: %s", error_name(errno));
}
