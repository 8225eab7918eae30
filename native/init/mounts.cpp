// SPDX-License-Identifier: Apache-2.0
#include "init/mounts.hpp"
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cstdio>
#include "common/failure.hpp"
#include "common/mount-api.hpp"

namespace ambit {

Fd OpenParent(int root, const std::string& target, std::string* name) {
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

void Attach(int root, int mount, const std::string& target) {
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

Fd MakeMount(int context, unsigned attributes, const std::string& target) {
  Must(FsCreate(context), "make the file system for", target);
  Fd mount(FsMount(context, attributes));
  Must(mount.get(), "make the mount for", target);
  return mount;
}

Fd MakeTmpfs(uint64_t size, uint32_t mode, const std::string& target, unsigned more) {
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

void SetReadOnly(int mount, const std::string& target) {
  struct mount_attr attributes = {};
  attributes.attr_set = MOUNT_ATTR_RDONLY;
  Must(SetMountAttributes(mount, "", AT_EMPTY_PATH, &attributes), "make read-only", target);
}

}  // namespace ambit
