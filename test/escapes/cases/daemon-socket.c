/* SPDX-License-Identifier: Apache-2.0 */
/* Asks the daemon that built its cell for something, as a client: who may do that has another cell made, with another contract. */
#include "../attack.h"
#include <sys/socket.h>
#include <sys/un.h>

int main(int argc, char **argv) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  strncpy(to.sun_path, argument(argc, argv, 1), sizeof to.sun_path - 1);
  int fd = (int)step(socket(AF_UNIX, SOCK_SEQPACKET, 0), "socket");
  step(connect(fd, (struct sockaddr *)&to, sizeof to), "connect");
  const char *question = "{\"op\":\"status\"}";
  step(send(fd, question, strlen(question), 0), "send");
  char answer[65536] = "";
  step(recv(fd, answer, sizeof answer - 1, 0), "recv");
  worked("the daemon answered: %.60s", answer);
}
