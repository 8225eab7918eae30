// SPDX-License-Identifier: Apache-2.0
#include "launch-plan.hpp"
#include <linux/capability.h>
#include <sys/resource.h>
#include <cmath>
#include <string>

using namespace ambit;

namespace {

[[noreturn]] void Wrong(Napi::Env env, const std::string& field, const char* wanted) {
  throw Napi::TypeError::New(env, "LaunchPlan." + field + " must be " + wanted);
}

Napi::Object ObjectAt(const Napi::Value& value, const std::string& field) {
  if (!value.IsObject()) Wrong(value.Env(), field, "an object");
  return value.As<Napi::Object>();
}

std::string Text(const Napi::Value& value, const std::string& field) {
  if (!value.IsString()) Wrong(value.Env(), field, "a string");
  return value.As<Napi::String>().Utf8Value();
}

// A whole number from 0 to 2^53; Infinity, where limits are meant, stands for "none".
uint64_t Whole(const Napi::Value& value, const std::string& field) {
  if (!value.IsNumber()) Wrong(value.Env(), field, "a number");
  double number = value.As<Napi::Number>().DoubleValue();
  if (number == INFINITY) return UINT64_MAX;
  if (!(number >= 0 && number <= 9007199254740992.0) || number != std::floor(number)) Wrong(value.Env(), field, "a whole number that is not negative");
  return static_cast<uint64_t>(number);
}

uint32_t Number32(const Napi::Value& value, const std::string& field) {
  uint64_t number = Whole(value, field);
  if (number > UINT32_MAX) Wrong(value.Env(), field, "below 2^32");
  return static_cast<uint32_t>(number);
}

int Descriptor(const Napi::Value& value, const std::string& field) {
  uint64_t number = Whole(value, field);
  if (number > INT32_MAX) Wrong(value.Env(), field, "a descriptor");
  return static_cast<int>(number);
}

bool Flag(const Napi::Object& from, const char* name, const std::string& field) {
  Napi::Value value = from.Get(name);
  if (value.IsUndefined()) return false;
  if (!value.IsBoolean()) Wrong(from.Env(), field + "." + name, "true or false");
  return value.As<Napi::Boolean>().Value();
}

template <typename Each>
void ForEach(const Napi::Value& value, const std::string& field, Each each) {
  if (!value.IsArray()) Wrong(value.Env(), field, "an array");
  Napi::Array array = value.As<Napi::Array>();
  for (uint32_t i = 0; i < array.Length(); i++) {
    Napi::HandleScope scope(value.Env());
    each(array.Get(i), field + "[" + std::to_string(i) + "]");
  }
}

std::vector<std::string> Texts(const Napi::Value& value, const std::string& field) {
  std::vector<std::string> texts;
  ForEach(value, field, [&](const Napi::Value& one, const std::string& name) { texts.push_back(Text(one, name)); });
  return texts;
}

void ReadSource(const Napi::Object& from, const std::string& field, MountStep* mount, std::vector<int>* fds) {
  Napi::Value source = from.Get("source");
  if (source.IsNumber()) {
    mount->source_fd = static_cast<int32_t>(fds->size() - 3);
    fds->push_back(Descriptor(source, field + ".source"));
  } else {
    mount->source = Text(source, field + ".source");
  }
  auto owner = [&](const char* name, uint32_t flag, uint32_t* uid, uint32_t* gid) {
    Napi::Value value = from.Get(name);
    if (value.IsUndefined()) return;
    Napi::Object ids = ObjectAt(value, field + "." + name);
    mount->flags |= flag;
    *uid = Number32(ids.Get("uid"), field + "." + name + ".uid");
    *gid = Number32(ids.Get("gid"), field + "." + name + ".gid");
  };
  owner("asUser", kAsUser, &mount->as_uid, &mount->as_gid);
  owner("idmapOwner", kIdmap, &mount->owner_uid, &mount->owner_gid);
  if (Flag(from, "idmapAll", field)) mount->flags |= kIdmapAll;
}

void ReadBind(const Napi::Object& from, const std::string& field, MountStep* mount, std::vector<int>* fds) {
  ReadSource(from, field, mount, fds);
  for (auto [name, flag] : {std::pair{"readonly", kReadonly}, {"recursive", kRecursive}, {"noexec", kNoexec}, {"optional", kOptional}, {"socket", kSocket}, {"nobody", kNobody}}) {
    if (Flag(from, name, field)) mount->flags |= flag;
  }
}

// One step for each layer, the upper one first, then the overlay itself.
void ReadOverlay(const Napi::Object& from, const std::string& field, const std::string& target, std::vector<MountStep>* mounts, std::vector<int>* fds) {
  auto layer = [&](const Napi::Value& value, const std::string& at, uint32_t flags) {
    MountStep step;
    step.target = target;
    step.flags = kLayer | flags;
    ReadSource(ObjectAt(value, at), at, &step, fds);
    mounts->push_back(std::move(step));
  };
  Napi::Value upper = from.Get("upper");
  if (!upper.IsUndefined()) layer(upper, field + ".upper", kUpper);
  ForEach(from.Get("lower"), field + ".lower", [&](const Napi::Value& one, const std::string& at) { layer(one, at, kReadonly); });
  MountStep overlay;
  overlay.type = kOverlay;
  overlay.target = target;
  if (Flag(from, "noexec", field)) overlay.flags |= kNoexec;
  if (Flag(from, "fromJobs", field)) overlay.flags |= kFromJobs;
  mounts->push_back(std::move(overlay));
}

void ReadMount(const Napi::Value& value, const std::string& field, std::vector<MountStep>* mounts, std::vector<int>* fds) {
  Napi::Object from = ObjectAt(value, field);
  MountStep mount;
  mount.target = Text(from.Get("target"), field + ".target");
  std::string type = Text(from.Get("type"), field + ".type");
  if (type == "overlay") return ReadOverlay(from, field, mount.target, mounts, fds);
  if (type == "bind") {
    mount.type = kBind;
    ReadBind(from, field, &mount, fds);
  } else if (type == "tmpfs") {
    mount.type = kTmpfs;
    if (Flag(from, "noexec", field)) mount.flags |= kNoexec;
    mount.size = Whole(from.Get("sizeBytes"), field + ".sizeBytes");
    mount.mode = Number32(from.Get("mode"), field + ".mode");
  } else if (type == "directory") {
    mount.type = kDirectory;
    mount.mode = Number32(from.Get("mode"), field + ".mode");
  } else if (type == "file") {
    mount.type = kFile;
    mount.content = Text(from.Get("content"), field + ".content");
    mount.mode = Number32(from.Get("mode"), field + ".mode");
  } else if (type == "symlink") {
    mount.type = kSymlink;
    mount.content = Text(from.Get("to"), field + ".to");
  } else {
    Wrong(value.Env(), field + ".type", "bind, overlay, tmpfs, directory, file or symlink");
  }
  mounts->push_back(std::move(mount));
}

uint64_t ReadCapabilities(const Napi::Value& value) {
  uint64_t held = 0;
  ForEach(value, "capabilities", [&](const Napi::Value& one, const std::string& at) {
    std::string name = Text(one, at);
    for (auto [known, number] : {std::pair{"CHOWN", CAP_CHOWN}, {"DAC_OVERRIDE", CAP_DAC_OVERRIDE}, {"FOWNER", CAP_FOWNER}, {"FSETID", CAP_FSETID}, {"KILL", CAP_KILL}, {"SETGID", CAP_SETGID}, {"SETUID", CAP_SETUID}, {"NET_BIND_SERVICE", CAP_NET_BIND_SERVICE}}) {
      if (name == known) { held |= 1ull << number; return; }
    }
    Wrong(value.Env(), at, "one of the capabilities that a cell can keep");
  });
  return held;
}

Rlimit ReadLimit(const Napi::Value& value, const std::string& field) {
  Napi::Object from = ObjectAt(value, field);
  std::string name = Text(from.Get("name"), field + ".name");
  for (auto [known, resource] : {std::pair{"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"core", RLIMIT_CORE}, {"fsize", RLIMIT_FSIZE}, {"stack", RLIMIT_STACK}, {"memlock", RLIMIT_MEMLOCK}}) {
    if (name == known) return {static_cast<uint32_t>(resource), Whole(from.Get("soft"), field + ".soft"), Whole(from.Get("hard"), field + ".hard")};
  }
  Wrong(value.Env(), field + ".name", "nofile, nproc, core, fsize, stack or memlock");
}

LandlockRule ReadRule(const Napi::Value& value, const std::string& field) {
  Napi::Object from = ObjectAt(value, field);
  LandlockRule rule = {Text(from.Get("path"), field + ".path"), 0};
  ForEach(from.Get("access"), field + ".access", [&](const Napi::Value& one, const std::string& at) {
    std::string access = Text(one, at);
    if (access == "read") rule.access |= kLandlockRead;
    else if (access == "write") rule.access |= kLandlockWrite;
    else if (access == "execute") rule.access |= kLandlockExecute;
    else Wrong(value.Env(), at, "read, write or execute");
  });
  return rule;
}

}  // namespace

Reservation ReadReservation(const Napi::Value& value) {
  Napi::Object from = ObjectAt(value, "");
  Reservation reservation;
  reservation.id = Text(from.Get("id"), "id");
  Napi::Object cgroups = ObjectAt(from.Get("cgroups"), "cgroups");
  reservation.cgroup = Text(cgroups.Get("v2"), "cgroups.v2");
  reservation.v1 = Texts(cgroups.Get("v1"), "cgroups.v1");
  Napi::Object ids = ObjectAt(from.Get("ids"), "ids");
  reservation.base = Number32(ids.Get("base"), "ids.base");
  reservation.count = Number32(ids.Get("count"), "ids.count");
  return reservation;
}

Plan ReadLaunchPlan(const Napi::Value& value, std::vector<int>* fds) {
  Napi::Object from = ObjectAt(value, "");
  Plan plan;
  plan.id = Text(from.Get("id"), "id");
  plan.argv = Texts(from.Get("argv"), "argv");
  plan.env = Texts(from.Get("env"), "env");
  plan.cwd = Text(from.Get("cwd"), "cwd");
  ForEach(from.Get("stdio"), "stdio", [&](const Napi::Value& one, const std::string& field) { fds->push_back(Descriptor(one, field)); });
  if (fds->size() != 3) Wrong(value.Env(), "stdio", "three descriptors");
  Napi::Object ids = ObjectAt(from.Get("ids"), "ids");
  plan.base = Number32(ids.Get("base"), "ids.base");
  plan.count = Number32(ids.Get("count"), "ids.count");
  plan.hostname = Text(from.Get("hostname"), "hostname");
  plan.uid = Number32(from.Get("uid"), "uid");
  plan.gid = Number32(from.Get("gid"), "gid");
  ForEach(from.Get("mounts"), "mounts", [&](const Napi::Value& one, const std::string& field) { ReadMount(one, field, &plan.mounts, fds); });
  ForEach(from.Get("rlimits"), "rlimits", [&](const Napi::Value& one, const std::string& field) { plan.rlimits.push_back(ReadLimit(one, field)); });
  if (Napi::Value kept = from.Get("capabilities"); !kept.IsUndefined()) plan.capabilities = ReadCapabilities(kept);
  Napi::Value landlock = from.Get("landlock");
  if (!landlock.IsNull()) {
    plan.landlock = 1;
    ForEach(ObjectAt(landlock, "landlock").Get("rules"), "landlock.rules", [&](const Napi::Value& one, const std::string& field) { plan.rules.push_back(ReadRule(one, field)); });
  }
  Napi::Value seccomp = from.Get("seccomp");
  if (!seccomp.IsNull()) {
    if (!seccomp.IsBuffer()) Wrong(value.Env(), "seccomp", "a Buffer or null");
    auto filter = seccomp.As<Napi::Buffer<char>>();
    if (filter.Length() == 0) Wrong(value.Env(), "seccomp", "a filter, not an empty Buffer");
    plan.seccomp.assign(filter.Data(), filter.Length());
  }
  if (Flag(from, "userNamespaces", "plan")) plan.user_namespaces = 1;
  return plan;
}
