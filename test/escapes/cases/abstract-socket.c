/* SPDX-License-Identifier: Apache-2.0 */
/* Talks to a service of the host by an abstract socket, which no file system guards (containerd-shim had one: CVE-2020-15257). */
#include "../attack.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv) {
  const char *name = argument(argc, argv, 1);
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  memcpy(to.sun_path + 1, name, strlen(name));
  int fd = (int)step(socket(AF_UNIX, SOCK_STREAM, 0), "socket");
  step(connect(fd, (struct sockaddr *)&to, offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name)), "connect");
  char answer[32] = "";
  step(read(fd, answer, sizeof answer - 1), "read");
  worked("the host's service answered: %s", answer);
}
