// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include "common/fd.hpp"

namespace ambit {

// The directory that the daemon writes the bundle into, by descriptor. Made if it is missing, and taken away again if nothing came
// into it.
class EvidenceDirectory {
 public:
  EvidenceDirectory() = default;
  EvidenceDirectory(const EvidenceDirectory&) = delete;
  EvidenceDirectory& operator=(const EvidenceDirectory&) = delete;
  ~EvidenceDirectory();
  // Throws Failure: it exists and is not empty, is a link, or cannot be made.
  void Open(const std::string& path);
  // Throws Failure: the path no longer leads to the directory that was opened, so that a reader would take other evidence for the cell's.
  void Confirm() const;
  int get() const { return fd_.get(); }

 private:
  std::string path_;
  bool made_ = false;
  Fd fd_;
};

}  // namespace ambit
