/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's ciphers by sockets: a large part of the kernel that jobs have no need of. */
#include "../attack.h"
#include <sys/socket.h>

/* The filter of a cell says what a kernel without them says: only bare, the answer is the kernel's. */
int main(int argc, char **argv) {
  int fd = socket(AF_ALG, SOCK_SEQPACKET, 0);
  if (fd >= 0) worked("a socket of the kernel's ciphers was opened");
  if (errno == EAFNOSUPPORT && strcmp(argument(argc, argv, 1), "bare") == 0) absent("this kernel has no AF_ALG");
  held("AF_ALG: %s", error_name(errno));
}
