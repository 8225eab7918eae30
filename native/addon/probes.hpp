// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>
#include "addon.hpp"
#include "common/fd.hpp"
#include "events.h"
#include "tls.hpp"

// Loads the eBPF objects, attaches them while cells need them, and hands their events to JavaScript in batches.
// All methods run on the JavaScript thread; the ring is read by a thread of its own.
class Probes : public Napi::ObjectWrap<Probes> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit Probes(const Napi::CallbackInfo& info);
  ~Probes() override;

 private:
  struct ObjectClose { void operator()(bpf_object* object) const { bpf_object__close(object); } };
  struct LinkClose { void operator()(bpf_link* link) const { bpf_link__destroy(link); } };
  using ObjectPtr = std::unique_ptr<bpf_object, ObjectClose>;
  using LinkPtr = std::unique_ptr<bpf_link, LinkClose>;
  struct Loaded { ObjectPtr object; std::string why; };
  struct Relay { ambit::Fd map, answers, program, link; };
  // bpf/lsm.bpf.c, struct exec_key.
  struct ExecKey { uint64_t cell, ino; uint32_t dev, reserved; };
  using Kinds = std::array<uint64_t, AMBIT_KIND_COUNT>;

  // What the ring's thread hands over: records, or the token that a flush waits for.
  struct Item { std::vector<uint8_t> records; uint64_t flushed = 0; };
  static void OnItem(Napi::Env env, Napi::Function callback, Probes* self, Item* item);
  using Channel = Napi::TypedThreadSafeFunction<Probes, Item, OnItem>;

  Napi::Value Load(const Napi::CallbackInfo& info);
  Napi::Value Attach(const Napi::CallbackInfo& info);
  void Detach(const Napi::CallbackInfo& info);
  void AddCell(const Napi::CallbackInfo& info);
  Napi::Value ReadCell(const Napi::CallbackInfo& info);
  void RemoveCell(const Napi::CallbackInfo& info);
  Napi::Value HoldPrograms(const Napi::CallbackInfo& info);
  Napi::Value Flush(const Napi::CallbackInfo& info);
  Napi::Value AttachTls(const Napi::CallbackInfo& info);
  void DetachTls(const Napi::CallbackInfo& info);
  Napi::Value AttachRelay(const Napi::CallbackInfo& info);
  Napi::Value RelayAnswers(const Napi::CallbackInfo& info);
  void DetachRelay(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  Napi::Value Keepable(const Napi::CallbackInfo& info);
  Napi::Value Inherited(const Napi::CallbackInfo& info);
  Napi::Value AdoptRelay(const Napi::CallbackInfo& info);

  void MustBeOpen(Napi::Env env) const;
  void MustBeLoaded(Napi::Env env) const;
  std::string LoadObject(const char* name, ObjectPtr* out);
  int ShareMaps(bpf_object* object);
  int KeepMaps(bpf_object* object);
  void Inherit(const Napi::Object& kept);
  int InheritCells();
  int StartRing();
  Napi::Array Report(Napi::Env env) const;
  bool InPlace(const char* object, const char* program) const;
  void ListenToLsm();
  int LsmMap(const char* name) const;
  void CloseAll();
  static void AtExit(void* self);
  void ForgetCell(uint64_t cell);
  static int OnRecord(void* self, void* data, size_t size);
  void Take(const uint8_t* data, size_t size);
  void Send();
  void ReadRing();

  const std::string objects_dir_;
  const int level_;
  const std::string parent_;
  uint32_t ring_bytes_ = 0;
  uint64_t parent_id_ = 0;  // a cgroup v2 folder's inode is its id
  bool closed_ = false;
  bool loaded_ = false;
  bool attached_ = false;

  std::map<std::string, Loaded> objects_;
  std::map<std::string, ambit::Fd> shared_;
  std::map<std::string, LinkPtr> links_;        // by program
  std::map<std::string, ambit::Fd> inherited_;  // links of a former daemon, by program: they go with its last cell
  std::map<std::string, std::string> refused_;  // program → why it is not attached
  ambit::Fd parent_fd_;

  ambit_count* counts_ = nullptr;
  std::array<bool, AMBIT_SLOTS> slots_{};
  std::map<uint64_t, uint32_t> cells_;          // cell → slot

  std::map<uint64_t, std::vector<ExecKey>> held_;  // cell → what it may execute

  std::map<uint32_t, Relay> relays_;
  uint32_t next_relay_ = 1;
  std::unique_ptr<TlsProbes> tls_;
  std::string tls_refused_;
  bool tls_loaded_ = false;

  Channel channel_;
  std::thread reader_;
  ring_buffer* ring_ = nullptr;
  ambit::Fd wake_;
  const volatile uint64_t* consumed_ = nullptr;
  const volatile uint64_t* produced_ = nullptr;
  std::atomic<bool> stop_{false};
  std::vector<uint8_t> batch_;                  // of the reader alone
  std::mutex mutex_;                            // for the two below
  std::unordered_map<uint64_t, Kinds> delivered_;
  std::vector<std::pair<uint64_t, uint64_t>> flushes_;  // token, ring position to be reached
  std::map<uint64_t, Napi::Promise::Deferred> waiting_;  // token → who waits
  uint64_t next_flush_ = 1;
};
