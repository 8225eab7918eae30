// SPDX-License-Identifier: Apache-2.0
#include "client/evidence-directory.hpp"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <cerrno>
#include <cstring>
#include "client/failure.hpp"

namespace ambit {

static bool IsLink(const std::string& path) {
  struct stat status;
  return lstat(path.c_str(), &status) == 0 && S_ISLNK(status.st_mode);
}

EvidenceDirectory::~EvidenceDirectory() {
  // rmdir leaves a directory alone that holds anything.
  if (made_) rmdir(path_.c_str());
}

void EvidenceDirectory::Open(const std::string& path) {
  auto failed = [&](const std::string& why) {
    return Failure{kExitUsage, "", "prepare the evidence directory " + path, why, "name a directory that is empty or does not exist, in a folder that you may write"};
  };
  // A link of this name may be a job's, which had the folder as its workspace; with a slash behind it, it would be followed.
  path_ = path.substr(0, path.find_last_not_of('/') + 1);
  if (path_.empty()) path_ = path;
  // A command line may hold what nobody else should read, and so does the evidence of it.
  made_ = mkdir(path_.c_str(), 0700) == 0;
  if (!made_ && errno != EEXIST) throw failed(strerror(errno));
  fd_ = Fd(open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd_) throw failed(IsLink(path_) ? "it is a link: name where it leads" : strerror(errno));
  if (made_) return;
  DIR* listing = fdopendir(dup(fd_.get()));
  if (listing == nullptr) throw failed(strerror(errno));
  bool empty = true;
  while (dirent* entry = readdir(listing)) empty = empty && (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0);
  closedir(listing);
  if (!empty) throw failed("it is not empty");
}

void EvidenceDirectory::Confirm() const {
  struct stat given, there;
  if (fstat(fd_.get(), &given) == 0 && lstat(path_.c_str(), &there) == 0 && given.st_dev == there.st_dev && given.st_ino == there.st_ino) return;
  throw Failure{kExitCellFailed, "", "leave the evidence in " + path_, "another directory has taken its place: what is there now is not this cell's evidence",
                "use a directory that the job cannot write to; the daemon keeps a copy of the evidence"};
}

}  // namespace ambit
