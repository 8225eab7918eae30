// SPDX-License-Identifier: Apache-2.0
#include "init/landlock.hpp"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "common/check.hpp"
#include "common/failure.hpp"
#include "common/fd.hpp"
#include "common/mount-api.hpp"

namespace ambit {

// include/uapi/linux/landlock.h, by hand: the build machine's header may be older than the kernel that this runs on.
enum Access : uint64_t {
  kExecuteFile = 1 << 0, kWriteFile = 1 << 1, kReadFile = 1 << 2, kReadDir = 1 << 3, kRemoveDir = 1 << 4, kRemoveFile = 1 << 5,
  kMakeChar = 1 << 6, kMakeDir = 1 << 7, kMakeReg = 1 << 8, kMakeSock = 1 << 9, kMakeFifo = 1 << 10, kMakeBlock = 1 << 11,
  kMakeSym = 1 << 12, kRefer = 1 << 13, kTruncate = 1 << 14, kIoctlDev = 1 << 15, kResolveUnix = 1 << 16,
};
constexpr uint64_t kScopeAbstractSockets = 1, kScopeSignals = 2;
constexpr unsigned kCreateRulesetVersion = 1, kLogNewExecOn = 2;
constexpr int kRulePathBeneath = 1;
struct RulesetAttributes { uint64_t handled_fs, handled_net, scoped; };
struct PathBeneath { uint64_t allowed; int32_t parent; } __attribute__((packed));

constexpr uint64_t kOfFiles = kExecuteFile | kWriteFile | kReadFile | kTruncate | kIoctlDev;
constexpr uint64_t kReading = kReadFile | kReadDir;
// Device nodes are not among what a job may make.
constexpr uint64_t kWriting = kWriteFile | kRemoveDir | kRemoveFile | kMakeDir | kMakeReg | kMakeSock | kMakeFifo | kMakeSym | kRefer | kTruncate | kIoctlDev;

// Handled and granted to nothing from ABI 9 on: a job reaches the sockets that its own processes make, whatever the rules
// say, and no service of the host whose socket lies in a directory that the cell shows.
static uint64_t KnownTo(int abi) {
  if (abi >= 9) return (kResolveUnix << 1) - 1;
  if (abi >= 5) return (kIoctlDev << 1) - 1;
  if (abi >= 3) return (kTruncate << 1) - 1;
  if (abi >= 2) return (kRefer << 1) - 1;
  return (kMakeSym << 1) - 1;
}

// Links of the root are ours or the host's; in a tree that jobs can write, one could turn a rule into one for another tree.
static Fd OpenRulePath(const Plan& plan, const std::string& path) {
  uint64_t resolve = RESOLVE_NO_MAGICLINKS;
  for (auto& mount : plan.mounts) if ((IsWritableBind(mount) || (mount.flags & kFromJobs) != 0) && IsInside(path, mount.target)) resolve |= RESOLVE_NO_SYMLINKS;
  return Fd(OpenAt2(AT_FDCWD, path.c_str(), O_PATH | O_CLOEXEC, resolve));
}

void RestrictByLandlock(const Plan& plan) {
  int abi = Must(static_cast<int>(syscall(SYS_landlock_create_ruleset, nullptr, 0, kCreateRulesetVersion)), "ask for Landlock");
  uint64_t known = KnownTo(abi);
  RulesetAttributes attributes = {known, 0, abi >= 6 ? kScopeAbstractSockets | kScopeSignals : 0};
  // A kernel takes a larger struct than it knows if the rest is zero.
  Fd ruleset(static_cast<int>(syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0)));
  Must(ruleset.get(), "make the Landlock ruleset");
  for (auto& rule : plan.rules) {
    Fd path = OpenRulePath(plan, rule.path);
    if (!path) continue;
    uint64_t allowed = 0;
    if ((rule.access & kLandlockRead) != 0) allowed |= kReading;
    if ((rule.access & kLandlockWrite) != 0) allowed |= kWriting;
    if ((rule.access & kLandlockExecute) != 0) allowed |= kExecuteFile;
    struct stat status;
    Must(fstat(path.get(), &status), "look at", rule.path);
    if (!S_ISDIR(status.st_mode)) allowed &= kOfFiles;
    // A rule that names a socket itself is a grant to speak to it.
    if (S_ISSOCK(status.st_mode)) allowed |= kResolveUnix;
    allowed &= known;
    if (allowed == 0) continue;
    PathBeneath beneath = {allowed, path.get()};
    Must(static_cast<int>(syscall(SYS_landlock_add_rule, ruleset.get(), kRulePathBeneath, &beneath, 0)), "add the Landlock rule for", rule.path);
  }
  // Denials are evidence also after the command has executed other programs.
  Must(static_cast<int>(syscall(SYS_landlock_restrict_self, ruleset.get(), abi >= 7 ? kLogNewExecOn : 0)), "enforce the Landlock ruleset");
}

}  // namespace ambit
