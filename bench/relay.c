// Both ends of what bench/relay.mjs measures. They must not be what is slow: no library, no copy but the kernel's.
//   relay serve                          prints its port; a process for each connection
//   relay bulk HOST PORT WAY MIB         WAY: up, down, http-up, http-down. Prints the microseconds until the other end had it all
//   relay small HOST PORT WHAT COUNT     WHAT: connect, request, http. Prints the median microseconds of one
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK (256 * 1024)
static char chunk[CHUNK];

static void Fail(const char *what) {
  fprintf(stderr, "relay bench: %s: %s\n", what, strerror(errno));
  exit(1);
}

static double Now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static void Write(int fd, const void *bytes, size_t size) {
  for (const char *at = bytes; size > 0;) {
    ssize_t written = send(fd, at, size, MSG_NOSIGNAL);
    if (written <= 0) Fail("send");
    at += written;
    size -= written;
  }
}

static void Pour(int fd, uint64_t size) {
  for (; size > 0; size -= size < CHUNK ? size : CHUNK) Write(fd, chunk, size < CHUNK ? size : CHUNK);
}

static uint64_t Drink(int fd, uint64_t limit) {
  uint64_t all = 0;
  while (all < limit) {
    ssize_t size = recv(fd, chunk, limit - all < CHUNK ? limit - all : CHUNK, 0);
    if (size < 0) Fail("recv");
    if (size == 0) break;
    all += size;
  }
  return all;
}

static void Exactly(int fd, void *bytes, size_t size) {
  if (recv(fd, bytes, size, MSG_WAITALL) != (ssize_t)size) Fail("recv");
}

static void Head(int fd, char *head, size_t size) {
  size_t at = 0;
  while (at < 4 || memcmp(head + at - 4, "\r\n\r\n", 4) != 0) {
    if (at == size - 1 || recv(fd, head + at, 1, 0) != 1) exit(0);
    at++;
  }
  head[at] = 0;
}

// A connection says in its first bytes what it is: 0, a letter and a size, or HTTP.
static void Serve(int fd) {
  char first;
  if (recv(fd, &first, 1, MSG_PEEK) != 1) return;
  if (first == 0) {
    struct __attribute__((packed)) { char zero, kind; uint64_t size; } ask;
    Exactly(fd, &ask, sizeof ask);
    if (ask.kind == 'U') {
      uint64_t got = Drink(fd, UINT64_MAX);
      Write(fd, &got, sizeof got);
    } else if (ask.kind == 'D') {
      Pour(fd, ask.size);
    } else {
      for (char byte = 0;;) {
        Write(fd, &byte, 1);
        if (recv(fd, &byte, 1, 0) != 1) return;
      }
    }
    return;
  }
  for (;;) {
    char head[1024], answer[256];
    Head(fd, head, sizeof head);
    const char *length = strstr(head, "Content-Length: ");
    uint64_t up = length != NULL ? strtoull(length + 16, NULL, 10) : 0, down = head[0] == 'G' ? strtoull(head + 5, NULL, 10) : 1;
    if (Drink(fd, up) != up) return;
    Write(fd, answer, snprintf(answer, sizeof answer, "HTTP/1.1 200 OK\r\nContent-Length: %llu\r\n\r\n", (unsigned long long)down));
    Pour(fd, down);
  }
}

static int Listen(void) {
  signal(SIGCHLD, SIG_IGN);
  int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  if (bind(listener, (struct sockaddr *)&address, size) != 0 || listen(listener, 128) != 0 || getsockname(listener, (struct sockaddr *)&address, &size) != 0) Fail("listen");
  printf("%d\n", ntohs(address.sin_port));
  fflush(stdout);
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) Fail("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (fork() == 0) {
      close(listener);
      Serve(fd);
      exit(0);
    }
    close(fd);
  }
}

static struct sockaddr_storage to;
static socklen_t to_size;
static const char *name;

static void Resolve(const char *host, const char *port) {
  struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
  if (getaddrinfo(host, port, &hints, &found) != 0) Fail("getaddrinfo");
  memcpy(&to, found->ai_addr, to_size = found->ai_addrlen);
  name = host;
}

static int Dial(void) {
  int on = 1, fd = socket(to.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(fd, (struct sockaddr *)&to, to_size) != 0) Fail("connect");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

static void Ask(int fd, char kind, uint64_t size) {
  struct __attribute__((packed)) { char zero, kind; uint64_t size; } ask = {0, kind, size};
  Write(fd, &ask, sizeof ask);
}

static void Request(int fd, uint64_t up, uint64_t down) {
  char head[512];
  Write(fd, head, snprintf(head, sizeof head, up > 0 ? "POST / HTTP/1.1\r\nHost: %s\r\nContent-Length: %llu\r\n\r\n" : "GET /%2$llu HTTP/1.1\r\nHost: %1$s\r\n\r\n", name, (unsigned long long)(up > 0 ? up : down)));
}

static double Bulk(const char *way, uint64_t size) {
  double began = Now();
  int fd = Dial();
  char head[512];
  uint64_t got = 0;
  if (strcmp(way, "up") == 0) {
    Ask(fd, 'U', 0);
    Pour(fd, size);
    shutdown(fd, SHUT_WR);
    Exactly(fd, &got, sizeof got);
  } else if (strcmp(way, "down") == 0) {
    Ask(fd, 'D', size);
    got = Drink(fd, UINT64_MAX);
  } else if (strcmp(way, "http-up") == 0) {
    Request(fd, size, 1);
    Pour(fd, size);
    Head(fd, head, sizeof head);
    got = size;
  } else {
    Request(fd, 0, size);
    Head(fd, head, sizeof head);
    got = Drink(fd, size);
  }
  double took = Now() - began;
  if (got != size) {
    fprintf(stderr, "relay bench: %llu of %llu bytes arrived\n", (unsigned long long)got, (unsigned long long)size);
    exit(1);
  }
  close(fd);
  return took;
}

static int Order(const void *one, const void *other) { return *(const double *)one < *(const double *)other ? -1 : 1; }

static double Small(const char *what, int count) {
  double *took = calloc(count, sizeof *took);
  int fd = -1;
  for (int i = 0; i < count; i++) {
    char byte, head[512];
    double began = Now();
    if (strcmp(what, "connect") == 0) {
      fd = Dial();
      Ask(fd, 'E', 0);
      Exactly(fd, &byte, 1);
    } else if (strcmp(what, "request") == 0) {
      if (fd < 0) {
        fd = Dial();
        Ask(fd, 'E', 0);
      } else {
        Write(fd, "x", 1);
      }
      Exactly(fd, &byte, 1);
    } else {
      if (fd < 0) fd = Dial();
      Request(fd, 0, 1);
      Head(fd, head, sizeof head);
      Exactly(fd, &byte, 1);
    }
    took[i] = Now() - began;
    if (strcmp(what, "connect") == 0) close(fd);
  }
  qsort(took, count, sizeof *took, Order);
  return took[count / 2];
}

int main(int argc, char **argv) {
  if (argc == 2 && strcmp(argv[1], "serve") == 0) return Listen();
  if (argc != 6) {
    fprintf(stderr, "usage: relay serve | relay bulk|small HOST PORT WHAT SIZE\n");
    return 2;
  }
  Resolve(argv[2], argv[3]);
  printf("%.1f\n", strcmp(argv[1], "bulk") == 0 ? Bulk(argv[4], strtoull(argv[5], NULL, 10) << 20) : Small(argv[4], atoi(argv[5])));
  return 0;
}
