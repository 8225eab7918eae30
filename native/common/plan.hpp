// SPDX-License-Identifier: Apache-2.0
// The launch plan as it travels from the addon through the spawner to cell-init: little-endian integers and
// counted strings in one sealed memfd, so that nobody can change it while it is read.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace ambit {

constexpr uint32_t kPlanMagic = 0x31424d41;  // "AMB1"

enum MountType : uint32_t { kBind, kTmpfs, kDirectory, kFile, kSymlink, kOverlay };
// kLayer: a bind that is no mount of its own but a layer of the overlay that follows, the top one first. kUpper: the layer
// that takes the writes; it holds the folders "upper" and "work". kIdmapAll: every owner on disk keeps its number in the
// cell, root too. kFromJobs: an overlay over what jobs of before may have written.
enum MountFlag : uint32_t { kReadonly = 1, kRecursive = 2, kNoexec = 4, kAsUser = 8, kIdmap = 16, kOptional = 32, kLayer = 64, kUpper = 128, kIdmapAll = 256, kFromJobs = 512, kSocket = 1024, kNobody = 2048 };
enum LandlockFlag : uint32_t { kLandlockRead = 1, kLandlockWrite = 2, kLandlockExecute = 4 };

struct MountStep {
  uint32_t type = 0;
  uint32_t flags = 0;
  std::string source;         // path of a bind, or
  int32_t source_fd = -1;     // its place among the descriptors that came with the plan
  std::string target;         // absolute, in the cell
  uint32_t as_uid = 0, as_gid = 0;
  uint32_t owner_uid = 0, owner_gid = 0;
  uint64_t size = 0;
  uint32_t mode = 0;
  std::string content;        // of a file, or where a link leads
};

struct Rlimit { uint32_t resource; uint64_t soft, hard; };
struct LandlockRule { std::string path; uint32_t access; };

struct Plan {
  std::string id;
  uint32_t base = 0, count = 0;       // host ids of the cell, as they were reserved
  std::string hostname;
  uint32_t uid = 0, gid = 0;          // in the cell
  std::string cwd;
  std::vector<std::string> argv, env;
  std::vector<Rlimit> rlimits;
  std::vector<MountStep> mounts;
  uint32_t landlock = 0;              // 1: rules hold, 0: no Landlock
  std::vector<LandlockRule> rules;
  std::string seccomp;                // struct sock_filter[], empty: none
  uint32_t user_namespaces = 0;       // 1: the cell may make some in its own
  uint64_t capabilities = 0;          // bit N: the command keeps capability N, in the cell's user namespace
};

class Writer {
 public:
  void U32(uint32_t v) { bytes_.append(reinterpret_cast<const char*>(&v), sizeof v); }
  void U64(uint64_t v) { bytes_.append(reinterpret_cast<const char*>(&v), sizeof v); }
  void Str(std::string_view v) { U32(static_cast<uint32_t>(v.size())); bytes_.append(v); }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// Every read is bounded; after the first one that is not, `ok` stays false and all that follows is empty.
class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), end_(data + size) {}
  uint32_t U32() { uint32_t v = 0; Take(&v, sizeof v); return v; }
  uint64_t U64() { uint64_t v = 0; Take(&v, sizeof v); return v; }
  std::string Str() {
    uint32_t size = U32();
    if (!ok_ || size > static_cast<size_t>(end_ - at_)) { ok_ = false; return {}; }
    std::string text(at_, size);
    at_ += size;
    return text;
  }
  // A count of things that take at least four bytes each: no larger than what is left.
  uint32_t Count() {
    uint32_t n = U32();
    if (n > static_cast<size_t>(end_ - at_) / 4) { ok_ = false; return 0; }
    return n;
  }
  bool ok() const { return ok_; }
  bool done() const { return ok_ && at_ == end_; }

 private:
  void Take(void* out, size_t size) {
    if (!ok_ || size > static_cast<size_t>(end_ - at_)) { ok_ = false; return; }
    memcpy(out, at_, size);
    at_ += size;
  }
  const char* at_;
  const char* end_;
  bool ok_ = true;
};

inline std::string Encode(const Plan& p) {
  Writer w;
  auto list = [&](const std::vector<std::string>& items) { w.U32(items.size()); for (auto& item : items) w.Str(item); };
  w.U32(kPlanMagic); w.Str(p.id); w.U32(p.base); w.U32(p.count); w.Str(p.hostname);
  w.U32(p.uid); w.U32(p.gid); w.Str(p.cwd); list(p.argv); list(p.env);
  w.U32(p.rlimits.size());
  for (auto& r : p.rlimits) { w.U32(r.resource); w.U64(r.soft); w.U64(r.hard); }
  w.U32(p.mounts.size());
  for (auto& m : p.mounts) {
    w.U32(m.type); w.U32(m.flags); w.Str(m.source); w.U32(m.source_fd); w.Str(m.target); w.U32(m.as_uid); w.U32(m.as_gid);
    w.U32(m.owner_uid); w.U32(m.owner_gid); w.U64(m.size); w.U32(m.mode); w.Str(m.content);
  }
  w.U32(p.landlock); w.U32(p.rules.size());
  for (auto& r : p.rules) { w.Str(r.path); w.U32(r.access); }
  w.Str(p.seccomp); w.U32(p.user_namespaces); w.U64(p.capabilities);
  return w.bytes();
}

// False for anything that `Encode` did not write; `*p` then holds whatever was read so far.
inline bool Decode(const char* data, size_t size, Plan* p) {
  Reader r(data, size);
  auto list = [&](std::vector<std::string>* items) { for (uint32_t n = r.Count(); n > 0 && r.ok(); n--) items->push_back(r.Str()); };
  if (r.U32() != kPlanMagic) return false;
  p->id = r.Str(); p->base = r.U32(); p->count = r.U32(); p->hostname = r.Str();
  p->uid = r.U32(); p->gid = r.U32(); p->cwd = r.Str(); list(&p->argv); list(&p->env);
  for (uint32_t n = r.Count(); n > 0 && r.ok(); n--) { Rlimit l; l.resource = r.U32(); l.soft = r.U64(); l.hard = r.U64(); p->rlimits.push_back(l); }
  for (uint32_t n = r.Count(); n > 0 && r.ok(); n--) {
    MountStep m;
    m.type = r.U32(); m.flags = r.U32(); m.source = r.Str(); m.source_fd = static_cast<int32_t>(r.U32()); m.target = r.Str(); m.as_uid = r.U32(); m.as_gid = r.U32();
    m.owner_uid = r.U32(); m.owner_gid = r.U32(); m.size = r.U64(); m.mode = r.U32(); m.content = r.Str();
    p->mounts.push_back(std::move(m));
  }
  p->landlock = r.U32();
  for (uint32_t n = r.Count(); n > 0 && r.ok(); n--) { LandlockRule l; l.path = r.Str(); l.access = r.U32(); p->rules.push_back(std::move(l)); }
  p->seccomp = r.Str(); p->user_namespaces = r.U32(); p->capabilities = r.U64();
  return r.done();
}

}  // namespace ambit
