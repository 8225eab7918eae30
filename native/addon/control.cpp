// SPDX-License-Identifier: Apache-2.0
#include "control.hpp"
#include <cerrno>
#include <csignal>
#include <pthread.h>
#include "addon.hpp"
#include "common/unix-address.hpp"
#include "control-server.hpp"

namespace {

// What a call from the thread needs on JavaScript's side; kept alive by the thread-safe function itself.
struct Callbacks {
  Napi::FunctionReference on_message, on_close;
  std::shared_ptr<ControlServer> server;
  bool closed = false;
};
using Context = std::shared_ptr<Callbacks>;

void CallJs(Napi::Env env, Napi::Function, Context* context, ControlEvent* raw) {
  std::unique_ptr<ControlEvent> event(raw);
  if (static_cast<napi_env>(env) == nullptr || (*context)->closed) return;
  Callbacks& callbacks = **context;
  Napi::Number connection = Napi::Number::New(env, event->connection);
  if (event->kind == ControlEvent::kClosed) {
    callbacks.on_close.Call({connection});
    return;
  }
  callbacks.server->Handled(event->connection);
  Napi::Object peer = Napi::Object::New(env);
  peer.Set("pid", Napi::Number::New(env, event->peer.pid));
  peer.Set("uid", Napi::Number::New(env, event->peer.uid));
  peer.Set("gid", Napi::Number::New(env, event->peer.gid));
  Napi::Array fds = Napi::Array::New(env, event->fds.size());
  Napi::Value message = Napi::Buffer<uint8_t>::Copy(env, event->message.data(), event->message.size());
  for (uint32_t i = 0; i < event->fds.size(); i++) fds.Set(i, Napi::Number::New(env, event->fds[i].get()));
  for (ambit::Fd& fd : event->fds) fd.Release();
  callbacks.on_message.Call({connection, peer, message, fds});
}

using Channel = Napi::TypedThreadSafeFunction<Context, ControlEvent, CallJs>;

}  // namespace

struct ControlChannel {
  Channel channel;
  Context callbacks;
};

void Control::Register(Napi::Env env, Napi::Object exports) {
  exports.Set("Control", DefineClass(env, "Control", {
    InstanceMethod("send", &Control::Send),
    InstanceMethod("disconnect", &Control::Disconnect),
    InstanceMethod("close", &Control::Close),
  }));
}

void RegisterControl(Napi::Env env, Napi::Object exports) { Control::Register(env, exports); }

Control::Control(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Control>(info) {
  Napi::Env env = info.Env();
  if (info.Length() < 5 || !info[0].IsString() || !info[1].IsNumber() || !info[2].IsNumber() || !info[3].IsFunction() || !info[4].IsFunction()) {
    throw Napi::TypeError::New(env, "Control(path, mode, gid, onMessage, onClose): a string, two numbers, two functions");
  }
  auto server = std::make_shared<ControlServer>();
  const char* step = "";
  if (int error = server->Open(info[0].As<Napi::String>(), info[1].As<Napi::Number>(), info[2].As<Napi::Number>(), &step)) ThrowErrno(env, step, error);

  auto callbacks = std::make_shared<Callbacks>();
  callbacks->on_message = Napi::Persistent(info[3].As<Napi::Function>());
  callbacks->on_close = Napi::Persistent(info[4].As<Napi::Function>());
  callbacks->server = server;
  Channel channel = Channel::New(env, "ambit control", 0, 1, new Context(callbacks),
                                 [](Napi::Env, void*, Context* context) { delete context; }, static_cast<void*>(nullptr));
  channel_ = std::make_unique<ControlChannel>(ControlChannel{channel, callbacks});
  server_ = server;
  thread_ = std::thread([server, channel] {
    // The thread runs no signal handler of the process it is a guest in.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    server->Run([&](std::unique_ptr<ControlEvent> event) {
      if (channel.NonBlockingCall(event.get()) == napi_ok) event.release();
    });
  });
  env_ = env;
  // Node may end without a close(): the thread must be gone before what it calls is.
  napi_add_env_cleanup_hook(env_, AtExit, this);
  // The thread works for as long as the socket is open, whoever still holds this object.
  Ref();
}

Control::~Control() { Shutdown(); }

void Control::AtExit(void* self) { static_cast<Control*>(self)->Shutdown(); }

void Control::Shutdown() {
  if (!server_) return;
  channel_->callbacks->closed = true;
  server_->Stop();
  thread_.join();
  server_->Unlink();
  channel_->channel.Release();
  // The callbacks and the server point at each other until here.
  channel_->callbacks->server.reset();
  channel_->callbacks->on_message.Reset();
  channel_->callbacks->on_close.Reset();
  channel_.reset();
  server_.reset();
  napi_remove_env_cleanup_hook(env_, AtExit, this);
}

void Control::GuardOpen(Napi::Env env) const {
  if (!server_) throw Napi::Error::New(env, "the control socket is closed");
}

uint32_t Control::ConnectionArgument(const Napi::CallbackInfo& info) const {
  if (info.Length() < 1 || !info[0].IsNumber()) throw Napi::TypeError::New(info.Env(), "connection must be a number");
  return info[0].As<Napi::Number>().Uint32Value();
}

void Control::Send(const Napi::CallbackInfo& info) {
  GuardOpen(info.Env());
  uint32_t connection = ConnectionArgument(info);
  if (info.Length() < 2 || !info[1].IsBuffer()) throw Napi::TypeError::New(info.Env(), "message must be a Buffer");
  auto message = info[1].As<Napi::Buffer<uint8_t>>();
  // An empty packet reads as the end of the connection.
  if (message.Length() == 0) throw Napi::TypeError::New(info.Env(), "message must not be empty");
  if (message.Length() > ambit::kMaxMessage) ThrowErrno(info.Env(), "send", EMSGSIZE);
  server_->Send(connection, message.Data(), message.Length());
}

void Control::Disconnect(const Napi::CallbackInfo& info) {
  GuardOpen(info.Env());
  server_->Disconnect(ConnectionArgument(info));
}

void Control::Close(const Napi::CallbackInfo&) {
  if (!server_) return;
  Shutdown();
  Unref();
}
