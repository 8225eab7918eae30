/* SPDX-License-Identifier: Apache-2.0 */
/* Connects to a service of the host by its socket (docker.sock, D-Bus): a leading @ stands for an abstract name. */
#include "../attack.h"
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  const char *name = argc > 1 ? argv[1] : "";
  strncpy(address.sun_path, name, sizeof address.sun_path - 1);
  if (name[0] == '@') address.sun_path[0] = 0;
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0) held("socket: %s", error_name(errno));
  if (connect(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + strlen(name)) < 0) held("connecting to %s: %s", name, error_name(errno));
  char answer[32] = "";
  ssize_t size = read(fd, answer, sizeof answer - 1);
  size > 0 ? worked("the service answered: %s", answer) : held("connected to %s, and nobody answered", name);
}
