// SPDX-License-Identifier: Apache-2.0
// The control socket's server side: SOCK_SEQPACKET, so that a message and its descriptors stay together. One thread accepts,
// reads and writes; JavaScript gets whole messages. Every limit here protects the daemon from whoever may connect.
#pragma once
#include <napi.h>
#include <memory>
#include <thread>

class ControlServer;
struct ControlChannel;

class Control : public Napi::ObjectWrap<Control> {
 public:
  static void Register(Napi::Env env, Napi::Object exports);
  explicit Control(const Napi::CallbackInfo& info);
  ~Control() override;

 private:
  void Send(const Napi::CallbackInfo& info);
  void Disconnect(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  void GuardOpen(Napi::Env env) const;
  uint32_t ConnectionArgument(const Napi::CallbackInfo& info) const;
  void Shutdown();
  static void AtExit(void* self);

  std::shared_ptr<ControlServer> server_;
  std::unique_ptr<ControlChannel> channel_;
  std::thread thread_;
  napi_env env_ = nullptr;
};
