/* SPDX-License-Identifier: Apache-2.0 */
/* Sees and sends frames as they are on the wire. */
#include "../attack.h"
#include <sys/socket.h>

int main(void) {
  int fd = socket(AF_PACKET, SOCK_RAW, 0);
  if (fd >= 0) worked("a packet socket was opened");
  held("a packet socket: %s", error_name(errno));
}
