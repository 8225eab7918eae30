// SPDX-License-Identifier: Apache-2.0
// Acts of an attacker, one word each; prints "ok" or the name of the error. Static, so that it runs in any root.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *outcome(long result) { return result < 0 ? strerrorname_np(errno) : "ok"; }
static void tell(const char *what, long result) { const char *text = outcome(result); printf("%s %s\n", what, text); }

static void attack_process(pid_t pid) {
  char path[64], byte;
  static const char *files[] = {"mem", "environ", "maps", "fd/3", "exe", "root"};
  for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
    snprintf(path, sizeof path, "/proc/%d/%s", pid, files[i]);
    int fd = open(path, O_RDONLY);
    tell(files[i], fd);
    close(fd);
  }
  struct iovec local = {&byte, 1}, remote = {(void *)&outcome, 1};
  tell("process_vm_readv", process_vm_readv(pid, &local, 1, &remote, 1, 0));
  struct rlimit limit = {0, 0};
  tell("prlimit", prlimit(pid, RLIMIT_CORE, &limit, NULL));
  tell("setpriority", setpriority(PRIO_PROCESS, pid, 19));
  int pidfd = syscall(SYS_pidfd_open, pid, 0);
  tell("pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, 0, 0));
  long attached = ptrace(PTRACE_SEIZE, pid, 0, 0);
  tell("ptrace", attached);
  if (attached == 0) ptrace(PTRACE_DETACH, pid, 0, 0);
  tell("kill", kill(pid, SIGKILL));
}

static int port_of(const char *text) { return atoi(text); }

static long reach(int type, const char *address, int port, int connecting) {
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
  struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
  int is6 = inet_pton(AF_INET, address, &v4.sin_addr) != 1;
  if (is6) inet_pton(AF_INET6, address, &v6.sin6_addr);
  struct sockaddr *to = is6 ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
  socklen_t size = is6 ? sizeof v6 : sizeof v4;
  int fd = socket(is6 ? AF_INET6 : AF_INET, type, 0);
  if (!connecting) return bind(fd, to, size);
  if (connect(fd, to, size) < 0) return -1;
  if (type == SOCK_DGRAM) {
    char reply[64];
    struct timeval patience = {5, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (send(fd, "ping", 4, 0) < 0) return -1;
    ssize_t got = recv(fd, reply, sizeof reply, 0);
    if (got < 0) return -1;
    printf("%.*s ", (int)got, reply);
  }
  return 0;
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  const char *act = argc > 1 ? argv[1] : "";
  if (!strcmp(act, "fds")) {
    for (int fd = 0; fd < 4096; fd++) if (fcntl(fd, F_GETFD) >= 0) printf("%d ", fd);
    printf("\n");
  } else if (!strcmp(act, "attack")) {
    pid_t pid = atoi(argv[2]);
    if (pid != 0) { attack_process(pid); return 0; }
    pid = fork();
    if (pid == 0) { dup2(0, 3); for (;;) pause(); }
    usleep(20000);
    attack_process(pid);
    int status;
    waitpid(pid, &status, 0);
    printf("died %d\n", WTERMSIG(status));
  } else if (!strcmp(act, "connect") || !strcmp(act, "udp") || !strcmp(act, "bind")) {
    tell(act, reach(act[0] == 'u' ? SOCK_DGRAM : SOCK_STREAM, argv[2], port_of(argv[3]), act[0] != 'b'));
  } else if (!strcmp(act, "uname")) {
    struct utsname name;
    tell(act, uname(&name));
  } else if (!strcmp(act, "signals")) {
    sigset_t blocked;
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    for (int i = 1; i < 32; i++) {
      struct sigaction action;
      if (sigismember(&blocked, i) || (sigaction(i, NULL, &action) == 0 && action.sa_handler != SIG_DFL)) printf("%d ", i);
    }
    printf("end\n");
  } else if (!strcmp(act, "orphans")) {
    for (int i = 0; i < 3; i++) if (fork() == 0) { setsid(); if (fork() == 0) { for (;;) pause(); } _exit(0); }
    while (wait(NULL) > 0) {}
  } else if (!strcmp(act, "burn")) {
    if (fork() == 0) {
      char *pages = malloc(48 << 20);
      memset(pages, 1, 48 << 20);
      struct rusage usage;
      do getrusage(RUSAGE_SELF, &usage); while (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec < 100000 && usage.ru_utime.tv_sec == 0);
      _exit(pages[1] - 1);
    }
    wait(NULL);
  } else if (!strcmp(act, "mount")) {
    tell("mount", mount("none", "/tmp", "tmpfs", 0, NULL));
    tell("unshare", unshare(CLONE_NEWNS));
    tell("remount", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL));
    tell("umount", umount2("/proc/sys", MNT_DETACH));
    tell("mknod", mknod("/tmp/null", S_IFCHR | 0666, 1 << 8 | 3));
    tell("sethostname", sethostname("x", 1));
    tell("chroot", chroot("/tmp"));
    tell("setuid", setuid(1));
  } else {
    fprintf(stderr, "unknown act\n");
    return 2;
  }
  return 0;
}
