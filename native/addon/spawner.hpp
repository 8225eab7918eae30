// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <napi.h>
#include <map>
#include <memory>
#include <optional>
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
  struct Cell {
    bool reserved = false, planned = false, prepared = false;
    // Of the call that is under way.
    std::optional<Napi::Promise::Deferred> waiting;
  };

  Napi::Value Reserve(const Napi::CallbackInfo& info);
  Napi::Value Prepare(const Napi::CallbackInfo& info);
  void Go(const Napi::CallbackInfo& info);
  void Signal(const Napi::CallbackInfo& info);
  void Close(const Napi::CallbackInfo& info);
  void Hold(const Napi::CallbackInfo& info);
  void Keep(const Napi::CallbackInfo& info);
  Napi::Value Taken(const Napi::CallbackInfo& info);

  void Send(Napi::Env env, const ambit::AskMessage& message, const std::vector<int>& fds, const char* what);
  void Hear(Napi::Env env, Heard& heard);
  void Ended(Napi::Env env);
  static Napi::Promise::Deferred Take(Cell& cell);
  void Listen(Napi::Env env, pid_t pid);
  void HearGiven(Napi::Env env, Heard& heard);

  ambit::Fd socket_;
  bool closed_ = false;
  Napi::FunctionReference on_exit_, on_end_;
  std::map<std::string, Cell> cells_;
  // While another daemon's spawner hands its cells over; `taken_` then holds what it gave.
  std::unique_ptr<Napi::Promise::Deferred> taking_;
  Napi::ObjectReference taken_;
};
