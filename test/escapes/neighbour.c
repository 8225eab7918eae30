/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hold: leaves something in every place where processes of one machine meet, and waits. seek: says which of them it finds. Run by two
 * jobs at once, it tells what one can reach of the other.
 */
#include "attack.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <linux/keyctl.h>
#include <mqueue.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/un.h>

#define KEY 0x616d6269
#define NAME "ambit-neighbour"
#define PORT 47123

static struct sockaddr_un abstract_name(socklen_t *size) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  memcpy(address.sun_path + 1, NAME, sizeof NAME - 1);
  *size = offsetof(struct sockaddr_un, sun_path) + sizeof NAME;
  return address;
}

static struct sockaddr_in loopback(void) { return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}; }

static int held_memory, held_semaphore;

static void let_go(int signal) {
  (void)signal;
  shmctl(held_memory, IPC_RMID, 0);
  semctl(held_semaphore, 0, IPC_RMID);
  mq_unlink("/" NAME);
  unlink("/dev/shm/" NAME);
  unlink("/tmp/" NAME);
  _exit(0);
}

static void hold(void) {
  socklen_t size;
  struct sockaddr_un name = abstract_name(&size);
  struct sockaddr_in port = loopback();
  int unix_socket = socket(AF_UNIX, SOCK_STREAM, 0), tcp_socket = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  setsockopt(tcp_socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  held_memory = step(shmget(KEY, 4096, IPC_CREAT | 0666), "shmget");
  held_semaphore = step(semget(KEY, 1, IPC_CREAT | 0666), "semget");
  signal(SIGTERM, let_go);
  /* They may be used up, or not there. */
  mqd_t queue = mq_open("/" NAME, O_CREAT | O_RDWR, 0666, 0);
  step(bind(unix_socket, (struct sockaddr *)&name, size), "bind an abstract name");
  step(listen(unix_socket, 8), "listen");
  step(bind(tcp_socket, (struct sockaddr *)&port, sizeof port), "bind a port");
  step(listen(tcp_socket, 8), "listen");
  step(open("/dev/shm/" NAME, O_CREAT | O_RDWR, 0666), "/dev/shm");
  step(open("/tmp/" NAME, O_CREAT | O_RDWR, 0666), "/tmp");
  puts(queue < 0 ? "ready, without queues" : "ready");
  fflush(stdout);
  for (;;) pause();
}

static int processes_called(const char *name) {
  DIR *proc = opendir("/proc");
  int found = 0;
  for (struct dirent *entry; proc && (entry = readdir(proc)) != 0;) {
    char path[300], text[32] = "";
    if (atoi(entry->d_name) == 0 || atoi(entry->d_name) == getpid()) continue;
    snprintf(path, sizeof path, "/proc/%.64s/comm", entry->d_name);
    int fd = open(path, O_RDONLY);
    if (fd < 0) continue;
    if (read(fd, text, sizeof text - 1) > 0 && strncmp(text, name, strlen(name)) == 0) found++;
    close(fd);
  }
  return found;
}

static int processes_to_signal(void) {
  int found = 0;
  for (pid_t pid = 2; pid < 65536; pid++) found += pid != getpid() && pid != getppid() && kill(pid, 0) == 0;
  return found;
}

int main(int argc, char **argv) {
  if (strcmp(argument(argc, argv, 1), "hold") == 0) hold();
  socklen_t size;
  struct sockaddr_un name = abstract_name(&size);
  struct sockaddr_in port = loopback();
  char found[256] = "";
  struct { const char *what; int there; } places[] = {
    {"process", processes_called("neighbour") > 0},
    {"signal", processes_to_signal() > 0},
    {"memory", shmget(KEY, 0, 0) >= 0},
    {"semaphore", semget(KEY, 0, 0) >= 0},
    {"queue", mq_open("/" NAME, O_RDONLY) >= 0},
    {"abstract", connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&name, size) == 0},
    {"port", connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&port, sizeof port) == 0},
    {"shm", access("/dev/shm/" NAME, F_OK) == 0},
    {"tmp", access("/tmp/" NAME, F_OK) == 0},
  };
  for (unsigned i = 0; i < sizeof places / sizeof *places; i++) if (places[i].there) strcat(strcat(found, " "), places[i].what);
  if (found[0] != 0) worked("found:%s", found);
  held("found nothing of the other");
}
