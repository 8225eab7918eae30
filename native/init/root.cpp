// SPDX-License-Identifier: Apache-2.0
#include "init/root.hpp"
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "common/failure.hpp"
#include "common/mount-api.hpp"
#include "init/mounts.hpp"

namespace ambit {

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

// Where layers are mounted while overlays are made of them.
constexpr char kScratch[] = "/.ambit-layers";

// All overlays of the plan, by their place in it, mounted nowhere yet. The folder of layers is gone when this returns: what
// stayed mounted would lie open to the cell.
static std::map<size_t, Fd> MakeOverlays(const Plan& plan, std::map<uint16_t, Fd>* trees, int root) {
  std::map<size_t, Fd> overlays;
  Fd scratch;
  for (size_t i = 0; i < plan.mounts.size(); i++) {
    if (plan.mounts[i].type != kOverlay) continue;
    if (!scratch) {
      scratch = MakeTmpfs(1024 * 1024, 0700, "the layers");
      Attach(root, scratch.get(), kScratch);
    }
    overlays[i] = MakeOverlay(plan, i, trees, scratch.get());
  }
  if (!scratch) return overlays;
  Must(static_cast<int>(syscall(SYS_umount2, kScratch, kDetach)), "let go of the layers");
  Must(rmdir(kScratch), "remove the folder of layers");
  return overlays;
}

// A walk by ".." ends on whatever is mounted on top of the root, where one from "/" does not: nothing may be.
static void MustBeAlone(int root) {
  struct stat ours, above;
  Must(fstat(root, &ours), "look at the root");
  Must(stat("/proc/..", &above), "look above /proc");
  if (above.st_dev != ours.st_dev || above.st_ino != ours.st_ino) Fail("let go of the root before: it lies on the new one", EBUSY);
}

// An image takes the skeleton's place, and takes over what lies in it.
static void BecomeRoot(Fd image, Skeleton* skeleton) {
  Fd under(open("/", O_PATH | O_DIRECTORY | O_CLOEXEC));
  Must(under.get(), "open the root");
  Must(MoveMount(image.get(), under.get()), "mount the image");
  for (const char* part : {"proc", "dev"}) {
    Fd mount(openat(skeleton->root.get(), part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    Must(mount.get(), "open the cell's own folder", part);
    Attach(image.get(), mount.get(), std::string("/") + part);
  }
  EnterRoot(image.get());
  skeleton->root = std::move(image);
}

void BuildRoot(const Plan& plan, std::map<uint16_t, Fd> trees, Skeleton skeleton) {
  if (plan.user_namespaces == 0 && skeleton.user_namespaces) Must(static_cast<int>(write(skeleton.user_namespaces.get(), "0", 1)), "forbid user namespaces in the cell");
  std::map<size_t, Fd> overlays = MakeOverlays(plan, &trees, skeleton.root.get());
  // The root is the first of all mounts, if it is one of them.
  const bool image = !overlays.empty() && plan.mounts[overlays.begin()->first].target == "/";
  if (image) BecomeRoot(std::move(overlays.begin()->second), &skeleton);
  const int root = skeleton.root.get();

  for (size_t i = 0; i < plan.mounts.size(); i++) {
    const MountStep& step = plan.mounts[i];
    switch (step.type) {
      case kBind: {
        if ((step.flags & kLayer) != 0) break;
        auto tree = trees.find(static_cast<uint16_t>(i));
        if (tree == trees.end()) break;  // optional, and not there
        Attach(root, tree->second.get(), step.target);
        trees.erase(tree);
        break;
      }
      case kOverlay:
        if (step.target != "/") Attach(root, overlays[i].get(), step.target);
        break;
      case kTmpfs: {
        Fd mount = MakeTmpfs(step.size, step.mode, step.target, (step.flags & kNoexec) != 0 ? MOUNT_ATTR_NOEXEC : 0);
        Attach(root, mount.get(), step.target);
        break;
      }
      case kDirectory: MakeDirectory(root, step); break;
      case kFile: MakeFile(root, step); break;
      case kSymlink: MakeLink(root, step); break;
    }
  }
  if (!image) SetReadOnly(root, "/");
  MustBeAlone(root);
}

}  // namespace ambit
