// SPDX-License-Identifier: Apache-2.0
// ambit-spawner INIT DAEMON_PID, with its end of the daemon's socket as descriptor 3. A small process, so that cloning
// it copies few pages; where the namespaces' privileges live. It ends with the daemon, and its cells with it.
#include <fcntl.h>
#include <grp.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <cstdlib>
#include "common/packet.hpp"
#include "spawner/cells.hpp"
#include "spawner/launch.hpp"

using namespace ambit;

constexpr int kAddon = 3;

// Cells may ask for more than the daemon was given, where this process may give it.
static void RaiseLimits() {
  for (int resource : {RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_CORE, RLIMIT_FSIZE, RLIMIT_STACK, RLIMIT_MEMLOCK}) {
    struct rlimit limit;
    if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) < 0) continue;
    const rlim_t wanted = resource == RLIMIT_NOFILE ? 1048576 : RLIM_INFINITY;
    const struct rlimit raised = {limit.rlim_cur, wanted > limit.rlim_max ? wanted : limit.rlim_max};
    if (setrlimit(static_cast<__rlimit_resource>(resource), &raised) == 0) limit = raised;
    // Each cell takes eight descriptors here while it lives, and one for each bind while it is built.
    if (resource != RLIMIT_NOFILE) continue;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
}

static Fd OpenProc() {
  Fd proc(open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC));
  Must(proc.get(), "open /proc");
  struct statfs status;
  Must(fstatfs(proc.get(), &status), "look at /proc");
  if (status.f_type != PROC_SUPER_MAGIC) Fail("use /proc: it is no proc file system", EINVAL);
  return proc;
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != atoi(argv[2])) return 1;
  syscall(SYS_close_range, kAddon + 1, ~0U, 0);
  // No descriptor that comes later may land on one of these: cells get theirs by dup2.
  for (int fd = 0; fd < 3; fd++) if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) return 1;
  fcntl(kAddon, F_SETFD, FD_CLOEXEC);
  umask(0);
  if (chdir("/") < 0 || setgroups(0, nullptr) < 0) return 1;
  RaiseLimits();

  std::optional<Failure> broken;
  Fd proc, image;
  try {
    proc = OpenProc();
    image = SealedCopy(argv[1]);
  } catch (const Failure& failure) {
    broken = failure;
  }
  const int proc_fd = proc.get();
  Cells cells(kAddon, proc_fd, std::move(image), std::move(broken));
  for (;;) {
    std::vector<struct pollfd> polls = {{kAddon, POLLIN, 0}};
    cells.Watch(&polls);
    if (poll(polls.data(), polls.size(), -1) < 0) {
      if (errno == EINTR) continue;
      break;
    }
    cells.Serve(polls.data() + 1);
    if (polls[0].revents == 0) continue;
    AskMessage ask;
    std::vector<Fd> fds;
    int got = ReceivePacket(kAddon, &ask, sizeof ask, &fds);
    if (got > 0) cells.Take(ask, std::move(fds));
    // A message that is none leaves nothing to answer to; the addon never sends one.
    if (got == 0 || (got < 0 && errno != EPROTO)) break;
  }
  cells.EndAll();
  return 0;
}
