/* SPDX-License-Identifier: Apache-2.0 */
/* Speaks to the machine that runs this one: vsock knows no network namespaces. */
#include "../attack.h"
#include <sys/socket.h>

int main(int argc, char **argv) {
  int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (fd >= 0) worked("a vsock socket was opened");
  if (errno == EAFNOSUPPORT && strcmp(argument(argc, argv, 1), "bare") == 0) absent("this kernel has no vsock");
  held("a vsock socket: %s", error_name(errno));
}
