// SPDX-License-Identifier: Apache-2.0
#include "init/skeleton.hpp"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <cerrno>
#include "common/failure.hpp"
#include "common/mount-api.hpp"
#include "init/mounts.hpp"

namespace ambit {

constexpr uint64_t kRootSize = 64 * 1024 * 1024;
constexpr uint64_t kDevSize = 1024 * 1024;

// Of the host's, by number: what lies at the name is not trusted to be it (CVE-2025-31133).
struct Device { const char* name; unsigned major, minor; };
constexpr Device kDevices[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
struct Link { const char* name; const char* to; };
constexpr Link kLinks[] = {{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"}};

// Returns the limit of user namespaces, open for writing, or nothing where the kernel has none.
static Fd MountProc(int root) {
  const std::string target = "/proc";
  Fd context(FsOpen("proc"));
  Must(context.get(), "open proc for", target);
  // The name is of Linux 5.8; before, hidepid held for the whole pid namespace and was a number.
  if (FsSet(context.get(), "hidepid", "noaccess") < 0) Must(FsSet(context.get(), "hidepid", "1"), "hide processes in", target);
  Fd proc = MakeMount(context.get(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, target);
  // The table is that of the user namespace of whoever opens it (user_namespaces(7)), and holds for those made in it.
  Fd limit(openat(proc.get(), "sys/user/max_user_namespaces", O_WRONLY | O_CLOEXEC));
  if (!limit && errno != ENOENT) Must(-1, "open the limit of user namespaces");
  Attach(root, proc.get(), target);
  // Where the kernel's settings are. Most belong to host ids that the cell does not have; the network namespace's belong to its root.
  for (const char* part : {"sys", "sysrq-trigger", "irq", "bus", "fs"}) {
    Fd copy(OpenTree(proc.get(), part, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW));
    if (!copy && errno == ENOENT) continue;
    std::string name = target + "/" + part;
    Must(copy.get(), "copy", name);
    SetReadOnly(copy.get(), name);
    Fd place(openat(proc.get(), part, O_PATH | O_NOFOLLOW | O_CLOEXEC));
    Must(place.get(), "open", name);
    Must(MoveMount(copy.get(), place.get()), "mount", name);
  }
  return limit;
}

static void MountDevpts(int root) {
  const std::string target = "/dev/pts";
  Fd context(FsOpen("devpts"));
  Must(context.get(), "open devpts for", target);
  Must(FsFlag(context.get(), "newinstance"), "ask for own terminals in", target);
  Must(FsSet(context.get(), "ptmxmode", "0666"), "set the mode of ptmx in", target);
  Must(FsSet(context.get(), "mode", "0620"), "set the mode of terminals in", target);
  // The kernel counts them over all instances (kernel.pty.max, 4096): no cell may take them all.
  Must(FsSet(context.get(), "max", "64"), "limit the terminals in", target);
  Fd mount = MakeMount(context.get(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, target);
  Attach(root, mount.get(), target);
}

// The host's devices are still in sight.
static void MountDevices(int root) {
  Fd folder = MakeTmpfs(kDevSize, 0755, "/dev", MOUNT_ATTR_NOEXEC);
  Attach(root, folder.get(), "/dev");
  for (auto& device : kDevices) {
    std::string path = std::string("/dev/") + device.name;
    Fd node(OpenTree(AT_FDCWD, path.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW));
    Must(node.get(), "copy the host's", path);
    struct stat status;
    Must(fstat(node.get(), &status), "look at the host's", path);
    if (!S_ISCHR(status.st_mode) || status.st_rdev != makedev(device.major, device.minor)) Fail("show " + path + ": the host's is another device", ENODEV);
    struct mount_attr attributes = {};
    attributes.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC;
    attributes.propagation = MS_PRIVATE;
    Must(SetMountAttributes(node.get(), "", AT_EMPTY_PATH, &attributes), "set the attributes of", path);
    Attach(root, node.get(), path);
  }
  for (auto& link : kLinks) Must(symlinkat(link.to, folder.get(), link.name), "make the link /dev/" + std::string(link.name));
  MountDevpts(root);
}

Skeleton BuildSkeleton() {
  struct mount_attr alone = {};
  alone.propagation = MS_PRIVATE;
  Must(SetMountAttributes(AT_FDCWD, "/", AT_RECURSIVE, &alone), "part from the host's mounts");
  // On top of the host's root, which always is a place to mount on; then the two change places.
  Fd host(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  Must(host.get(), "open the host's root");
  Skeleton made;
  made.root = MakeTmpfs(kRootSize, 0755, "/");
  Must(MoveMount(made.root.get(), host.get()), "mount the root");
  made.user_namespaces = MountProc(made.root.get());
  MountDevices(made.root.get());
  EnterRoot(made.root.get());
  return made;
}

void EnterRoot(int root) {
  Must(fchdir(root), "enter the new root");
  Must(syscall(SYS_pivot_root, ".", "."), "take the new root");
  // The old root now lies on the new one.
  Must(syscall(SYS_umount2, ".", kDetach), "let go of the old root");
  Must(chdir("/"), "enter the new root");
}

}  // namespace ambit
