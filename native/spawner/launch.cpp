// SPDX-License-Identifier: Apache-2.0
#include "spawner/launch.hpp"
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <cstdlib>
#include "common/failure.hpp"
#include "common/messages.hpp"

#ifndef MFD_EXEC  // Linux 6.3
#define MFD_EXEC 0x0010U
#endif
#ifndef F_SEAL_EXEC  // Linux 6.3
#define F_SEAL_EXEC 0x0020
#endif

namespace ambit {

Fd SealedCopy(const char* path) {
  Fd from(open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  Must(from.get(), "open", path);
  struct stat status;
  Must(fstat(from.get(), &status), "look at", path);
  // Where vm.memfd_noexec is 1 the flag is needed; kernels before 6.3 do not know it.
  Fd copy(memfd_create("ambit-init", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC));
  if (!copy && errno == EINVAL) copy = Fd(memfd_create("ambit-init", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  Must(copy.get(), "make the memfd for cell-init");
  for (off_t left = status.st_size; left > 0;) {
    int sent = Must(static_cast<int>(sendfile(copy.get(), from.get(), nullptr, left)), "copy", path);
    if (sent == 0) Fail(std::string("copy ") + path, EIO);
    left -= sent;
  }
  Must(fchmod(copy.get(), 0555), "set the mode of cell-init's copy");
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
  if (fcntl(copy.get(), F_ADD_SEALS, kSeals | F_SEAL_EXEC) < 0) Must(fcntl(copy.get(), F_ADD_SEALS, kSeals), "seal cell-init's copy");
  return copy;
}

void MustBeCgroup(int fd, int version) {
  struct statfs status;
  Must(fstatfs(fd, &status), "look at a cgroup");
  if (status.f_type != (version == 2 ? CGROUP2_SUPER_MAGIC : CGROUP_SUPER_MAGIC)) Fail("enter a cgroup: the descriptor is of none", EINVAL);
}

// From here to the exec: only calls that are safe between clone and exec, and nothing that allocates.
static ReportMessage g_report;

[[noreturn]] static void Die(int control, const char* step) {
  g_report.report = kFailed;
  g_report.error = errno;
  size_t size = 0;
  while (step[size] != '\0' && size < kStepSize - 1) { g_report.step[size] = step[size]; size++; }
  send(control, &g_report, sizeof g_report, MSG_NOSIGNAL);
  _exit(1);
}

// A daemon that the out-of-memory killer spares must not lend that to jobs (proc_pid_oom_score_adj(5)).
static void KeepKillable() {
  int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
  if (fd < 0) return;
  char first = 0;
  if (read(fd, &first, 1) == 1 && first == '-') pwrite(fd, "0", 1, 0);
  close(fd);
}

[[noreturn]] static void BecomeInit(const Launch& launch) {
  static OrderMessage order;
  if (read(launch.control, &order, sizeof order) != sizeof order || order.order != kStart) _exit(1);
  // Writing "0" to an open `tasks` file moves the writer without the global lock that `cgroup.procs` takes, and the
  // kernel asks whether the opener, root on the host, may.
  for (int tasks : launch.tasks) if (write(tasks, "0", 1) != 1) Die(launch.control, "enter a v1 cgroup");
  // Raw calls: the C library's wrappers talk to threads. An exec before the ids are mapped and taken would drop every capability.
  if (syscall(SYS_setgroups, 0, nullptr) < 0) Die(launch.control, "drop the groups");
  if (syscall(SYS_setresgid, 0, 0, 0) < 0) Die(launch.control, "become group 0 of the cell");
  if (syscall(SYS_setresuid, 0, 0, 0) < 0) Die(launch.control, "become user 0 of the cell");
  // The command's come with the plan.
  for (int i = 1; i < 3; i++) if (dup2(0, i) < 0) Die(launch.control, "let go of the spawner's output");
  if (dup2(launch.control, 3) < 0) Die(launch.control, "hand over the control socket");
  KeepKillable();
  char name[] = "ambit-init";
  char* const argv[] = {name, nullptr};
  char* const env[] = {nullptr};
  syscall(SYS_execveat, launch.image, "", argv, env, AT_EMPTY_PATH);
  Die(3, "execute cell-init");
}

static bool g_dies = true;

void DieWithDaemon(bool die) {
  g_dies = die;
  DieAsBefore();
}

void DieAsBefore() { prctl(PR_SET_PDEATHSIG, g_dies ? SIGKILL : 0); }

// The kernel charges what a user namespace's processes hold (inotify instances, timers, queues: user_namespaces(7)) to
// whoever made it: the cell's own host id, or one job could use up the quotas of the host's root. Capabilities are kept.
class AsCellOwner {
 public:
  explicit AsCellOwner(uid_t base) {
    Must(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "keep the capabilities while the owner is another");
    if (syscall(SYS_setresuid, -1, base, -1) == 0) return;
    int error = errno;
    prctl(PR_SET_SECUREBITS, 0, 0, 0, 0);
    Fail("become the owner of the cell's namespace", error);
  }
  ~AsCellOwner() {
    // Root among the real ids: neither of these can fail; and a change of ids forgets whose death is watched.
    if (syscall(SYS_setresuid, -1, 0, -1) < 0 || prctl(PR_SET_SECUREBITS, 0, 0, 0, 0) < 0) abort();
    DieAsBefore();
  }
  AsCellOwner(const AsCellOwner&) = delete;
  AsCellOwner& operator=(const AsCellOwner&) = delete;
};

pid_t StartInit(const Launch& launch, Fd* pidfd) {
  int opened = -1;
  struct clone_args args = {};
  args.flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_INTO_CGROUP | CLONE_PIDFD;
  args.pidfd = reinterpret_cast<uint64_t>(&opened);
  args.exit_signal = SIGCHLD;
  args.cgroup = launch.cgroup;
  pid_t pid;
  {
    AsCellOwner owner(launch.base);
    pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) BecomeInit(launch);
    Must(pid, "clone process 1 of the cell");
  }
  *pidfd = Fd(opened);
  return pid;
}

}  // namespace ambit
