// SPDX-License-Identifier: Apache-2.0
#include "probes.hpp"
#include "call-table.hpp"
#include <fcntl.h>
#include <linux/btf.h>
#include <bpf/btf.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include "relay.h"

namespace {

constexpr size_t kBatchBytes = 256 * 1024;
// The reader waits when JavaScript is this many batches behind: the ring fills and the kernel counts what it drops.
constexpr size_t kBatchesAhead = 64;

const char* const kObjects[] = {"syscalls", "process", "files", "lsm", "network", "relay"};
const char* const kSharedMaps[] = {"cells", "events", "counters", "seen", "tasks", "syscall_counts", "exec_held", "exec_allowed"};
const char* const kKindNames[AMBIT_KIND_COUNT] = {
    "", "exec", "exec.failed", "fork", "exit", "file", "file.failed", "connect", "syscall.refused", "tls", "syscalls", "fork.failed"};

struct Hook {
  const char* object;
  const char* program;
  const char* name;
  const char* family;
  const char* instead;  // what does its work where this kernel has it not; null: nothing, evidence has a gap then
};
const char* const kNoLsm =
    "descriptors and path arguments at the exit of the call, not an LSM hook: io_uring is not seen, another thread can swap a "
    "descriptor";
const char* const kBesideLsm = "opens are told by lsm/file_open; changes and looks by path arguments at the exit of the call";
// In the order of attaching: files_exit must run before syscalls_exit, and entries must be known before exits are judged.
const Hook kHooks[] = {
    {"lsm", "lsm_file_open", "lsm/file_open", "file", "opened files are told at the exit of the call"},
    {"lsm", "lsm_exec", "lsm/bprm_check_security", "exec", "programs are held by Landlock and the cell's root alone"},
    {"files", "files_exit", "tp_btf/sys_exit (files)", "file", nullptr},
    {"files", "files_exit", "tp_btf/sys_exit (failed execs)", "exec", nullptr},
    {"process", "process_exec", "tp_btf/sched_process_exec", "exec", nullptr},
    {"process", "process_fork", "tp_btf/sched_process_fork", "process", nullptr},
    {"process", "process_exit", "tp_btf/sched_process_exit", "process", nullptr},
    {"syscalls", "syscalls_fork", "tp_btf/sched_process_fork (newborn threads)", "syscall", nullptr},
    {"syscalls", "syscalls_exec", "tp_btf/sched_process_exec (the command's start)", "syscall", nullptr},
    {"syscalls", "syscalls_enter", "tp_btf/sys_enter", "syscall", nullptr},
    {"syscalls", "syscalls_exit", "tp_btf/sys_exit", "syscall", nullptr},
    {"syscalls", "syscalls_gone", "tp_btf/sched_process_exit (unfinished calls)", "syscall", nullptr},
    {"network", "network_connect4", "cgroup/connect4", "network", nullptr},
    {"network", "network_connect6", "cgroup/connect6", "network", nullptr},
    {"network", "network_sendmsg4", "cgroup/sendmsg4", "network", nullptr},
    {"network", "network_sendmsg6", "cgroup/sendmsg6", "network", nullptr},
    {"relay", "relay_lookup", "sk_lookup (relay)", "network", nullptr},
};

// libbpf has one printer for the whole process and no context: what it says meanwhile on this thread is caught here.
thread_local std::string* caught = nullptr;
int CatchLog(enum libbpf_print_level level, const char* format, va_list args) {
  if (level == LIBBPF_DEBUG || caught == nullptr) return 0;
  char line[1024];
  int length = vsnprintf(line, sizeof line, format, args);
  if (length > 0 && caught->size() < 64 * 1024) caught->append(line);
  return 0;
}
class LogCatcher {
 public:
  LogCatcher() { libbpf_set_print(CatchLog); caught = &text_; }
  ~LogCatcher() { caught = nullptr; }
  LogCatcher(const LogCatcher&) = delete;
  // The first line that speaks of a failure, or what errno says.
  std::string Reason(int error) const {
    std::string reason = strerror(error);
    for (size_t at = 0; at < text_.size();) {
      size_t end = text_.find('\n', at);
      if (end == std::string::npos) end = text_.size();
      std::string line = text_.substr(at, end - at);
      at = end + 1;
      if (line.find("BEGIN PROG LOAD LOG") != std::string::npos) continue;
      if (line.find("failed") != std::string::npos || line.find("Invalid") != std::string::npos || line.find("denied") != std::string::npos) return reason + ": " + line;
    }
    return reason;
  }

 private:
  std::string text_;
};

// Sets a `const volatile` of the object, if it has one of that name and size.
template <typename T>
void SetRodata(bpf_object* object, const char* name, T value) {
  const btf* types = bpf_object__btf(object);
  bpf_map* map = bpf_object__find_map_by_name(object, ".rodata");
  if (types == nullptr || map == nullptr) return;
  int id = btf__find_by_name_kind(types, ".rodata", BTF_KIND_DATASEC);
  if (id < 0) return;
  size_t size = 0;
  char* data = static_cast<char*>(const_cast<void*>(bpf_map__initial_value(map, &size)));
  const btf_type* section = btf__type_by_id(types, id);
  const btf_var_secinfo* variable = btf_var_secinfos(section);
  for (int i = 0; i < btf_vlen(section); i++, variable++) {
    const btf_type* type = btf__type_by_id(types, variable->type);
    if (strcmp(btf__name_by_offset(types, type->name_off), name) != 0) continue;
    if (variable->size == sizeof value && variable->offset + sizeof value <= size) memcpy(data + variable->offset, &value, sizeof value);
  }
}

// The id of the cells' parent, if it really is one level above them from here; else 0, and the programs do without the
// short cut: in a cgroup namespace the levels that are visible are not all there are.
uint64_t ParentId(int parent, int level) {
  struct stat own, at;
  if (fstat(parent, &own) != 0) return 0;
  ambit::Fd folder(fcntl(parent, F_DUPFD_CLOEXEC, 0));
  for (int depth = 0; depth < level; depth++) {
    folder = ambit::Fd(openat(folder.get(), "..", O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!folder || fstat(folder.get(), &at) != 0) return 0;
    if (at.st_dev != own.st_dev) return depth == level - 1 ? own.st_ino : 0;
  }
  return 0;
}

uint64_t CellArgument(const Napi::CallbackInfo& info) {
  if (!info[0].IsBigInt()) throw Napi::TypeError::New(info.Env(), "the cgroup id must be a bigint");
  bool lossless;
  uint64_t cell = info[0].As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) throw Napi::TypeError::New(info.Env(), "the cgroup id must fit into 64 bits");
  return cell;
}
uint32_t NumberArgument(const Napi::CallbackInfo& info, size_t place, const char* what) {
  if (!info[place].IsNumber()) throw Napi::TypeError::New(info.Env(), std::string(what) + " must be a number");
  return info[place].As<Napi::Number>().Uint32Value();
}
std::string TextArgument(const Napi::CallbackInfo& info, size_t place, const char* what) {
  if (!info[place].IsString()) throw Napi::TypeError::New(info.Env(), std::string(what) + " must be a string");
  return info[place].As<Napi::String>().Utf8Value();
}

Napi::Object ReportOf(Napi::Env env, const std::string& name, const std::string& family, const std::string& state, const std::string& detail) {
  Napi::Object report = Napi::Object::New(env);
  report.Set("name", name);
  report.Set("family", family);
  report.Set("state", state);
  report.Set("detail", detail);
  return report;
}

}  // namespace

void Probes::Register(Napi::Env env, Napi::Object exports) {
  exports.Set("Probes", DefineClass(env, "Probes", {
    InstanceMethod<&Probes::Load>("load"), InstanceMethod<&Probes::Attach>("attach"), InstanceMethod<&Probes::Detach>("detach"),
    InstanceMethod<&Probes::AddCell>("addCell"), InstanceMethod<&Probes::ReadCell>("readCell"), InstanceMethod<&Probes::RemoveCell>("removeCell"),
    InstanceMethod<&Probes::HoldPrograms>("holdPrograms"), InstanceMethod<&Probes::Flush>("flush"), InstanceMethod<&Probes::AttachTls>("attachTls"), InstanceMethod<&Probes::DetachTls>("detachTls"),
    InstanceMethod<&Probes::AttachRelay>("attachRelay"), InstanceMethod<&Probes::RelayAnswers>("relayAnswers"), InstanceMethod<&Probes::DetachRelay>("detachRelay"), InstanceMethod<&Probes::Close>("close"),
    InstanceMethod<&Probes::Keepable>("keepable"), InstanceMethod<&Probes::Inherited>("inherited"), InstanceMethod<&Probes::AdoptRelay>("adoptRelay"),
  }));
}

void RegisterProbes(Napi::Env env, Napi::Object exports) { Probes::Register(env, exports); }

Probes::Probes(const Napi::CallbackInfo& info)
    : Napi::ObjectWrap<Probes>(info),
      objects_dir_(TextArgument(info, 0, "objectDir")),
      level_(static_cast<int>(NumberArgument(info, 1, "level"))),
      parent_(TextArgument(info, 2, "parentCgroup")) {
  Napi::Env env = info.Env();
  if (!info[3].IsFunction()) throw Napi::TypeError::New(env, "onBatch must be a function");
  if (info[4].IsNumber()) ring_bytes_ = NumberArgument(info, 4, "ringBytes");
  if (info.Length() > 5 && info[5].IsObject()) Inherit(info[5].As<Napi::Object>());
  parent_fd_ = ambit::Fd(open(parent_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!parent_fd_) ThrowErrno(env, "open the cells' cgroup", errno);
  parent_id_ = ParentId(parent_fd_.get(), level_);
  wake_ = ambit::Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) ThrowErrno(env, "eventfd", errno);
  channel_ = Channel::New(env, info[3].As<Napi::Function>(), "ambit probes", kBatchesAhead, 1, this);
  channel_.Unref(env);
  // After the channel's own hook, so before it: the reader is gone when the channel goes.
  napi_add_env_cleanup_hook(env, AtExit, this);
}

Probes::~Probes() {
  if (!closed_) {
    napi_remove_env_cleanup_hook(Env(), AtExit, this);
    CloseAll();
  }
}

void Probes::AtExit(void* self) { static_cast<Probes*>(self)->CloseAll(); }

void Probes::MustBeOpen(Napi::Env env) const {
  if (closed_) ThrowErrno(env, "use the probes after they were closed", EBADF);
}

void Probes::MustBeLoaded(Napi::Env env) const {
  MustBeOpen(env);
  if (!loaded_) ThrowErrno(env, "use the probes before they were loaded", EINVAL);
}

// Also for the TLS object: its level, its ring, the maps of the others.
int Probes::ShareMaps(bpf_object* object) {
  SetRodata<int>(object, "cell_level", level_);
  SetRodata<uint64_t>(object, "parent_id", parent_id_);
  for (const char* name : kSharedMaps) {
    bpf_map* map = bpf_object__find_map_by_name(object, name);
    if (map == nullptr) continue;
    if (strcmp(name, "events") == 0 && ring_bytes_ != 0 && shared_.count(name) == 0) {
      if (int error = bpf_map__set_max_entries(map, ring_bytes_)) return error;
    }
    auto known = shared_.find(name);
    if (known == shared_.end()) continue;
    if (int error = bpf_map__reuse_fd(map, known->second.get())) return error;
  }
  return 0;
}

int Probes::KeepMaps(bpf_object* object) {
  for (const char* name : kSharedMaps) {
    bpf_map* map = bpf_object__find_map_by_name(object, name);
    if (map == nullptr || shared_.count(name) != 0) continue;
    int fd = fcntl(bpf_map__fd(map), F_DUPFD_CLOEXEC, 0);
    if (fd < 0) return -errno;
    shared_.emplace(name, ambit::Fd(fd));
  }
  return 0;
}

std::string Probes::LoadObject(const char* name, ObjectPtr* out) {
  LogCatcher log;
  std::string path = objects_dir_ + "/" + name + ".bpf.o";
  ObjectPtr object(bpf_object__open_file(path.c_str(), nullptr));
  if (!object) return log.Reason(errno);
  uint64_t seed = 0;
  if (getrandom(&seed, sizeof seed, 0) != sizeof seed) return strerror(errno);
  SetRodata<uint64_t>(object.get(), "hash_seed", seed);
  if (int error = ShareMaps(object.get())) return log.Reason(-error);
  if (int error = bpf_object__load(object.get())) return log.Reason(-error);
  if (int error = KeepMaps(object.get())) return log.Reason(-error);
  *out = std::move(object);
  return {};
}

int Probes::StartRing() {
  auto events = shared_.find("events");
  if (events == shared_.end()) return 0;
  int fd = events->second.get();
  size_t page = sysconf(_SC_PAGESIZE);
  void* consumer = mmap(nullptr, page, PROT_READ, MAP_SHARED, fd, 0);
  if (consumer == MAP_FAILED) return -errno;
  consumed_ = static_cast<const volatile uint64_t*>(consumer);
  void* producer = mmap(nullptr, page, PROT_READ, MAP_SHARED, fd, page);
  if (producer == MAP_FAILED) return -errno;
  produced_ = static_cast<const volatile uint64_t*>(producer);
  ring_ = ring_buffer__new(fd, OnRecord, this, nullptr);
  if (ring_ == nullptr) return -errno;
  reader_ = std::thread([this] { ReadRing(); });
  return 0;
}

Napi::Value Probes::Load(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeOpen(env);
  if (loaded_) ThrowErrno(env, "load the probes a second time", EALREADY);
  libbpf_set_strict_mode(LIBBPF_STRICT_ALL);
  for (const char* name : kObjects) {
    Loaded loaded;
    loaded.why = LoadObject(name, &loaded.object);
    objects_.emplace(name, std::move(loaded));
  }
  bpf_object* files = objects_.at("files").object.get();
  if (int error = files == nullptr ? 0 : FillCallTable(files)) ThrowErrno(env, "fill the map of calls", -error);
  if (bpf_object* syscalls = objects_.at("syscalls").object.get()) {
    void* counts = mmap(nullptr, sizeof(ambit_count) * AMBIT_SLOTS * AMBIT_ROW, PROT_READ | PROT_WRITE, MAP_SHARED,
                        bpf_object__find_map_fd_by_name(syscalls, "syscall_counts"), 0);
    if (counts == MAP_FAILED) ThrowErrno(env, "map the syscall sets", errno);
    counts_ = static_cast<ambit_count*>(counts);
  }
  if (int error = InheritCells()) ThrowErrno(env, "read which cells there are", -error);
  if (int error = StartRing()) ThrowErrno(env, "read the ring", -error);
  loaded_ = true;
  return Report(env);
}

// Maps and links of a former daemon, by the names that `Keepable` gave them.
void Probes::Inherit(const Napi::Object& kept) {
  const Napi::Array names = kept.GetPropertyNames();
  for (uint32_t i = 0; i < names.Length(); i++) {
    const std::string name = names.Get(i).As<Napi::String>();
    ambit::Fd fd(kept.Get(name).As<Napi::Number>().Int32Value());
    if (name.starts_with("map ")) shared_[name.substr(4)] = std::move(fd);
    if (name.starts_with("link ")) inherited_[name.substr(5)] = std::move(fd);
  }
}

int Probes::InheritCells() {
  auto cells = shared_.find("cells");
  if (cells == shared_.end()) return 0;
  uint64_t id = 0;
  for (const uint64_t* from = nullptr; bpf_map_get_next_key(cells->second.get(), from, &id) == 0; from = &id) {
    struct { uint32_t init, slot; } value;
    if (bpf_map_lookup_elem(cells->second.get(), &id, &value) != 0) continue;
    if (value.slot >= AMBIT_SLOTS || slots_[value.slot]) return -EPROTO;
    slots_[value.slot] = true;
    cells_[id] = value.slot;
    delivered_[id] = Kinds{};
  }
  auto allowed = shared_.find("exec_allowed");
  ExecKey key = {};
  for (const ExecKey* from = nullptr; allowed != shared_.end() && bpf_map_get_next_key(allowed->second.get(), from, &key) == 0; from = &key) {
    if (cells_.count(key.cell) != 0) held_[key.cell].push_back(key);
  }
  return 0;
}

// What keeps counting while it is open, whoever holds it. The descriptors stay this object's.
Napi::Value Probes::Keepable(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  Napi::Object kept = Napi::Object::New(env);
  for (auto& [name, fd] : shared_) kept.Set("map " + name, fd.get());
  for (auto& [name, link] : links_) kept.Set("link " + name, bpf_link__fd(link.get()));
  for (auto& [name, fd] : inherited_) kept.Set("link " + name, fd.get());
  for (auto& [handle, relay] : relays_) kept.Set("relay " + std::to_string(handle), relay.link.get());
  return kept;
}

Napi::Value Probes::Inherited(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  Napi::Array list = Napi::Array::New(env);
  for (auto& [id, slot] : cells_) list[list.Length()] = Napi::BigInt::New(env, id);
  return list;
}

// The link holds its program, and that its map.
Napi::Value Probes::AdoptRelay(const Napi::CallbackInfo& info) {
  MustBeLoaded(info.Env());
  Relay relay;
  relay.link = ambit::Fd(static_cast<int>(NumberArgument(info, 0, "link")));
  relay.answers = ambit::Fd(static_cast<int>(NumberArgument(info, 1, "answers")));
  uint32_t handle = next_relay_++;
  relays_.emplace(handle, std::move(relay));
  return Napi::Number::New(info.Env(), handle);
}

// Before the first attach: what loaded can attach, and `attach` will tell.
bool Probes::InPlace(const char* object, const char* program) const {
  return objects_.at(object).why.empty() && refused_.count(program) == 0;
}

Napi::Array Probes::Report(Napi::Env env) const {
  Napi::Array list = Napi::Array::New(env);
  for (const Hook& hook : kHooks) {
    std::string state = "attached", detail;
    if (!InPlace(hook.object, hook.program)) {
      const std::string& why = objects_.at(hook.object).why;
      state = hook.instead == nullptr ? "missing" : "fallback";
      detail = why.empty() ? refused_.at(hook.program) : why;
      if (hook.instead != nullptr) detail = std::string(hook.instead) + ": " + detail;
    } else if (strcmp(hook.object, "relay") == 0) {
      detail = "loaded; attached to each cell's own network namespace";
    } else if (strcmp(hook.program, "files_exit") == 0 && strcmp(hook.family, "file") == 0) {
      bool lsm = InPlace("lsm", "lsm_file_open");
      if (!lsm) state = "fallback";
      detail = lsm ? kBesideLsm : kNoLsm;
    }
    list[list.Length()] = ReportOf(env, hook.name, hook.family, state, detail);
  }
  return list;
}

int Probes::LsmMap(const char* name) const {
  return bpf_object__find_map_fd_by_name(objects_.at("lsm").object.get(), name);
}

// Attached is not called: a file is opened, and the program must have heard of it.
void Probes::ListenToLsm() {
  if (links_.count("lsm_file_open") == 0) return;
  bpf_map* map = bpf_object__find_map_by_name(objects_.at("lsm").object.get(), ".bss");
  ambit::Fd any(open("/dev/null", O_RDONLY | O_CLOEXEC));
  // The only variable there.
  uint32_t heard = 0;
  const uint32_t first = 0;
  if (map != nullptr && bpf_map__value_size(map) == sizeof heard && bpf_map_lookup_elem(bpf_map__fd(map), &first, &heard) == 0 && heard != 0) return;
  for (const char* program : {"lsm_file_open", "lsm_exec"}) {
    links_.erase(program);
    refused_.emplace(program, "it attached and was never called: add bpf to the lsm= boot parameter");
  }
}

Napi::Value Probes::Attach(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  if (attached_) return Report(env);
  refused_.clear();
  for (const Hook& hook : kHooks) {
    bpf_object* object = objects_.at(hook.object).object.get();
    // The relay is attached to each cell's own namespace.
    if (object == nullptr || links_.count(hook.program) != 0 || inherited_.count(hook.program) != 0 || strcmp(hook.object, "relay") == 0) continue;
    LogCatcher log;
    bpf_program* program = bpf_object__find_program_by_name(object, hook.program);
    bpf_link* link = strcmp(hook.object, "network") == 0 ? bpf_program__attach_cgroup(program, parent_fd_.get()) : bpf_program__attach(program);
    if (link == nullptr) refused_[hook.program] = log.Reason(errno);
    else links_.emplace(hook.program, LinkPtr(link));
  }
  ListenToLsm();
  // Entries without exits, or exits without entries, would tell lies about every call.
  std::string broken;
  for (const Hook& hook : kHooks) {
    if (strcmp(hook.object, "syscalls") == 0 && refused_.count(hook.program) != 0) broken = refused_[hook.program];
  }
  if (!broken.empty()) {
    for (const Hook& hook : kHooks) {
      if (strcmp(hook.object, "syscalls") != 0) continue;
      links_.erase(hook.program);
      refused_.emplace(hook.program, "of no use alone: " + broken);
    }
  }
  attached_ = true;
  return Report(env);
}

void Probes::Detach(const Napi::CallbackInfo& info) {
  MustBeLoaded(info.Env());
  links_.clear();
  inherited_.clear();
  attached_ = false;
}

void Probes::AddCell(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  uint64_t id = CellArgument(info);
  uint32_t init = NumberArgument(info, 1, "initPid");
  if (cells_.count(id) != 0) ThrowErrno(env, "add a cell a second time", EEXIST);
  uint32_t slot = 0;
  while (slot < AMBIT_SLOTS && slots_[slot]) slot++;
  if (slot == AMBIT_SLOTS) ThrowErrno(env, "add a cell: every row of the syscall sets is taken", ENOSPC);
  auto cells = shared_.find("cells");
  auto counters = shared_.find("counters");
  if (cells == shared_.end() || counters == shared_.end()) ThrowErrno(env, "add a cell: no eBPF object could be loaded", ENOSYS);

  if (counts_ != nullptr) memset(static_cast<void*>(counts_ + slot * AMBIT_ROW), 0, sizeof(ambit_count) * AMBIT_ROW);
  {
    std::lock_guard lock(mutex_);
    delivered_[id] = Kinds{};
  }
  slots_[slot] = true;
  cells_[id] = slot;
  struct { uint64_t cell; uint32_t kind, reserved; } key{id, 0, 0};
  const uint64_t zeros[2] = {0, 0};
  for (key.kind = 1; key.kind < AMBIT_KIND_COUNT; key.kind++) {
    if (bpf_map_update_elem(counters->second.get(), &key, zeros, BPF_ANY) != 0) {
      int error = errno;
      ForgetCell(id);
      ThrowErrno(env, "make the counters of a cell", error);
    }
  }
  // Last: from here on the programs see the cell.
  struct { uint32_t init, slot; } value{init, slot};
  if (bpf_map_update_elem(cells->second.get(), &id, &value, BPF_NOEXIST) != 0) {
    int error = errno;
    ForgetCell(id);
    ThrowErrno(env, "add a cell", error);
  }
}

// What the cell may execute, before it starts: triples of device (kernel form), inode, and whether all below it is meant.
// False: there is no such hook on this kernel.
Napi::Value Probes::HoldPrograms(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  uint64_t id = CellArgument(info);
  if (!info[1].IsTypedArray() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_biguint64_array) throw Napi::TypeError::New(env, "programs must be a BigUint64Array");
  auto programs = info[1].As<Napi::BigUint64Array>();
  if (programs.ElementLength() % 3 != 0) throw Napi::TypeError::New(env, "programs must be triples");
  if (cells_.count(id) == 0) ThrowErrno(env, "hold the programs of a cell that is not there", ENOENT);
  if (links_.count("lsm_exec") == 0 && inherited_.count("lsm_exec") == 0) return Napi::Boolean::New(env, false);
  if (held_.count(id) != 0) ThrowErrno(env, "hold the programs of a cell a second time", EEXIST);
  std::vector<ExecKey>& keys = held_[id];
  for (size_t at = 0; at < programs.ElementLength(); at += 3) {
    ExecKey key{id, programs[at + 1], static_cast<uint32_t>(programs[at]), 0};
    const uint8_t rule = programs[at + 2] != 0 ? 2 : 1;
    if (bpf_map_update_elem(LsmMap("exec_allowed"), &key, &rule, BPF_ANY) != 0) ThrowErrno(env, "hold the programs of a cell", errno);
    keys.push_back(key);
  }
  const uint8_t one = 1;
  if (bpf_map_update_elem(LsmMap("exec_held"), &id, &one, BPF_ANY) != 0) ThrowErrno(env, "hold the programs of a cell", errno);
  return Napi::Boolean::New(env, true);
}

void Probes::ForgetCell(uint64_t id) {
  auto known = cells_.find(id);
  if (known == cells_.end()) return;
  if (auto held = held_.find(id); held != held_.end()) {
    bpf_map_delete_elem(LsmMap("exec_held"), &id);
    for (const ExecKey& key : held->second) bpf_map_delete_elem(LsmMap("exec_allowed"), &key);
    held_.erase(held);
  }
  bpf_map_delete_elem(shared_.at("cells").get(), &id);
  struct { uint64_t cell; uint32_t kind, reserved; } key{id, 0, 0};
  for (key.kind = 1; key.kind < AMBIT_KIND_COUNT; key.kind++) bpf_map_delete_elem(shared_.at("counters").get(), &key);
  slots_[known->second] = false;
  cells_.erase(known);
  std::lock_guard lock(mutex_);
  delivered_.erase(id);
}

void Probes::RemoveCell(const Napi::CallbackInfo& info) {
  MustBeLoaded(info.Env());
  ForgetCell(CellArgument(info));
}

Napi::Value Probes::ReadCell(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  uint64_t id = CellArgument(info);
  auto known = cells_.find(id);
  if (known == cells_.end()) ThrowErrno(env, "read a cell that is not there", ENOENT);

  Napi::Array calls = Napi::Array::New(env);
  uint64_t out_of_range = 0;
  if (counts_ != nullptr) {
    const ambit_count* row = counts_ + known->second * AMBIT_ROW;
    for (uint32_t place = 0; place + 1 < AMBIT_ROW; place++) {
      ambit_count count = row[place];
      if ((count.succeeded | count.failed | count.refused | count.unfinished) == 0) continue;
      Napi::Object call = Napi::Object::New(env);
      call.Set("arch", static_cast<double>(kFirstArch + place / AMBIT_NUMBERS));
      call.Set("nr", static_cast<double>(place % AMBIT_NUMBERS));
      call.Set("succeeded", static_cast<double>(count.succeeded));
      call.Set("failed", static_cast<double>(count.failed));
      call.Set("refused", static_cast<double>(count.refused));
      call.Set("unfinished", static_cast<double>(count.unfinished));
      calls[calls.Length()] = call;
    }
    out_of_range = row[AMBIT_ROW - 1].succeeded;
  }

  Kinds delivered;
  {
    std::lock_guard lock(mutex_);
    delivered = delivered_[id];
  }
  Napi::Array counters = Napi::Array::New(env);
  struct { uint64_t cell; uint32_t kind, reserved; } key{id, 0, 0};
  for (key.kind = 1; key.kind < AMBIT_KIND_COUNT; key.kind++) {
    uint64_t value[2];
    if (bpf_map_lookup_elem(shared_.at("counters").get(), &key, value) != 0) ThrowErrno(env, "read the counters of a cell", errno);
    Napi::Object counter = Napi::Object::New(env);
    counter.Set("event", kKindNames[key.kind]);
    counter.Set("produced", static_cast<double>(value[0]));
    counter.Set("delivered", static_cast<double>(delivered[key.kind]));
    counter.Set("dropped", static_cast<double>(value[1]));
    counters[counters.Length()] = counter;
  }
  Napi::Object result = Napi::Object::New(env);
  result.Set("syscalls", calls);
  result.Set("outOfRange", static_cast<double>(out_of_range));
  result.Set("counters", counters);
  return result;
}

int Probes::OnRecord(void* self, void* data, size_t size) {
  static_cast<Probes*>(self)->Take(static_cast<const uint8_t*>(data), size);
  return 0;
}

// A record whose own size is wrong is left out: it is missing from `delivered`, and so told as lost.
void Probes::Take(const uint8_t* data, size_t size) {
  if (size < sizeof(ambit_header)) return;
  ambit_header header;
  memcpy(&header, data, sizeof header);
  if (header.size < sizeof header || header.size > size || header.size % 8 != 0 || header.kind >= AMBIT_KIND_COUNT) return;
  {
    std::lock_guard lock(mutex_);
    auto cell = delivered_.find(header.cell);
    if (cell == delivered_.end()) return;
    cell->second[header.kind]++;
  }
  batch_.insert(batch_.end(), data, data + header.size);
  if (batch_.size() >= kBatchBytes) Send();
}

void Probes::Send() {
  if (batch_.empty()) return;
  auto item = std::make_unique<Item>();
  item->records = std::move(batch_);
  batch_ = {};
  if (channel_.BlockingCall(item.get()) == napi_ok) item.release();
}

void Probes::ReadRing() {
  pollfd sources[2] = {{ring_buffer__epoll_fd(ring_), POLLIN, 0}, {wake_.get(), POLLIN, 0}};
  bool flushing = false;
  while (!stop_) {
    // A record that is being written when a flush arrives wakes nobody if the ring was not empty: look again soon.
    if (poll(sources, 2, flushing ? 1 : -1) < 0 && errno != EINTR) return;
    uint64_t drained;
    while (read(wake_.get(), &drained, sizeof drained) > 0) {}
    if (stop_) return;
    ring_buffer__consume(ring_);
    Send();
    std::vector<uint64_t> done;
    {
      std::lock_guard lock(mutex_);
      std::erase_if(flushes_, [&](const auto& flush) {
        if (*consumed_ < flush.second) return false;
        done.push_back(flush.first);
        return true;
      });
      flushing = !flushes_.empty();
    }
    for (uint64_t token : done) {
      auto item = std::make_unique<Item>();
      item->flushed = token;
      if (channel_.BlockingCall(item.get()) == napi_ok) item.release();
    }
  }
}

void Probes::OnItem(Napi::Env env, Napi::Function callback, Probes* self, Item* raw) {
  std::unique_ptr<Item> item(raw);
  if (static_cast<napi_env>(env) == nullptr || self->closed_) return;
  if (item->flushed != 0) {
    auto waiting = self->waiting_.find(item->flushed);
    if (waiting == self->waiting_.end()) return;
    waiting->second.Resolve(env.Undefined());
    self->waiting_.erase(waiting);
    if (self->waiting_.empty()) self->channel_.Unref(env);
    return;
  }
  uint8_t* data = item->records.data();
  size_t size = item->records.size();
  auto buffer = Napi::Buffer<uint8_t>::New(env, data, size, [](Napi::Env, uint8_t*, Item* owner) { delete owner; }, item.release());
  callback.Call({buffer});
}

Napi::Value Probes::Flush(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  auto deferred = Napi::Promise::Deferred::New(env);
  if (ring_ == nullptr) {
    deferred.Resolve(env.Undefined());
    return deferred.Promise();
  }
  uint64_t token = next_flush_++;
  if (waiting_.empty()) channel_.Ref(env);
  waiting_.emplace(token, deferred);
  {
    std::lock_guard lock(mutex_);
    flushes_.emplace_back(token, *produced_);
  }
  const uint64_t one = 1;
  if (write(wake_.get(), &one, sizeof one) < 0) ThrowErrno(env, "wake the ring's reader", errno);
  return deferred.Promise();
}

Napi::Value Probes::AttachTls(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  std::string path = TextArgument(info, 0, "path");
  std::string flavour = TextArgument(info, 1, "flavour");
  LogCatcher log;
  if (!tls_) {
    tls_ = std::make_unique<TlsProbes>(objects_dir_ + "/tls.bpf.o", [this](bpf_object* object) { return ShareMaps(object); });
    tls_loaded_ = tls_->Load(&tls_refused_);
  }
  Napi::Array list = Napi::Array::New(env);
  if (!tls_loaded_) {
    list[0u] = ReportOf(env, "uprobe " + path, "api", "missing", tls_refused_);
    return list;
  }
  for (const HookState& hook : tls_->Attach(path, flavour)) list[list.Length()] = ReportOf(env, hook.name, hook.family, hook.state, hook.detail);
  return list;
}

void Probes::DetachTls(const Napi::CallbackInfo& info) {
  MustBeLoaded(info.Env());
  if (tls_loaded_) tls_->Detach();
}

// libbpf's loaded program, once more, with a map of its own: 0.1 ms instead of opening and relocating the object for each cell.
Napi::Value Probes::AttachRelay(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  int netns = static_cast<int>(NumberArgument(info, 0, "netns"));
  bpf_object* object = objects_.at("relay").object.get();
  if (object == nullptr) ThrowErrno(env, ("load the relay's program: " + objects_.at("relay").why).c_str(), ENOSYS);

  struct Place { const char* name; int domain, type; };
  const Place places[] = {{"relay4", AF_INET, SOCK_STREAM}, {"relay6", AF_INET6, SOCK_STREAM}, {"udp4", AF_INET, SOCK_DGRAM}, {"udp6", AF_INET6, SOCK_DGRAM}};
  Relay relay;
  relay.map = ambit::Fd(bpf_map_create(BPF_MAP_TYPE_SOCKMAP, "relay", sizeof(uint32_t), sizeof(uint64_t), std::size(places), nullptr));
  if (!relay.map) ThrowErrno(env, "make the relay's map", errno);
  LIBBPF_OPTS(bpf_map_create_opts, grown, .map_flags = BPF_F_NO_PREALLOC);
  relay.answers = ambit::Fd(bpf_map_create(BPF_MAP_TYPE_HASH, "answers", sizeof(ambit_answer), sizeof(uint8_t), AMBIT_ANSWERS, &grown));
  if (!relay.answers) ThrowErrno(env, "make the map of the relay's answers", errno);
  for (uint32_t place = 0; place < std::size(places); place++) {
    const auto& [name, domain, type] = places[place];
    const int fd = static_cast<int>(NumberArgument(info, 1 + place, name));
    // A host without IPv6 has none of its sockets: the program drops what finds no place.
    if (fd < 0) continue;
    int of_domain = 0, of_type = 0, listening = 0;
    socklen_t size = sizeof(int);
    for (auto [option, value] : {std::pair{SO_DOMAIN, &of_domain}, {SO_TYPE, &of_type}, {SO_ACCEPTCONN, &listening}}) {
      if (getsockopt(fd, SOL_SOCKET, option, value, &size) != 0) ThrowErrno(env, "look at the relay's socket", errno);
    }
    // A map would take others too, and the program would then drop every connection.
    if (of_domain != domain || of_type != type || (type == SOCK_STREAM && listening == 0)) ThrowErrno(env, "give connections to a socket that does not take them for that family", EINVAL);
    const uint64_t socket = fd;
    if (bpf_map_update_elem(relay.map.get(), &place, &socket, BPF_ANY) != 0) ThrowErrno(env, "put the relay's socket into its map", errno);
  }
  bpf_program* program = bpf_object__find_program_by_name(object, "relay_lookup");
  const bpf_insn* first = bpf_program__insns(program);
  std::vector<bpf_insn> code(first, first + bpf_program__insn_cnt(program));
  const int own_answers = bpf_object__find_map_fd_by_name(object, "answers");
  for (bpf_insn& step : code) {
    if (step.code == (BPF_LD | BPF_IMM | BPF_DW) && step.src_reg == BPF_PSEUDO_MAP_FD) step.imm = step.imm == own_answers ? relay.answers.get() : relay.map.get();
  }
  LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = BPF_SK_LOOKUP);
  relay.program = ambit::Fd(bpf_prog_load(BPF_PROG_TYPE_SK_LOOKUP, "relay_lookup", "Dual BSD/GPL", code.data(), code.size(), &options));
  if (!relay.program) ThrowErrno(env, "load the relay's program", errno);
  relay.link = ambit::Fd(bpf_link_create(relay.program.get(), netns, BPF_SK_LOOKUP, nullptr));
  if (!relay.link) ThrowErrno(env, "attach the relay to the network namespace", errno);
  uint32_t handle = next_relay_++;
  relays_.emplace(handle, std::move(relay));
  return Napi::Number::New(env, handle);
}

// A descriptor of the caller's own, which outlives the relay's handle.
Napi::Value Probes::RelayAnswers(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeLoaded(env);
  auto relay = relays_.find(NumberArgument(info, 0, "handle"));
  if (relay == relays_.end()) ThrowErrno(env, "find the relay", ENOENT);
  int fd = fcntl(relay->second.answers.get(), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) ThrowErrno(env, "share the map of the relay's answers", errno);
  return Napi::Number::New(env, fd);
}

void Probes::DetachRelay(const Napi::CallbackInfo& info) {
  MustBeLoaded(info.Env());
  relays_.erase(NumberArgument(info, 0, "handle"));
}

void Probes::Close(const Napi::CallbackInfo& info) {
  if (closed_) return;
  Napi::Env env = info.Env();
  napi_remove_env_cleanup_hook(env, AtExit, this);
  auto waiting = std::move(waiting_);
  waiting_.clear();
  CloseAll();
  for (auto& [token, deferred] : waiting) deferred.Reject(Napi::Error::New(env, "the probes were closed").Value());
}

void Probes::CloseAll() {
  if (closed_) return;
  closed_ = true;
  stop_ = true;
  // Frees a reader that waits for room, and drops what nobody will read.
  channel_.Abort();
  const uint64_t one = 1;
  if (write(wake_.get(), &one, sizeof one) < 0) stop_ = true;
  if (reader_.joinable()) reader_.join();
  links_.clear();
  inherited_.clear();
  relays_.clear();
  tls_.reset();
  if (ring_ != nullptr) ring_buffer__free(ring_);
  size_t page = sysconf(_SC_PAGESIZE);
  if (consumed_ != nullptr) munmap(const_cast<uint64_t*>(consumed_), page);
  if (produced_ != nullptr) munmap(const_cast<uint64_t*>(produced_), page);
  if (counts_ != nullptr) munmap(counts_, sizeof(ambit_count) * AMBIT_SLOTS * AMBIT_ROW);
  objects_.clear();
  shared_.clear();
  parent_fd_.Reset();
}
