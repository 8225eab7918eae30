// SPDX-License-Identifier: Apache-2.0
// ambit-spawner INIT DAEMON_PID [next], with its end of the daemon's socket as descriptor 3 and, if so said, the socket at
// which a next daemon asks as descriptor 4. A small process, so that cloning it copies few pages; where the namespaces' privileges live. It ends with
// the daemon, and its cells with it, except for those that are held.
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
constexpr int kNext = 4;

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

// Who may take cells over: root, who could do all of this without us.
static Fd AcceptDaemon(int listener) {
  Fd daemon(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  struct ucred peer;
  socklen_t size = sizeof peer;
  if (!daemon || getsockopt(daemon.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.uid != 0) return Fd();
  return daemon;
}

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) return 2;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != atoi(argv[2])) return 1;
  syscall(SYS_close_range, kNext + 1, ~0U, 0);
  // No descriptor that comes later may land on one of these: cells get theirs by dup2.
  for (int fd = 0; fd < 3; fd++) if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd) return 1;
  fcntl(kAddon, F_SETFD, FD_CLOEXEC);
  Fd next(argc == 4 ? kNext : -1);
  if (next) fcntl(kNext, F_SETFD, FD_CLOEXEC);
  else close(kNext);
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
  Fd addon(kAddon);
  for (;;) {
    // The next daemon waits in the queue for as long as there is one.
    std::vector<struct pollfd> polls = {{addon ? addon.get() : next.get(), POLLIN, 0}};
    cells.Watch(&polls);
    if (poll(polls.data(), polls.size(), cells.Wait()) < 0) {
      if (errno == EINTR) continue;
      break;
    }
    cells.Serve(polls.data() + 1);
    if (!addon && !cells.Mind()) break;
    if (polls[0].revents == 0) continue;
    if (!addon) {
      addon = AcceptDaemon(next.get());
      if (addon) cells.Give(addon.get());
      continue;
    }
    AskMessage ask;
    std::vector<Fd> fds;
    int got = ReceivePacket(addon.get(), &ask, sizeof ask, &fds);
    if (got > 0) cells.Take(ask, std::move(fds));
    // A message that is none leaves nothing to answer to; the addon never sends one.
    if (got > 0 || (got < 0 && errno == EPROTO)) continue;
    // A daemon that only stops talking wants every cell ended, and to hear of it.
    if (!next || (polls[0].revents & POLLHUP) == 0) break;
    addon.Reset();
    if (!cells.Orphan()) break;
  }
  cells.EndAll();
  return 0;
}
