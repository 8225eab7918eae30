// SPDX-License-Identifier: Apache-2.0
#include "spawner/trees.hpp"
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include "common/failure.hpp"
#include "common/mount-api.hpp"
#include "spawner/launch.hpp"

namespace ambit {

// Looks paths up with another's rights. Leaving uid 0 drops the capabilities that override file permissions and keeps
// CAP_SYS_ADMIN (capabilities(7)); the spawner has no supplementary groups to lend.
class FileUser {
 public:
  FileUser(uint32_t uid, uint32_t gid) {
    setfsgid(gid);
    setfsuid(uid);
    // These two calls report no error: asking for an impossible id tells what holds.
    if (static_cast<uint32_t>(setfsgid(-1)) != gid || static_cast<uint32_t>(setfsuid(-1)) != uid) {
      Restore();
      Fail("take the caller's rights on files", EPERM);
    }
  }
  ~FileUser() { Restore(); }
  FileUser(const FileUser&) = delete;
  FileUser& operator=(const FileUser&) = delete;

 private:
  // A change of ids forgets whose death is watched.
  static void Restore() { setfsuid(0); setfsgid(0); DieAsBefore(); }
};

static Fd OpenSource(const MountStep& mount) {
  // The plan resolved every link; one that is there now was put there since.
  constexpr uint64_t kResolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  if ((mount.flags & kAsUser) == 0) return Fd(OpenAt2(AT_FDCWD, mount.source.c_str(), O_PATH | O_CLOEXEC, kResolve));
  FileUser user(mount.as_uid, mount.as_gid);
  Fd fd(OpenAt2(AT_FDCWD, mount.source.c_str(), O_PATH | O_CLOEXEC, kResolve));
  return fd;
}

// No file of the tree has an owner that the mount knows. The kernel lets nobody write to such a file, whatever its mode says
// (fs/namei.c, inode_permission), and connecting to a socket is writing to it (net/unix/af_unix.c, unix_find_bsd): so a tree that
// is only to be read gives no socket and no FIFO to speak to, also none that is made later. False: a file system cannot map.
static bool OwnedByNobody(int tree, unsigned deep, OwnerMaps& owners) {
  // The last id there is; a map must have an entry, and this one is nobody's.
  constexpr uint32_t kNoOwner = UINT32_MAX - 1;
  struct mount_attr map = {};
  map.attr_set = MOUNT_ATTR_IDMAP;
  map.userns_fd = owners.For(kNoOwner, kNoOwner, kNoOwner, 1);
  if (SetMountAttributes(tree, "", AT_EMPTY_PATH | deep, &map) == 0) return true;
  if (deep != 0) SetMountAttributes(tree, "", AT_EMPTY_PATH, &map);
  return false;
}

static Fd OpenTreeOf(const MountStep& mount, const Plan& plan, const std::vector<Fd>& given, OwnerMaps& owners, bool* unheld) {
  Fd opened;
  int source = -1;
  if (mount.source_fd >= 0) {
    source = given[mount.source_fd].get();
  } else {
    opened = OpenSource(mount);
    if (!opened && (errno == ENOENT || errno == ENOTDIR) && (mount.flags & kOptional) != 0) return {};
    source = Must(opened.get(), "open", mount.source);
  }
  if ((mount.flags & kSocket) != 0) {
    struct stat status;
    Must(fstat(source, &status), "look at", mount.source);
    if (!S_ISSOCK(status.st_mode)) Fail("show " + mount.target + ": it is no socket", ENOTSOCK);
  }

  const unsigned deep = (mount.flags & kRecursive) != 0 ? AT_RECURSIVE : 0;
  Fd tree(OpenTree(source, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | deep));
  Must(tree.get(), "copy the mount for", mount.target);
  struct mount_attr attributes = {};
  attributes.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
  if ((mount.flags & kReadonly) != 0) attributes.attr_set |= MOUNT_ATTR_RDONLY;
  if ((mount.flags & kNoexec) != 0) attributes.attr_set |= MOUNT_ATTR_NOEXEC;
  // A copy is in its source's peer group: what the host mounts there later would appear in the cell.
  attributes.propagation = MS_PRIVATE;
  Must(SetMountAttributes(tree.get(), "", AT_EMPTY_PATH | deep, &attributes), "set the attributes of", mount.target);
  if ((mount.flags & (kIdmap | kIdmapAll)) != 0) {
    struct mount_attr map = {};
    map.attr_set = MOUNT_ATTR_IDMAP;
    map.userns_fd = (mount.flags & kIdmapAll) != 0 ? owners.For(0, 0, plan.base, plan.count) : owners.For(mount.owner_uid, mount.owner_gid, plan.base);
    const int mapped = SetMountAttributes(tree.get(), "", AT_EMPTY_PATH | deep, &map);
    // A socket of a file system that cannot map is judged by its mode alone, for others.
    if ((mount.flags & kSocket) == 0) Must(mapped, "map the owner of files (the file system must support idmapped mounts) in", mount.target);
  }
  if ((mount.flags & kNobody) != 0 && !OwnedByNobody(tree.get(), deep, owners)) *unheld = true;
  return tree;
}

std::vector<Tree> OpenTrees(const Plan& plan, const std::vector<Fd>& given, OwnerMaps& owners, uint32_t* unheld) {
  std::vector<Tree> trees;
  *unheld = 0;
  for (size_t i = 0; i < plan.mounts.size(); i++) {
    if (plan.mounts[i].type != kBind) continue;
    bool open = false;
    Fd tree = OpenTreeOf(plan.mounts[i], plan, given, owners, &open);
    if (open) ++*unheld;
    if (tree) trees.push_back({static_cast<uint16_t>(i), std::move(tree)});
  }
  return trees;
}

}  // namespace ambit
