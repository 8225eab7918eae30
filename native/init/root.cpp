// SPDX-License-Identifier: Apache-2.0
#include "init/root.hpp"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cstdio>
#include "common/failure.hpp"
#include "common/mount-api.hpp"

namespace ambit {

constexpr int kDetach = 2;  // MNT_DETACH of sys/mount.h, which clashes with linux/mount.h

// The folder that holds `target`, made where it is missing, and the last part of its name. No link is followed: a part
// that is one is no directory. All of it is ours; the plan was refused if it lies in a tree that a job can write.
static Fd OpenParent(int root, const std::string& target, std::string* name) {
  Fd at(OpenAt2(root, ".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0));
  Must(at.get(), "open the root for", target);
  size_t begin = 1;
  for (size_t end; (end = target.find('/', begin)) != std::string::npos; begin = end + 1) {
    std::string part = target.substr(begin, end - begin);
    Fd next(openat(at.get(), part.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    if (!next && errno == ENOENT) {
      Must(mkdirat(at.get(), part.c_str(), 0755), "make the folders of", target);
      next = Fd(openat(at.get(), part.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    }
    Must(next.get(), "walk to", target);
    at = std::move(next);
  }
  *name = target.substr(begin);
  return at;
}

// Moves a detached mount to its place, which is made if it is missing.
static void Attach(int root, int mount, const std::string& target) {
  struct stat what;
  Must(fstat(mount, &what), "look at the mount for", target);
  std::string name;
  Fd parent = OpenParent(root, target, &name);
  if (S_ISDIR(what.st_mode)) {
    if (mkdirat(parent.get(), name.c_str(), 0755) < 0 && errno != EEXIST) Must(-1, "make", target);
  } else {
    Fd made(openat(parent.get(), name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0644));
    if (!made && errno != EEXIST) Must(-1, "make", target);
  }
  Fd place(openat(parent.get(), name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
  Must(place.get(), "open", target);
  struct stat there;
  Must(fstat(place.get(), &there), "look at", target);
  if (S_ISLNK(there.st_mode)) Fail("mount on " + target + ": it is a link", ELOOP);
  Must(MoveMount(mount, place.get()), "mount", target);
}

static Fd MakeMount(int context, unsigned attributes, const std::string& target) {
  Must(FsCreate(context), "make the file system for", target);
  Fd mount(FsMount(context, attributes));
  Must(mount.get(), "make the mount for", target);
  return mount;
}

static Fd MakeTmpfs(uint64_t size, uint32_t mode, const std::string& target, unsigned more = 0) {
  Fd context(FsOpen("tmpfs"));
  Must(context.get(), "open tmpfs for", target);
  char text[32];
  snprintf(text, sizeof text, "%llu", static_cast<unsigned long long>(size));
  Must(FsSet(context.get(), "size", text), "set the size of", target);
  snprintf(text, sizeof text, "%o", mode);
  Must(FsSet(context.get(), "mode", text), "set the mode of", target);
  Fd mount = MakeMount(context.get(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | more, target);
  return mount;
}

static void SetReadOnly(int mount, const std::string& target) {
  struct mount_attr attributes = {};
  attributes.attr_set = MOUNT_ATTR_RDONLY;
  Must(SetMountAttributes(mount, "", AT_EMPTY_PATH, &attributes), "make read-only", target);
}

// The table is that of the user namespace of whoever opens it (user_namespaces(7)), and holds for those made in it.
static void ForbidUserNamespaces(int proc) {
  Fd limit(openat(proc, "sys/user/max_user_namespaces", O_WRONLY | O_CLOEXEC));
  if (!limit && errno == ENOENT) return;
  Must(limit.get(), "open the limit of user namespaces");
  Must(static_cast<int>(write(limit.get(), "0", 1)), "forbid user namespaces in the cell");
}

static void MountProc(int root, const std::string& target, bool user_namespaces) {
  Fd context(FsOpen("proc"));
  Must(context.get(), "open proc for", target);
  // The name is of Linux 5.8; before, hidepid held for the whole pid namespace and was a number.
  if (FsSet(context.get(), "hidepid", "noaccess") < 0) Must(FsSet(context.get(), "hidepid", "1"), "hide processes in", target);
  Fd proc = MakeMount(context.get(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, target);
  if (!user_namespaces) ForbidUserNamespaces(proc.get());
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
}

static void MountDevpts(int root, const std::string& target) {
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

static void MakeFile(int root, const MountStep& step) {
  std::string name;
  Fd parent = OpenParent(root, step.target, &name);
  Fd file(openat(parent.get(), name.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_NOFOLLOW | O_CLOEXEC, 0600));
  Must(file.get(), "make", step.target);
  for (size_t at = 0; at < step.content.size();) at += Must(static_cast<int>(write(file.get(), step.content.data() + at, step.content.size() - at)), "write", step.target);
  Must(fchmod(file.get(), step.mode), "set the mode of", step.target);
}

static void MakeDirectory(int root, const MountStep& step) {
  std::string name;
  Fd parent = OpenParent(root, step.target, &name);
  if (mkdirat(parent.get(), name.c_str(), 0700) < 0 && errno != EEXIST) Must(-1, "make", step.target);
  Fd made(openat(parent.get(), name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  Must(made.get(), "open", step.target);
  Must(fchmod(made.get(), step.mode), "set the mode of", step.target);
}

static void MakeLink(int root, const MountStep& step) {
  std::string name;
  Fd parent = OpenParent(root, step.target, &name);
  Must(symlinkat(step.content.c_str(), parent.get(), name.c_str()), "make the link", step.target);
}

// An overlay of the layers that come before it in the plan. They are mounted in `scratch` and named from there: kernels
// before 6.15 take only layers that are mounted in the namespace, and those before 6.13 no descriptors.
static Fd MakeOverlay(const Plan& plan, size_t at, std::map<uint16_t, Fd>* trees, int scratch) {
  const MountStep& step = plan.mounts[at];
  size_t first = at;
  while (first > 0 && (plan.mounts[first - 1].flags & kLayer) != 0) first--;
  std::string lower, upper;
  for (size_t i = first; i < at; i++) {
    auto tree = trees->find(static_cast<uint16_t>(i));
    if (tree == trees->end()) Fail("find a layer of " + step.target, ENOENT);
    std::string name = std::to_string(i);
    Must(mkdirat(scratch, name.c_str(), 0700), "make a place for a layer of", step.target);
    Fd place(openat(scratch, name.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    Must(place.get(), "open the place for a layer of", step.target);
    Must(MoveMount(tree->second.get(), place.get()), "mount a layer of", step.target);
    trees->erase(tree);
    if ((plan.mounts[i].flags & kUpper) != 0) upper = name;
    else lower += (lower.empty() ? "" : ":") + name;
  }
  Fd context(FsOpen("overlay"));
  Must(context.get(), "open an overlay for", step.target);
  Must(fchdir(scratch), "enter the folder of layers");
  // Without it the kernel keeps its notes in attributes that only the host's root may write (EXDEV, EPERM).
  Must(FsFlag(context.get(), "userxattr"), "ask for notes in user attributes in", step.target);
  Must(FsSet(context.get(), "lowerdir", lower.c_str()), "set the lower layers of", step.target);
  if (!upper.empty()) {
    Must(FsSet(context.get(), "upperdir", (upper + "/upper").c_str()), "set the upper layer of", step.target);
    Must(FsSet(context.get(), "workdir", (upper + "/work").c_str()), "set the work folder of", step.target);
  }
  const unsigned more = ((step.flags & kNoexec) != 0 ? MOUNT_ATTR_NOEXEC : 0) | (upper.empty() ? MOUNT_ATTR_RDONLY : 0);
  Fd mount = MakeMount(context.get(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | more, step.target);
  Must(chdir("/"), "leave the folder of layers");
  return mount;
}

// All overlays of the plan, by their place in it, mounted nowhere yet. The folder of layers is gone when this returns: what
// stayed mounted below the cell's root would lie open to it through ".." once the host's root is let go.
static std::map<size_t, Fd> MakeOverlays(const Plan& plan, std::map<uint16_t, Fd>* trees, int host) {
  std::map<size_t, Fd> overlays;
  Fd scratch;
  for (size_t i = 0; i < plan.mounts.size(); i++) {
    if (plan.mounts[i].type != kOverlay) continue;
    if (!scratch) {
      scratch = MakeTmpfs(1024 * 1024, 0700, "the layers");
      Must(MoveMount(scratch.get(), host), "mount the folder of layers");
    }
    overlays[i] = MakeOverlay(plan, i, trees, scratch.get());
  }
  if (!scratch) return overlays;
  Must(fchdir(scratch.get()), "enter the folder of layers");
  Must(static_cast<int>(syscall(SYS_umount2, ".", kDetach)), "let go of the folder of layers");
  Must(chdir("/"), "leave the folder of layers");
  return overlays;
}

// A walk by ".." ends on whatever is mounted on top of the root, where one from "/" does not: nothing may be.
static void MustBeAlone(const Plan& plan, int root) {
  struct stat ours, above;
  Must(fstat(root, &ours), "look at the root");
  for (auto& step : plan.mounts) {
    if ((step.type != kTmpfs && step.type != kProc) || step.target.rfind('/') != 0) continue;
    Must(stat((step.target + "/..").c_str(), &above), "look above", step.target);
    if (above.st_dev != ours.st_dev || above.st_ino != ours.st_ino) Fail("let go of the host's root: it lies on the new one", EBUSY);
    return;
  }
}

void BuildRoot(const Plan& plan, std::map<uint16_t, Fd> trees) {
  struct mount_attr alone = {};
  alone.propagation = MS_PRIVATE;
  Must(SetMountAttributes(AT_FDCWD, "/", AT_RECURSIVE, &alone), "part from the host's mounts");
  // On top of the host's root, which always is a place to mount on; then the two change places.
  Fd host(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  Must(host.get(), "open the host's root");
  std::map<size_t, Fd> overlays = MakeOverlays(plan, &trees, host.get());
  // The root is the first of all mounts, if it is one of them.
  const bool image = !overlays.empty() && plan.mounts[overlays.begin()->first].target == "/";
  Fd root = image ? std::move(overlays.begin()->second) : MakeTmpfs(plan.root_size, 0755, "/");
  Must(MoveMount(root.get(), host.get()), "mount the root");

  for (size_t i = 0; i < plan.mounts.size(); i++) {
    const MountStep& step = plan.mounts[i];
    switch (step.type) {
      case kBind: {
        if ((step.flags & kLayer) != 0) break;
        auto tree = trees.find(static_cast<uint16_t>(i));
        if (tree == trees.end()) break;  // optional, and not there
        Attach(root.get(), tree->second.get(), step.target);
        trees.erase(tree);
        break;
      }
      case kOverlay:
        if (step.target != "/") Attach(root.get(), overlays[i].get(), step.target);
        break;
      case kTmpfs: {
        Fd mount = MakeTmpfs(step.size, step.mode, step.target, (step.flags & kNoexec) != 0 ? MOUNT_ATTR_NOEXEC : 0);
        Attach(root.get(), mount.get(), step.target);
        break;
      }
      case kProc: MountProc(root.get(), step.target, plan.user_namespaces == 1); break;
      case kDevpts: MountDevpts(root.get(), step.target); break;
      case kDirectory: MakeDirectory(root.get(), step); break;
      case kFile: MakeFile(root.get(), step); break;
      case kSymlink: MakeLink(root.get(), step); break;
    }
  }

  Must(fchdir(root.get()), "enter the new root");
  Must(syscall(SYS_pivot_root, ".", "."), "take the new root");
  // The old root now lies on the new one.
  Must(syscall(SYS_umount2, ".", kDetach), "let go of the host's root");
  Must(chdir("/"), "enter the new root");
  if (!image) SetReadOnly(root.get(), "/");
  MustBeAlone(plan, root.get());
}

}  // namespace ambit
