// SPDX-License-Identifier: Apache-2.0
// What a decoded plan must be like before anything is done with it. Bounds and shapes only: what a cell may hold was
// decided by whoever wrote the plan.
#pragma once
#include <linux/capability.h>
#include <string>
#include <string_view>
#include "common/messages.hpp"
#include "common/plan.hpp"

namespace ambit {

constexpr size_t kMaxMounts = 8192;
constexpr size_t kMaxRules = 65536;
constexpr size_t kFilterInstruction = 8;  // struct sock_filter
constexpr size_t kMaxFilter = 4096 * kFilterInstruction;  // BPF_MAXINSNS
constexpr size_t kMaxPath = 4095;

inline bool IsText(std::string_view text) { return text.find('\0') == std::string_view::npos; }

// Absolute, without empty, "." and ".." parts: no step of a walk along it leads back or sideways.
inline bool IsPlainPath(std::string_view path) {
  if (path.empty() || path[0] != '/' || path.size() > kMaxPath || !IsText(path)) return false;
  if (path == "/") return true;
  for (size_t at = 1;;) {
    size_t end = path.find('/', at);
    std::string_view part = path.substr(at, end == std::string_view::npos ? end : end - at);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return false;
    if (end == std::string_view::npos) return true;
    at = end + 1;
  }
}

// `path` lies below `folder`, or is it.
inline bool IsInside(std::string_view path, std::string_view folder) {
  if (folder == "/") return true;
  return path.substr(0, folder.size()) == folder && (path.size() == folder.size() || path[folder.size()] == '/');
}

inline bool IsWritableBind(const MountStep& mount) { return mount.type == kBind && (mount.flags & (kReadonly | kLayer)) == 0; }

// A tree in which jobs, of before or of now, may have put links: nothing of ours is mounted in it. The root of an image is
// none, because the cell's own folders lie in a layer above the image.
inline bool IsOfJobs(const MountStep& mount) { return IsWritableBind(mount) || (mount.type == kOverlay && mount.target != "/"); }

// What a command may keep at most: none of these reaches beyond the ids of the cell (src/contract/capabilities.ts has the reasons).
constexpr uint64_t kHarmlessCapabilities = 1ull << CAP_CHOWN | 1ull << CAP_DAC_OVERRIDE | 1ull << CAP_FOWNER | 1ull << CAP_FSETID |
    1ull << CAP_KILL | 1ull << CAP_SETGID | 1ull << CAP_SETUID | 1ull << CAP_NET_BIND_SERVICE;

// What is wrong with the layers and their overlays, or an empty string.
inline std::string WhatIsWrongWithLayers(const std::vector<MountStep>& mounts) {
  size_t layers = 0;
  for (size_t i = 0; i < mounts.size(); i++) {
    auto& m = mounts[i];
    bool layer = m.type == kBind && (m.flags & kLayer) != 0;
    if (layers > 0 && ((!layer && m.type != kOverlay) || m.target != mounts[i - 1].target)) return "the layers of " + mounts[i - 1].target + ": their overlay is missing";
    if (m.type == kOverlay && layers == 0) return "the overlay " + m.target + ": it has no layers";
    if ((m.flags & kUpper) != 0 && (!layer || layers > 0 || (m.flags & kReadonly) != 0)) return "the upper layer of " + m.target;
    if (layer && (m.flags & (kUpper | kReadonly)) == 0) return "a layer of " + m.target + ": it could be written";
    // The root is what everything else is mounted on: it comes first.
    if (m.target == "/" && !(layer && i == layers) && !(m.type == kOverlay && i == layers)) return "the target of a mount: /";
    layers = layer ? layers + 1 : 0;
  }
  return layers > 0 ? "the layers of " + mounts.back().target + ": their overlay is missing" : "";
}

// A host id of 0 in the map would make the job root on the host wherever the kernel asks only for the id.
inline bool IsIdRange(uint32_t base, uint32_t count) { return base != 0 && count >= 2 && count <= UINT32_MAX - base; }

// An empty string, or what is wrong. `given`: descriptors that came for binds.
inline std::string WhatIsWrong(const Plan& p, size_t given) {
  if (p.id.empty() || p.id.size() >= kIdSize || !IsText(p.id) || p.id.find('/') != std::string::npos) return "the id";
  if (!IsIdRange(p.base, p.count)) return "the range of ids";
  if (p.uid >= p.count - 1 || p.gid >= p.count - 1) return "the ids of the command: the last one is cell-init's";
  if (p.hostname.empty() || p.hostname.size() > 64 || !IsText(p.hostname)) return "the host name";
  if (!IsPlainPath(p.cwd)) return "the working directory";
  if (p.argv.empty() || p.argv[0].empty()) return "the command";
  for (auto& word : p.argv) if (!IsText(word)) return "an argument: it holds a NUL";
  for (auto& word : p.env) if (!IsText(word) || word.find('=') == std::string::npos || word[0] == '=') return "a variable of the environment";
  for (auto& limit : p.rlimits) if (limit.resource > 15 || limit.soft > limit.hard) return "a resource limit";
  if (p.landlock > 1 || p.rules.size() > kMaxRules) return "the Landlock rules";
  for (auto& rule : p.rules) if (!IsPlainPath(rule.path) || rule.access == 0 || rule.access > 7) return "a Landlock rule";
  if (p.seccomp.size() % kFilterInstruction != 0 || p.seccomp.size() > kMaxFilter) return "the size of the seccomp filter";
  if (p.user_namespaces > 1) return "whether user namespaces may be made";
  if ((p.capabilities & ~kHarmlessCapabilities) != 0) return "the capabilities: one of them reaches beyond the cell";
  if (p.mounts.size() > kMaxMounts) return "the number of mounts";
  if (std::string wrong = WhatIsWrongWithLayers(p.mounts); !wrong.empty()) return wrong;
  for (size_t i = 0; i < p.mounts.size(); i++) {
    auto& m = p.mounts[i];
    if (m.type > kOverlay || m.flags > 4095) return "the type of a mount";
    if (!IsPlainPath(m.target) || (m.target == "/" && m.type != kBind && m.type != kOverlay)) return "the target of a mount: " + m.target;
    if (m.mode > 01777) return "the mode of " + m.target;
    if (m.type == kTmpfs && m.size < 4096) return "the size of " + m.target;
    if (m.type == kSymlink && (m.content.empty() || m.content.size() > kMaxPath || !IsText(m.content))) return "where the link " + m.target + " leads";
    if (m.type == kBind && m.source_fd < 0 && !IsPlainPath(m.source)) return "the source of " + m.target;
    if (m.type == kBind && m.source_fd >= 0 && static_cast<size_t>(m.source_fd) >= given) return "the descriptor for " + m.target;
    // A job of before may have left links and races in a tree that it can write: nothing of ours walks there.
    for (size_t j = 0; j < i; j++) {
      if (!IsOfJobs(p.mounts[j]) || !IsInside(m.target, p.mounts[j].target)) continue;
      if (m.target != p.mounts[j].target || m.type == kFile || m.type == kSymlink || m.type == kDirectory) return m.target + ": it lies in " + p.mounts[j].target + ", which jobs can write";
    }
  }
  return {};
}

}  // namespace ambit
