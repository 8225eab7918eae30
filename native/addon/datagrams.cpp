// SPDX-License-Identifier: Apache-2.0
#include "datagrams.hpp"
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <cerrno>
#include <csignal>
#include <cstring>

namespace {

// Kept alive by the thread-safe function itself.
struct Callbacks {
  Napi::FunctionReference on_flow, on_end, on_removed;
  bool closed = false;
};
using Context = std::shared_ptr<Callbacks>;

void CallJs(Napi::Env env, Napi::Function, Context* context, DatagramEvent* raw) {
  std::unique_ptr<DatagramEvent> event(raw);
  if (static_cast<napi_env>(env) == nullptr || (*context)->closed) return;
  Callbacks& callbacks = **context;
  Napi::Number cell = Napi::Number::New(env, event->cell), flow = Napi::Number::New(env, static_cast<double>(event->flow));
  if (event->kind == DatagramEvent::kFlow) {
    callbacks.on_flow.Call({cell, flow, Napi::String::New(env, event->dialled.Text()), Napi::Number::New(env, event->dialled.port)});
  } else if (event->kind == DatagramEvent::kEnd) {
    Napi::Object end = Napi::Object::New(env);
    end.Set("bytesOut", static_cast<double>(event->bytes_out));
    end.Set("bytesIn", static_cast<double>(event->bytes_in));
    end.Set("why", event->step);
    end.Set("errno", event->error);
    callbacks.on_end.Call({cell, flow, end});
  } else {
    callbacks.on_removed.Call({cell, Napi::Number::New(env, static_cast<double>(event->unheard))});
  }
}

using Channel = Napi::TypedThreadSafeFunction<Context, DatagramEvent, CallJs>;

double NumberAt(const Napi::CallbackInfo& info, size_t place, const char* what) {
  if (info.Length() <= place || !info[place].IsNumber()) throw Napi::TypeError::New(info.Env(), std::string(what) + " must be a number");
  return info[place].As<Napi::Number>().DoubleValue();
}

// A datagram socket of that family, which it must be before anything is read from it.
void MustBeDatagrams(Napi::Env env, int fd, int family) {
  int domain = 0, type = 0;
  socklen_t size = sizeof domain;
  if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) != 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0) ThrowErrno(env, "look at the socket for datagrams", errno);
  if (domain != family || type != SOCK_DGRAM) ThrowErrno(env, "relay datagrams of a socket that has none of that family", EINVAL);
}

}  // namespace

struct DatagramsChannel {
  Channel channel;
  Context callbacks;
};

void Datagrams::Register(Napi::Env env, Napi::Object exports) {
  exports.Set("Datagrams", DefineClass(env, "Datagrams", {
    InstanceMethod("add", &Datagrams::Add),
    InstanceMethod("rule", &Datagrams::Rule),
    InstanceMethod("remove", &Datagrams::Remove),
    InstanceMethod("close", &Datagrams::Close),
  }));
}

void RegisterDatagrams(Napi::Env env, Napi::Object exports) { Datagrams::Register(env, exports); }

Datagrams::Datagrams(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Datagrams>(info) {
  Napi::Env env = info.Env();
  if (info.Length() < 5 || !info[2].IsFunction() || !info[3].IsFunction() || !info[4].IsFunction()) throw Napi::TypeError::New(env, "Datagrams(idleMs, flows, onFlow, onEnd, onRemoved): two numbers, three functions");
  auto relay = std::make_shared<DatagramRelay>(static_cast<uint32_t>(NumberAt(info, 0, "idleMs")), static_cast<size_t>(NumberAt(info, 1, "flows")));
  if (!relay->Open()) ThrowErrno(env, "open the relay of datagrams", errno);
  auto callbacks = std::make_shared<Callbacks>();
  callbacks->on_flow = Napi::Persistent(info[2].As<Napi::Function>());
  callbacks->on_end = Napi::Persistent(info[3].As<Napi::Function>());
  callbacks->on_removed = Napi::Persistent(info[4].As<Napi::Function>());
  Channel channel = Channel::New(env, "ambit datagrams", 0, 1, new Context(callbacks),
                                 [](Napi::Env, void*, Context* context) { delete context; }, static_cast<void*>(nullptr));
  // It alone keeps no process going.
  channel.Unref(env);
  channel_ = std::make_unique<DatagramsChannel>(DatagramsChannel{channel, callbacks});
  relay_ = relay;
  thread_ = std::thread([relay, channel] {
    // The thread runs no signal handler of the process it is a guest in.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    relay->Run([&](std::unique_ptr<DatagramEvent> event) {
      if (channel.NonBlockingCall(event.get()) == napi_ok) event.release();
    });
  });
  env_ = env;
  napi_add_env_cleanup_hook(env_, AtExit, this);
  Ref();
}

Datagrams::~Datagrams() { Shutdown(); }

void Datagrams::AtExit(void* self) { static_cast<Datagrams*>(self)->Shutdown(); }

void Datagrams::Shutdown() {
  if (!relay_) return;
  channel_->callbacks->closed = true;
  relay_->Stop();
  thread_.join();
  channel_->callbacks->on_flow.Reset();
  channel_->callbacks->on_end.Reset();
  channel_->callbacks->on_removed.Reset();
  channel_->channel.Release();
  channel_.reset();
  relay_.reset();
  napi_remove_env_cleanup_hook(env_, AtExit, this);
}

void Datagrams::MustBeOpen(Napi::Env env) const {
  if (!relay_) ThrowErrno(env, "use the relay of datagrams after it was closed", EBADF);
}

Napi::Value Datagrams::Add(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeOpen(env);
  const int netns = static_cast<int>(NumberAt(info, 0, "netns")), udp4 = static_cast<int>(NumberAt(info, 1, "udp4")), udp6 = static_cast<int>(NumberAt(info, 2, "udp6"));
  if (udp4 >= 0) MustBeDatagrams(env, udp4, AF_INET);
  if (udp6 >= 0) MustBeDatagrams(env, udp6, AF_INET6);
  ambit::Fd own(fcntl(netns, F_DUPFD_CLOEXEC, 0)), answers(fcntl(static_cast<int>(NumberAt(info, 3, "answers")), F_DUPFD_CLOEXEC, 0));
  if (!own || !answers) ThrowErrno(env, "keep the cell's network namespace", errno);
  return Napi::Number::New(env, relay_->Add(std::move(own), ambit::Fd(udp4 >= 0 ? udp4 : -1), ambit::Fd(udp6 >= 0 ? udp6 : -1), std::move(answers)));
}

void Datagrams::Rule(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  MustBeOpen(env);
  const uint64_t flow = static_cast<uint64_t>(NumberAt(info, 0, "flow"));
  if (info.Length() < 2 || info[1].IsNull()) {
    relay_->Rule(flow, nullptr);
    return;
  }
  if (!info[1].IsString()) throw Napi::TypeError::New(env, "target must be an address or null");
  std::string text = info[1].As<Napi::String>();
  Endpoint target;
  target.family = text.find(':') == std::string::npos ? AF_INET : AF_INET6;
  target.port = static_cast<uint16_t>(NumberAt(info, 2, "port"));
  if (inet_pton(target.family, text.c_str(), target.address.data()) != 1) ThrowErrno(env, "read the address of a flow's target", EINVAL);
  relay_->Rule(flow, &target);
}

void Datagrams::Remove(const Napi::CallbackInfo& info) {
  MustBeOpen(info.Env());
  relay_->Remove(static_cast<uint32_t>(NumberAt(info, 0, "cell")));
}

void Datagrams::Close(const Napi::CallbackInfo&) {
  if (!relay_) return;
  Shutdown();
  Unref();
}
