// SPDX-License-Identifier: Apache-2.0
// What JavaScript sees of the relay's thread.
#pragma once
#include <napi.h>
#include <memory>
#include <thread>

class RelayLoop;
struct RelayChannel;

class Relay : public Napi::ObjectWrap<Relay> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit Relay(const Napi::CallbackInfo& info);
  ~Relay() override;

 private:
  Napi::Value Open(const Napi::CallbackInfo& info);
  void Send(const Napi::CallbackInfo& info);
  void Sent(const Napi::CallbackInfo& info);
  void Watch(const Napi::CallbackInfo& info);
  void Unwatch(const Napi::CallbackInfo& info);
  void Cut(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  void Ask(const Napi::CallbackInfo& info, int kind);
  // The flow that the first argument names. Throws after close().
  uint64_t FlowArgument(const Napi::CallbackInfo& info) const;
  void Shutdown();
  static void AtExit(void* self);

  std::shared_ptr<RelayLoop> loop_;
  std::unique_ptr<RelayChannel> channel_;
  std::thread thread_;
  napi_env env_ = nullptr;
  uint64_t next_ = 1;
};
