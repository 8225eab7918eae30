// SPDX-License-Identifier: Apache-2.0
// Feeds damaged plans to the decoder and the checks under the address sanitizer. Argument: the seed. Prints what it saw.
#include <cstdio>
#include <cstdlib>
#include <random>
#include "common/check.hpp"
#include "common/plan.hpp"

using namespace ambit;

static Plan Whole() {
  Plan plan;
  plan.id = "cell";
  plan.base = 100000;
  plan.count = 65536;
  plan.hostname = "cell";
  plan.cwd = "/";
  plan.argv = {"sh", "-c", "true"};
  plan.env = {"PATH=/bin", "EMPTY="};
  plan.rlimits = {{7, 10, 20}};
  MountStep bind;
  bind.source = bind.target = "/usr";
  bind.flags = kReadonly | kRecursive;
  MountStep file;
  file.type = kFile;
  file.target = "/etc/hosts";
  file.content = std::string("a\0b", 3);
  plan.mounts = {bind, file};
  plan.landlock = 1;
  plan.rules = {{"/usr", 5}};
  plan.seccomp = std::string(16, '\6');
  return plan;
}

int main(int, char** argv) {
  std::mt19937 random(atoi(argv[1]));
  const std::string bytes = Encode(Whole());
  Plan whole;
  if (!Decode(bytes.data(), bytes.size(), &whole) || !WhatIsWrong(whole, 0).empty() || Encode(whole) != bytes) return 1;
  for (size_t size = 0; size < bytes.size(); size++) {
    // A copy of exactly that size, so that a read beyond it is seen.
    std::string cut(bytes, 0, size);
    cut.shrink_to_fit();
    Plan plan;
    if (Decode(cut.data(), cut.size(), &plan)) return 2;
  }
  int decoded = 0, refused = 0, accepted = 0;
  for (int round = 0; round < 20000; round++) {
    std::string damaged = bytes;
    for (int n = 1 + random() % 4; n > 0; n--) {
      size_t at = random() % damaged.size();
      if (random() % 2 != 0) {
        damaged[at] = static_cast<char>(random());
      } else {
        const uint32_t values[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, static_cast<uint32_t>(damaged.size())};
        memcpy(&damaged[std::min(at, damaged.size() - 4)], &values[random() % 6], 4);
      }
    }
    if (random() % 8 == 0) damaged.resize(random() % damaged.size());
    Plan plan;
    if (!Decode(damaged.data(), damaged.size(), &plan)) continue;
    decoded++;
    if (!WhatIsWrong(plan, 0).empty()) { refused++; continue; }
    accepted++;
    if (plan.base == 0 || plan.argv.empty() || plan.mounts.size() > kMaxMounts) return 3;
  }
  printf("decoded %d refused %d accepted %d\n", decoded, refused, accepted);
  return decoded > 0 && refused > 0 && accepted > 0 ? 0 : 4;
}
