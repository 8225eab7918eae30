// SPDX-License-Identifier: Apache-2.0
#include "spawner.hpp"
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cstring>
#include <thread>
#include "common/failure.hpp"
#include "common/packet.hpp"
#include "common/plan.hpp"
#include "common/unix-address.hpp"
#include "launch-plan.hpp"

#ifndef MFD_NOEXEC_SEAL  // Linux 6.3
#define MFD_NOEXEC_SEAL 0x0008U
#endif

using namespace ambit;

// What the listening thread hands to JavaScript's: one message of the spawner, or (no message) its end.
struct Spawner::Heard {
  bool end = false;
  TellMessage message = {};
  std::vector<Fd> fds;
};

static Napi::Error MakeError(Napi::Env env, const std::string& step, int error) {
  Napi::Error made = Napi::Error::New(env, step + ": " + strerror(error));
  made.Set("code", Napi::String::New(env, "NATIVE"));
  made.Set("errno", Napi::Number::New(env, error));
  made.Set("syscall", Napi::String::New(env, step));
  return made;
}

static pid_t Start(Napi::Env env, const std::string& spawner, const std::string& init, int socket, int next) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&actions);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, socket, 3);
  if (next >= 0) posix_spawn_file_actions_adddup2(&actions, next, 4);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  // A session of its own: Ctrl-C in the daemon's terminal is the daemon's to handle.
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSID);
  std::string parent = std::to_string(getpid()), name = "ambit-spawner", image = init, said = "next";
  char* argv[] = {name.data(), image.data(), parent.data(), next >= 0 ? said.data() : nullptr, nullptr};
  char* environment[] = {nullptr};
  pid_t pid = -1;
  int error = posix_spawn(&pid, spawner.c_str(), &actions, &attributes, argv, environment);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) ThrowErrno(env, "start ambit-spawner", error);
  return pid;
}

Napi::Function Spawner::Define(Napi::Env env) {
  return DefineClass(env, "Spawner", {
    InstanceMethod<&Spawner::Reserve>("reserve"), InstanceMethod<&Spawner::Prepare>("prepare"), InstanceMethod<&Spawner::Go>("go"),
    InstanceMethod<&Spawner::Signal>("signal"), InstanceMethod<&Spawner::Close>("close"),
    InstanceMethod<&Spawner::Hold>("hold"), InstanceMethod<&Spawner::Keep>("keep"), InstanceMethod<&Spawner::Taken>("taken"),
  });
}

// A socket that waits where only root gets in: the folder's mode is the caller's matter. What lies there is of a daemon that died.
static Fd ListenAt(Napi::Env env, const std::string& path) {
  UnixAddress address;
  if (int error = address.Set(path)) ThrowErrno(env, "name the socket for the next daemon", error);
  Fd listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!listener) ThrowErrno(env, "make the socket for the next daemon", errno);
  unlink(path.c_str());
  fchmod(listener.get(), 0600);
  if (bind(listener.get(), address.get(), address.size()) < 0 || listen(listener.get(), 8) < 0) ThrowErrno(env, "listen for the next daemon", errno);
  return listener;
}

static Fd ConnectTo(Napi::Env env, const std::string& path) {
  UnixAddress address;
  if (int error = address.Set(path)) ThrowErrno(env, "name the former daemon's spawner", error);
  Fd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!fd || connect(fd.get(), address.get(), address.size()) < 0) ThrowErrno(env, "reach the former daemon's spawner", errno);
  return fd;
}

Spawner::Spawner(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Spawner>(info) {
  Napi::Env env = info.Env();
  const bool take = info.Length() > 1 && info[0].IsNull();
  if (info.Length() < 3 || !(take || info[0].IsString()) || !info[1].IsString() || !info[2].IsFunction()) throw Napi::TypeError::New(env, "new Spawner(spawnerPath, initPath, onExit)");
  on_exit_ = Napi::Persistent(info[2].As<Napi::Function>());
  if (info.Length() > 3 && info[3].IsFunction()) on_end_ = Napi::Persistent(info[3].As<Napi::Function>());
  if (take) {
    socket_ = ConnectTo(env, info[1].As<Napi::String>());
    taking_ = std::make_unique<Napi::Promise::Deferred>(Napi::Promise::Deferred::New(env));
    Napi::Object taken = Napi::Object::New(env);
    for (const char* list : {"cells", "ended", "kept"}) taken.Set(list, Napi::Array::New(env));
    taken_ = Napi::Persistent(taken);
    Listen(env, -1);
    return;
  }
  std::string spawner = info[0].As<Napi::String>(), init = info[1].As<Napi::String>();
  if (access(init.c_str(), R_OK) < 0) ThrowErrno(env, "open ambit-init", errno);
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) ThrowErrno(env, "make the socket to ambit-spawner", errno);
  socket_ = Fd(ends[0]);
  Fd theirs(ends[1]), next;
  if (info.Length() > 4 && info[4].IsString()) next = ListenAt(env, info[4].As<Napi::String>());
  Listen(env, Start(env, spawner, init, theirs.get(), next.get()));
}

// `pid`: the spawner, if it is a child of this process.
void Spawner::Listen(Napi::Env env, pid_t pid) {
  auto function = Napi::ThreadSafeFunction::New(env, Napi::Function(), "ambit-spawner", 0, 1);
  // Until its end was heard; then nothing refers to this object any more.
  Ref();
  int socket = dup(socket_.get());
  fcntl(socket, F_SETFD, FD_CLOEXEC);
  std::thread([this, function, pid, listening = Fd(socket)] {
    auto hand = [&](Heard* heard) {
      auto call = [this](Napi::Env env, Napi::Function, Heard* came) {
        std::unique_ptr<Heard> owned(came);
        if (env != nullptr) Hear(env, *owned);
      };
      if (function.BlockingCall(heard, call) != napi_ok) delete heard;
    };
    std::map<std::string, Fd> alive;
    for (;;) {
      auto heard = std::make_unique<Heard>();
      if (ReceivePacket(listening.get(), &heard->message, sizeof heard->message, &heard->fds) <= 0) break;
      std::string id(TextOf(heard->message.id));
      if (heard->message.tell == kReserved && heard->fds.size() >= 2) alive[id] = Fd(fcntl(heard->fds[0].get(), F_DUPFD_CLOEXEC, 0));
      if (heard->message.tell == kExited) alive.erase(id);
      hand(heard.release());
    }
    while (pid > 0 && waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {}
    // A spawner that died took its cells with it: each one's end is awaited, and told.
    for (auto& [id, pidfd] : alive) {
      struct pollfd gone = {pidfd.get(), POLLIN, 0};
      while (poll(&gone, 1, -1) < 0 && errno == EINTR) {}
      auto heard = std::make_unique<Heard>();
      heard->message.tell = kExited;
      heard->message.status = -1;
      heard->message.error = ECHILD;
      CopyText(heard->message.id, id);
      CopyText(heard->message.step, "keep ambit-spawner running: it was killed or ended");
      hand(heard.release());
    }
    auto end = std::make_unique<Heard>();
    end->end = true;
    hand(end.release());
    Napi::ThreadSafeFunction last = function;
    last.Release();
  }).detach();
}

void Spawner::Send(Napi::Env env, const AskMessage& message, const std::vector<int>& fds, const char* what) {
  if (closed_) ThrowErrno(env, what, ESHUTDOWN);
  if (SendPacket(socket_.get(), &message, sizeof message, fds) < 0) ThrowErrno(env, what, errno);
}

static Fd Seal(Napi::Env env, const std::string& bytes) {
  Fd fd(memfd_create("ambit-plan", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL));
  if (!fd && errno == EINVAL) fd = Fd(memfd_create("ambit-plan", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) ThrowErrno(env, "make the plan's memfd", errno);
  for (size_t at = 0; at < bytes.size();) {
    ssize_t written = write(fd.get(), bytes.data() + at, bytes.size() - at);
    if (written < 0) ThrowErrno(env, "write the plan", errno);
    at += written;
  }
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0) ThrowErrno(env, "seal the plan", errno);
  return fd;
}

static Fd Opened(Napi::Env env, const std::string& path, int flags) {
  Fd fd(open(path.c_str(), flags | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) ThrowErrno(env, ("open the cgroup " + path).c_str(), errno);
  return fd;
}

Napi::Value Spawner::Reserve(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto deferred = Napi::Promise::Deferred::New(env);
  try {
    Reservation wanted = ReadReservation(info[0]);
    if (wanted.id.empty() || wanted.id.size() >= kIdSize) throw Napi::TypeError::New(env, "Reservation.id must have 1 to 63 bytes");
    if (wanted.v1.size() > kMaxV1Groups) throw Napi::TypeError::New(env, "Reservation.cgroups.v1 must have 32 folders at the most");
    if (cells_.count(wanted.id) != 0) ThrowErrno(env, ("take the id " + wanted.id).c_str(), EEXIST);
    std::vector<Fd> opened;
    opened.push_back(Opened(env, wanted.cgroup, O_PATH | O_DIRECTORY));
    // The file that v1 has for moving a thread without the lock that `cgroup.procs` takes.
    for (auto& folder : wanted.v1) opened.push_back(Opened(env, folder + "/tasks", O_WRONLY));
    std::vector<int> fds;
    for (auto& fd : opened) fds.push_back(fd.get());
    AskMessage ask = {kReserve};
    CopyText(ask.id, wanted.id);
    ask.base = wanted.base;
    ask.count = wanted.count;
    Send(env, ask, fds, "ask ambit-spawner for a cell");
    cells_[wanted.id].waiting = deferred;
  } catch (const Napi::Error& error) {
    deferred.Reject(error.Value());
  }
  return deferred.Promise();
}

Napi::Value Spawner::Prepare(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto deferred = Napi::Promise::Deferred::New(env);
  try {
    std::vector<int> given;
    Plan plan = ReadLaunchPlan(info[0], &given);
    if (plan.id.empty() || plan.id.size() >= kIdSize) throw Napi::TypeError::New(env, "LaunchPlan.id must have 1 to 63 bytes");
    auto cell = cells_.find(plan.id);
    if (cell == cells_.end() || !cell->second.reserved) ThrowErrno(env, ("prepare " + plan.id + ": no such cell was reserved").c_str(), ESRCH);
    if (cell->second.planned) ThrowErrno(env, ("prepare " + plan.id + ": it has its plan").c_str(), EEXIST);
    std::string bytes = Encode(plan);
    if (bytes.size() > kMaxPlanSize) ThrowErrno(env, "encode the plan", E2BIG);
    Fd sealed = Seal(env, bytes);
    std::vector<int> fds = {sealed.get()};
    fds.insert(fds.end(), given.begin(), given.end());
    AskMessage ask = {kPrepare};
    CopyText(ask.id, plan.id);
    Send(env, ask, fds, "send the plan to ambit-spawner");
    cell->second.planned = true;
    cell->second.waiting = deferred;
  } catch (const Napi::Error& error) {
    deferred.Reject(error.Value());
  }
  return deferred.Promise();
}

void Spawner::Go(const Napi::CallbackInfo& info) {
  std::string id = info[0].ToString();
  auto cell = cells_.find(id);
  if (cell == cells_.end() || !cell->second.planned) ThrowErrno(info.Env(), "let the command start: no such cell has a plan", ESRCH);
  AskMessage ask = {kGo};
  CopyText(ask.id, id);
  Send(info.Env(), ask, {}, "let the command start");
}

void Spawner::Signal(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  std::string id = info[0].ToString();
  int number = info.Length() > 1 && info[1].IsNumber() ? info[1].As<Napi::Number>().Int32Value() : 0;
  if (number < 1 || number > 64) throw Napi::TypeError::New(env, "signal(id, signal): signal must be a number from 1 to 64");
  // A cell may end while somebody signals it: as with kill(2) on a zombie, nothing happens.
  if (cells_.count(id) == 0) return;
  const bool all = info.Length() > 2 && info[2].ToBoolean();
  AskMessage ask = {all ? kSignalAll : kSignal};
  CopyText(ask.id, id);
  ask.signal = number;
  Send(env, ask, {}, "signal the command");
}

void Spawner::Hold(const Napi::CallbackInfo& info) {
  AskMessage ask = {kHold};
  CopyText(ask.id, info[0].ToString().Utf8Value());
  ask.deadline = info[1].ToNumber().Int64Value();
  Send(info.Env(), ask, {}, "hold a cell");
}

void Spawner::Keep(const Napi::CallbackInfo& info) {
  AskMessage ask = {kKeep};
  CopyText(ask.id, info[0].ToString().Utf8Value());
  CopyText(ask.name, info[1].ToString().Utf8Value());
  Send(info.Env(), ask, {info[2].ToNumber().Int32Value()}, "keep a descriptor");
}

Napi::Value Spawner::Taken(const Napi::CallbackInfo& info) {
  if (!taking_) ThrowErrno(info.Env(), "take cells over: this is a spawner of one's own", EINVAL);
  return taking_->Promise();
}

void Spawner::Close(const Napi::CallbackInfo&) {
  closed_ = true;
  // The spawner reads the end of its stream, kills what is left and tells each end before its own.
  if (socket_) shutdown(socket_.get(), SHUT_WR);
}

Napi::Promise::Deferred Spawner::Take(Cell& cell) {
  Napi::Promise::Deferred deferred = *cell.waiting;
  cell.waiting.reset();
  return deferred;
}

static Napi::Object CellOf(Napi::Env env, const TellMessage& message, std::vector<Fd>& fds) {
  Napi::Object cell = Napi::Object::New(env);
  cell.Set("pid", message.pid);
  cell.Set("pidfd", fds[0].Release());
  cell.Set("netns", fds[1].Release());
  size_t at = 2;
  const char* names[kSocketCount] = {"relay4", "relay6", "dnsUdp4", "dnsUdp6", "dnsTcp4", "dnsTcp6", "udp4", "udp6"};
  for (int i = 0; i < kSocketCount; i++) cell.Set(names[i], (message.sockets >> i & 1) != 0 ? fds[at++].Release() : -1);
  return cell;
}

static Napi::Object ExitOf(Napi::Env env, const TellMessage& message) {
  std::string id(TextOf(message.id)), step(TextOf(message.step));
  Napi::Object exit = Napi::Object::New(env);
  exit.Set("id", id);
  bool failed = message.error != 0;
  exit.Set("code", !failed && WIFEXITED(message.status) ? Napi::Number::New(env, WEXITSTATUS(message.status)) : env.Null());
  exit.Set("signal", !failed && WIFSIGNALED(message.status) ? Napi::Number::New(env, WTERMSIG(message.status)) : env.Null());
  if (failed) {
    Napi::Object failure = Napi::Object::New(env);
    failure.Set("step", step);
    failure.Set("errno", message.error);
    exit.Set("failed", failure);
  } else {
    exit.Set("failed", env.Null());
  }
  exit.Set("userUs", static_cast<double>(message.user_us));
  exit.Set("systemUs", static_cast<double>(message.system_us));
  exit.Set("maxRssKiB", static_cast<double>(message.max_rss_kib));
  exit.Set("timeOver", message.time_over != 0);
  return exit;
}

// One message of what a former daemon's spawner hands over.
void Spawner::HearGiven(Napi::Env env, Heard& heard) {
  const TellMessage& message = heard.message;
  std::string id(TextOf(message.id));
  Napi::Object taken = taken_.Value();
  auto add = [&](const char* list, Napi::Object what) {
    Napi::Array to = taken.Get(list).As<Napi::Array>();
    to[to.Length()] = what;
  };
  if (message.tell == kReserved && heard.fds.size() == 2 + static_cast<size_t>(__builtin_popcount(message.sockets))) {
    Napi::Object cell = CellOf(env, message, heard.fds);
    cell.Set("id", id);
    Cell& known = cells_[id];
    known.reserved = known.planned = known.prepared = true;
    add("cells", cell);
  } else if (message.tell == kExited) {
    cells_.erase(id);
    add("ended", ExitOf(env, message));
  } else if (message.tell == kKept && heard.fds.size() == 1) {
    Napi::Object kept = Napi::Object::New(env);
    kept.Set("id", id);
    kept.Set("name", std::string(TextOf(message.step)));
    kept.Set("fd", heard.fds[0].Release());
    add("kept", kept);
  } else if (message.tell == kGiven) {
    auto taking = std::move(taking_);
    if (message.status == kProtocol) taking->Resolve(taken);
    else taking->Reject(MakeError(env, "understand the former daemon's spawner", EPROTO).Value());
    taken_.Reset();
  }
}

void Spawner::Hear(Napi::Env env, Heard& heard) {
  Napi::HandleScope scope(env);
  if (heard.end) return Ended(env);
  const TellMessage& message = heard.message;
  if (taking_) return HearGiven(env, heard);
  std::string id(TextOf(message.id)), step(TextOf(message.step));
  auto found = cells_.find(id);
  if (found == cells_.end()) return;
  Cell& cell = found->second;
  if (message.tell == kReserved) {
    if (cell.reserved || !cell.waiting || heard.fds.size() != 2 + static_cast<size_t>(__builtin_popcount(message.sockets))) return;
    Napi::Object reserved = CellOf(env, message, heard.fds);
    cell.reserved = true;
    Take(cell).Resolve(reserved);
    return;
  }
  if (message.tell == kPrepared) {
    if (!cell.planned || !cell.waiting) return;
    cell.prepared = true;
    Take(cell).Resolve(Napi::Number::New(env, message.unheld));
    return;
  }
  if (message.tell != kRefused && message.tell != kExited) return;
  Cell ended = std::move(cell);
  cells_.erase(found);
  // Whoever waits for it hears it there; a cell that is waited for by nobody has its end told.
  if (ended.waiting) {
    Take(ended).Reject(MakeError(env, step, message.error).Value());
    return;
  }
  on_exit_.Call({ExitOf(env, message)});
}

void Spawner::Ended(Napi::Env env) {
  const bool lost = !closed_;
  closed_ = true;
  socket_.Reset();
  if (taking_) {
    auto taking = std::move(taking_);
    taking->Reject(MakeError(env, "take the former daemon's cells over: its spawner ended", ECHILD).Value());
  }
  auto left = std::move(cells_);
  cells_.clear();
  for (auto& [id, cell] : left) if (cell.waiting) cell.waiting->Reject(MakeError(env, "keep ambit-spawner running: it was killed or ended", ECHILD).Value());
  if (lost && !on_end_.IsEmpty()) on_end_.Call({});
  Unref();
}

void RegisterSpawner(Napi::Env env, Napi::Object exports) { exports.Set("Spawner", Spawner::Define(env)); }
