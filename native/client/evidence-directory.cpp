// SPDX-License-Identifier: Apache-2.0
#include "client/evidence-directory.hpp"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <cerrno>
#include <cstring>
#include "client/failure.hpp"

namespace ambit {

EvidenceDirectory::~EvidenceDirectory() {
  // rmdir leaves a directory alone that holds anything.
  if (made_) rmdir(path_.c_str());
}

void EvidenceDirectory::Open(const std::string& path) {
  auto failed = [&](const std::string& why) {
    return Failure{kExitUsage, "", "prepare the evidence directory " + path, why, "name a directory that is empty or does not exist, in a folder that you may write"};
  };
  path_ = path;
  // A command line may hold what nobody else should read, and so does the evidence of it.
  made_ = mkdir(path.c_str(), 0700) == 0;
  if (!made_ && errno != EEXIST) throw failed(strerror(errno));
  fd_ = Fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd_) throw failed(strerror(errno));
  if (made_) return;
  DIR* listing = fdopendir(dup(fd_.get()));
  if (listing == nullptr) throw failed(strerror(errno));
  bool empty = true;
  while (dirent* entry = readdir(listing)) empty = empty && (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0);
  closedir(listing);
  if (!empty) throw failed("it is not empty");
}

}  // namespace ambit
