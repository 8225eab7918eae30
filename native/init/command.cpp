// SPDX-License-Identifier: Apache-2.0
#include "init/command.hpp"
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cstdio>
#include <climits>
#include <cstring>
#include "common/failure.hpp"
#include "common/messages.hpp"
#include "init/landlock.hpp"

namespace ambit {

static std::vector<char*> Pointers(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

static std::vector<std::string> Candidates(const Plan& plan) {
  const std::string& name = plan.argv[0];
  if (name.find('/') != std::string::npos) return {name};
  std::string path = "/usr/local/bin:/usr/bin:/bin";
  for (auto& variable : plan.env) if (variable.compare(0, 5, "PATH=") == 0) path = variable.substr(5);
  std::vector<std::string> found;
  for (size_t at = 0; at <= path.size();) {
    size_t end = path.find(':', at);
    if (end == std::string::npos) end = path.size();
    std::string folder = path.substr(at, end - at);
    found.push_back((folder.empty() ? "." : folder) + "/" + name);
    at = end + 1;
  }
  return found;
}

static void SetLimits(const Plan& plan) {
  for (auto& limit : plan.rlimits) {
    auto resource = static_cast<__rlimit_resource>(limit.resource);
    struct rlimit held;
    Must(getrlimit(resource, &held), "read a resource limit");
    // The plan says how much a cell may have at most. More than the daemon has itself is not there to give.
    struct rlimit wanted = {limit.soft, limit.hard};
    if (wanted.rlim_max > held.rlim_max) wanted.rlim_max = held.rlim_max;
    if (wanted.rlim_cur > wanted.rlim_max) wanted.rlim_cur = wanted.rlim_max;
    Must(setrlimit(resource, &wanted), "set a resource limit");
  }
}

// What the plan keeps stays in the bounding and the permitted set: the cell's root has it after each exec as root has
// (capabilities(7)), and whoever becomes another user loses it. Nothing is inheritable or ambient: programs of other users
// would get it (CVE-2022-24769).
static void DropCapabilities(uint64_t kept) {
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; capability++) {
    if ((kept >> capability & 1) == 0) Must(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "drop a capability from the bounding set");
  }
  Must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "clear the ambient capabilities");
  struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  struct __user_cap_data_struct held[_LINUX_CAPABILITY_U32S_3] = {};
  held[0].permitted = held[0].effective = static_cast<uint32_t>(kept);
  Must(static_cast<int>(syscall(SYS_capset, &header, held)), "drop the capabilities");
}

static void EnterFolder(const std::string& folder) {
  Must(chdir(folder.c_str()), "enter the working directory", folder);
  char where[PATH_MAX];
  long size = syscall(SYS_getcwd, where, sizeof where);
  // A directory outside the root has a name that starts with "(unreachable)" (getcwd(3)).
  if (size < 2 || where[0] != '/') Fail("enter the working directory " + folder + ": it lies outside the root", EACCES);
}

static void ResetSignals() {
  for (int signal = 1; signal < NSIG; signal++) {
    if (signal == SIGKILL || signal == SIGSTOP) continue;
    struct sigaction usual = {};
    usual.sa_handler = SIG_DFL;
    sigaction(signal, &usual, nullptr);
  }
  sigset_t none;
  sigemptyset(&none);
  Must(sigprocmask(SIG_SETMASK, &none, nullptr), "unblock the signals");
}

static void SetFilter(const std::string& program) {
  struct sock_fprog filter = {static_cast<unsigned short>(program.size() / sizeof(struct sock_filter)), reinterpret_cast<struct sock_filter*>(const_cast<char*>(program.data()))};
  // Refusals are logged: evidence where nothing else sees them.
  Must(static_cast<int>(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG, &filter)), "set the seccomp filter");
}

// As execvpe(3) goes through PATH, so that each attempt is one that can be observed. Returns why none succeeded.
static int Execute(const std::vector<std::string>& candidates, char* const* argv, char* const* env) {
  int reason = ENOENT;
  for (auto& candidate : candidates) {
    execve(candidate.c_str(), argv, env);
    if (errno == EACCES) reason = EACCES;
    else if (errno != ENOENT && errno != ENOTDIR) return errno;
  }
  return reason;
}

[[noreturn]] static void BecomeCommand(const Plan& plan, int trouble) {
  try {
    std::vector<std::string> candidates = Candidates(plan);
    std::vector<char*> argv = Pointers(plan.argv), env = Pointers(plan.env);
    umask(022);
    SetLimits(plan);
    Must(setgroups(0, nullptr), "drop the groups");
    Must(setresgid(plan.gid, plan.gid, plan.gid), "become the command's group");
    Must(setresuid(plan.uid, plan.uid, plan.uid), "become the command's user");
    EnterFolder(plan.cwd);
    Must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs");
    if (plan.landlock != 0) RestrictByLandlock(plan);
    DropCapabilities(plan.capabilities);
    ResetSignals();
    Must(static_cast<int>(syscall(SYS_close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC)), "close the other descriptors");
    if (!plan.seccomp.empty()) SetFilter(plan.seccomp);
    int reason = Execute(candidates, argv.data(), env.data());
    // A command that is not there is the job's failure, told as a shell tells it, and no failure of the cell.
    signal(SIGPIPE, SIG_IGN);
    dprintf(2, "ambit: cannot execute %s: %s\n", plan.argv[0].c_str(), strerror(reason));
    _exit(reason == ENOENT ? 127 : 126);
  } catch (const Failure& failure) {
    Trouble told = {failure.error, {}};
    CopyText(told.step, failure.step);
    ssize_t ignored = write(trouble, &told, sizeof told);
    (void)ignored;
    _exit(125);
  }
}

pid_t StartCommand(const Plan& plan, Fd* trouble) {
  int ends[2];
  Must(pipe2(ends, O_CLOEXEC | O_NONBLOCK), "make a pipe to the command");
  Fd ours(ends[0]), theirs(ends[1]);
  pid_t pid = fork();
  if (pid == 0) BecomeCommand(plan, theirs.get());
  Must(pid, "fork the command");
  *trouble = std::move(ours);
  return pid;
}

}  // namespace ambit
