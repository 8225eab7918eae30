// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <napi.h>
#include <map>
#include <string>
#include "addon.hpp"
#include "common/fd.hpp"
#include "common/messages.hpp"

// The daemon's end of ambit-spawner: src/native.ts says what each method does.
class Spawner : public Napi::ObjectWrap<Spawner> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit Spawner(const Napi::CallbackInfo& info);

 private:
  struct Heard;

  Napi::Value Prepare(const Napi::CallbackInfo& info);
  void Go(const Napi::CallbackInfo& info);
  void Signal(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);

  void Send(Napi::Env env, const ambit::AskMessage& message, const std::vector<int>& fds, const char* what);
  void Hear(Napi::Env env, Heard& heard);
  void Ended(Napi::Env env);

  ambit::Fd socket_;
  bool closed_ = false;
  Napi::FunctionReference on_exit_;
  std::map<std::string, Napi::Promise::Deferred> preparing_;
  std::map<std::string, int> cells_;  // prepared, and their process 1
};
