// SPDX-License-Identifier: Apache-2.0
// ambit-init: process 1 of a cell, executed by the spawner with its socket as descriptor 3 and the command's stdio.
// The job must not reach it: it is not dumpable, has a user id of its own in the cell, and is under none of the job's fences.
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/check.hpp"
#include "common/failure.hpp"
#include "common/packet.hpp"
#include "init/command.hpp"
#include "init/network.hpp"
#include "init/root.hpp"

using namespace ambit;

constexpr int kSpawner = 3;

static uint64_t Microseconds(const struct timeval& time) { return time.tv_sec * 1000000ull + time.tv_usec; }

static void Say(ReportMessage message, const std::vector<int>& fds = {}) {
  struct rusage own;
  getrusage(RUSAGE_SELF, &own);
  message.user_us = Microseconds(own.ru_utime);
  message.system_us = Microseconds(own.ru_stime);
  SendPacket(kSpawner, &message, sizeof message, fds);
}

[[noreturn]] static void End(const Failure& failure) {
  ReportMessage message = {kFailed};
  message.error = failure.error;
  CopyText(message.step, failure.step);
  Say(message);
  _exit(1);
}

struct Work {
  Plan plan;
  std::map<uint16_t, Fd> trees;
};

static Plan ReadPlan(int fd) {
  struct stat status;
  Must(fstat(fd, &status), "look at the plan");
  std::string bytes(status.st_size, '\0');
  if (pread(fd, bytes.data(), bytes.size(), 0) != status.st_size) Fail("read the plan", EIO);
  Plan plan;
  // The spawner checked the same sealed bytes.
  if (!Decode(bytes.data(), bytes.size(), &plan)) Fail("read the plan: it is damaged", EINVAL);
  return plan;
}

static Work Receive() {
  Work work;
  bool planned = false;
  for (;;) {
    OrderMessage order;
    std::vector<Fd> fds;
    int got = ReceivePacket(kSpawner, &order, sizeof order, &fds);
    if (got == 0) _exit(1);
    Must(got, "listen to the spawner");
    if (order.order == kPlan && fds.size() == 4 && !planned) {
      work.plan = ReadPlan(fds[0].get());
      for (int i = 0; i < 3; i++) Must(dup2(fds[i + 1].get(), i), "take the command's stdio");
      planned = true;
    } else if (order.order == kTrees && order.count == fds.size() && order.count <= kMaxDescriptors) {
      for (size_t i = 0; i < fds.size(); i++) work.trees[order.mount[i]] = std::move(fds[i]);
    } else if (order.order == kBuild && planned) {
      return work;
    } else {
      Fail("understand the spawner", EPROTO);
    }
  }
}

// Takes an id that nothing else in the cell has, so that a job may neither signal nor re-prioritise its process 1; and a
// saved group of another number than its group, so that nobody has all of its ids, which setting its limits takes
// (kernel/sys.c, check_prlimit_permission). Keeps only what starting and reaching the command takes, and what the command is to have.
static void BecomeOwnUser(uint32_t id, uint64_t of_command) {
  Must(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep the capabilities");
  Must(setresgid(-1, -1, id), "take an own saved group");
  Must(setresuid(id, id, id), "take an own user id");
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct held[_LINUX_CAPABILITY_U32S_3] = {};
  held[0].permitted = held[0].effective = 1u << CAP_KILL | 1u << CAP_SETUID | 1u << CAP_SETGID | 1u << CAP_SETPCAP | static_cast<uint32_t>(of_command);
  Must(static_cast<int>(syscall(SYS_capset, &header, held)), "keep few capabilities");
  // Both are lost with a change of ids.
  Must(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "hide cell-init");
  Must(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0), "end with the spawner");
}

// What takes no plan: done ahead for cells that nobody has asked for yet.
static Skeleton SetUpNamespaces() {
  // Now that the cgroups are entered: the namespace's roots are those of whoever makes it.
  Must(unshare(CLONE_NEWCGROUP), "make the cgroup namespace");
  Must(setsid(), "make a session");
  if (syscall(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, nullptr) < 0 && errno != ENOSYS) Must(-1, "join a new session keyring");
  Sockets sockets = SetUpNetwork();
  ReportMessage listening = {kListening};
  listening.sockets = sockets.mask;
  std::vector<int> fds;
  for (auto& socket : sockets.fds) fds.push_back(socket.get());
  Say(listening, fds);
  return BuildSkeleton();
}

static void Build(Work work, Skeleton skeleton) {
  BuildRoot(work.plan, std::move(work.trees), std::move(skeleton));
  Must(sethostname(work.plan.hostname.data(), work.plan.hostname.size()), "set the host name");
  BecomeOwnUser(work.plan.count - 1, work.plan.capabilities);
  Say({kReady});
}

// Reaps whatever ended; returns whether the command did, and its status.
static bool Reaped(pid_t command, int* status) {
  bool ended = false;
  for (;;) {
    int one;
    pid_t pid = waitpid(-1, &one, WNOHANG | __WALL);
    if (pid <= 0) return ended;
    if (pid != command) continue;
    *status = one;
    ended = true;
  }
}

static void Serve(const Plan& plan) {
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGCHLD);
  Must(sigprocmask(SIG_BLOCK, &wanted, nullptr), "block SIGCHLD");
  Fd children(signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK));
  Must(children.get(), "watch the children");
  pid_t command = -1;
  Fd trouble;
  struct pollfd polls[] = {{kSpawner, POLLIN, 0}, {children.get(), POLLIN, 0}};
  for (;;) {
    if (poll(polls, 2, -1) < 0 && errno != EINTR) Must(-1, "wait");
    if (polls[1].revents != 0) {
      struct signalfd_siginfo came[16];
      while (read(children.get(), came, sizeof came) > 0) {}
      int status = 0;
      if (Reaped(command, &status)) {
        Trouble told;
        if (read(trouble.get(), &told, sizeof told) == sizeof told) Fail(std::string(TextOf(told.step)), told.error);
        ReportMessage ended = {kEnded};
        ended.status = status;
        Say(ended);
        return;
      }
    }
    if (polls[0].revents == 0) continue;
    OrderMessage order;
    std::vector<Fd> fds;
    int got = ReceivePacket(kSpawner, &order, sizeof order, &fds);
    if (got == 0) return;
    Must(got, "listen to the spawner");
    if (order.order == kRun && command < 0) {
      command = StartCommand(plan, &trouble);
      // The command's output ends when its processes have closed it.
      for (int fd = 0; fd < 3; fd++) close(fd);
    }
    // -1 from process 1: every other process of its namespace (kill(2)), with no number that could be another's by now.
    if (order.order == kDeliverAll && command > 0 && order.signal > 0 && order.signal < NSIG) kill(-1, order.signal);
    // Not reaped yet, or this function had returned: the number is still the command's.
    if (order.order == kDeliver && command > 0 && order.signal > 0 && order.signal < NSIG) kill(command, order.signal);
  }
}

int main() {
  prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  prctl(PR_SET_NAME, "ambit-init");
  fcntl(kSpawner, F_SETFD, FD_CLOEXEC);
  umask(0);
  try {
    Must(static_cast<int>(syscall(SYS_close_range, kSpawner + 1, ~0U, 0)), "close what was inherited");
    Skeleton skeleton = SetUpNamespaces();
    Work work = Receive();
    Plan plan = work.plan;
    Build(std::move(work), std::move(skeleton));
    Serve(plan);
  } catch (const Failure& failure) {
    End(failure);
  }
  _exit(0);
}
