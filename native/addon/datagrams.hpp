// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <memory>
#include <thread>
#include "addon.hpp"
#include "datagram-relay.hpp"

struct DatagramsChannel;

// The relay of datagrams as JavaScript sees it: src/native.ts has the types.
class Datagrams : public Napi::ObjectWrap<Datagrams> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit Datagrams(const Napi::CallbackInfo& info);
  ~Datagrams() override;

 private:
  Napi::Value Add(const Napi::CallbackInfo& info);
  void Rule(const Napi::CallbackInfo& info);
  void Remove(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  void MustBeOpen(Napi::Env env) const;
  void Shutdown();
  static void AtExit(void* self);

  napi_env env_ = nullptr;
  std::shared_ptr<DatagramRelay> relay_;
  std::unique_ptr<DatagramsChannel> channel_;
  std::thread thread_;
};
