// SPDX-License-Identifier: Apache-2.0
#include "relay.hpp"
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <cerrno>
#include <csignal>
#include <system_error>
#include "addon.hpp"
#include "relay-loop.hpp"

using ambit::Fd;

namespace {

// What a call from the thread needs on JavaScript's side; kept alive by the thread-safe function itself.
struct Callbacks {
  Napi::FunctionReference on_end, on_heard;
  bool closed = false;
};
using Context = std::shared_ptr<Callbacks>;

void CallJs(Napi::Env env, Napi::Function, Context* context, RelayEvent* raw) {
  std::unique_ptr<RelayEvent> event(raw);
  if (static_cast<napi_env>(env) == nullptr || (*context)->closed) return;
  auto number = [&](uint64_t value) { return Napi::Number::New(env, static_cast<double>(value)); };
  if (event->kind != RelayEvent::kEnded) {
    Napi::Value bytes = event->kind == RelayEvent::kOver ? env.Null() : Napi::Buffer<uint8_t>::Copy(env, event->bytes.data(), event->bytes.size());
    (*context)->on_heard.Call({number(event->flow), number(event->bytes_in), bytes});
    return;
  }
  const char* culprits[] = {nullptr, "client", "server", "cut"};
  const char* culprit = culprits[event->culprit];
  (*context)->on_end.Call({number(event->flow), number(event->bytes_out), number(event->bytes_in),
                           culprit == nullptr ? env.Null() : Napi::String::New(env, culprit), number(event->error)});
}

using Channel = Napi::TypedThreadSafeFunction<Context, RelayEvent, CallJs>;

Fd DuplicateStream(Napi::Env env, const Napi::Value& value, const char* what) {
  if (!value.IsNumber()) throw Napi::TypeError::New(env, std::string(what) + " must be a descriptor");
  int given = value.As<Napi::Number>().Int32Value();
  int type = 0;
  socklen_t size = sizeof type;
  if (getsockopt(given, SOL_SOCKET, SO_TYPE, &type, &size) != 0) ThrowErrno(env, what, errno);
  if (type != SOCK_STREAM) ThrowErrno(env, what, EPROTOTYPE);
  Fd fd(fcntl(given, F_DUPFD_CLOEXEC, 0));
  if (!fd) ThrowErrno(env, what, errno);
  return fd;
}

}  // namespace

struct RelayChannel {
  Channel channel;
  Context callbacks;
};

void Relay::Register(Napi::Env env, Napi::Object exports) {
  exports.Set("Relay", DefineClass(env, "Relay", {
    InstanceMethod("open", &Relay::Open),
    InstanceMethod("send", &Relay::Send),
    InstanceMethod("sent", &Relay::Sent),
    InstanceMethod("watch", &Relay::Watch),
    InstanceMethod("unwatch", &Relay::Unwatch),
    InstanceMethod("cut", &Relay::Cut),
    InstanceMethod("close", &Relay::Close),
  }));
}

void RegisterRelay(Napi::Env env, Napi::Object exports) { Relay::Register(env, exports); }

Relay::Relay(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Relay>(info) {
  Napi::Env env = info.Env();
  if (info.Length() < 2 || !info[0].IsFunction() || !info[1].IsFunction()) throw Napi::TypeError::New(env, "Relay(onEnd, onHeard): two functions");
  auto loop = std::make_shared<RelayLoop>();
  const char* step = "";
  if (int error = loop->Open(&step)) ThrowErrno(env, step, error);

  auto callbacks = std::make_shared<Callbacks>();
  callbacks->on_end = Napi::Persistent(info[0].As<Napi::Function>());
  callbacks->on_heard = Napi::Persistent(info[1].As<Napi::Function>());
  Channel channel = Channel::New(env, "ambit relay", 0, 1, new Context(callbacks),
                                 [](Napi::Env, void*, Context* context) { delete context; }, static_cast<void*>(nullptr));
  try {
    thread_ = std::thread([loop, channel] {
      // The thread runs no signal handler of the process it is a guest in; SIGPIPE, which splice(2) cannot do without, stays pending.
      sigset_t all;
      sigfillset(&all);
      pthread_sigmask(SIG_BLOCK, &all, nullptr);
      pthread_setname_np(pthread_self(), "ambit-relay");
      loop->Run([&](std::unique_ptr<RelayEvent> event) {
        if (channel.NonBlockingCall(event.get()) == napi_ok) event.release();
      });
    });
  } catch (const std::system_error& error) {
    channel.Release();
    ThrowErrno(env, "start the relay's thread", error.code().value());
  }
  channel_ = std::make_unique<RelayChannel>(RelayChannel{channel, callbacks});
  loop_ = loop;
  env_ = env;
  // Node may end without a close(): the thread must be gone before what it calls is.
  napi_add_env_cleanup_hook(env_, AtExit, this);
  // The thread works for as long as the relay is open, whoever still holds this object.
  Ref();
}

Relay::~Relay() { Shutdown(); }

void Relay::AtExit(void* self) { static_cast<Relay*>(self)->Shutdown(); }

void Relay::Shutdown() {
  if (!loop_) return;
  channel_->callbacks->closed = true;
  loop_->Stop();
  thread_.join();
  channel_->channel.Release();
  channel_->callbacks->on_end.Reset();
  channel_->callbacks->on_heard.Reset();
  channel_.reset();
  loop_.reset();
  napi_remove_env_cleanup_hook(env_, AtExit, this);
}

uint64_t Relay::FlowArgument(const Napi::CallbackInfo& info) const {
  if (!loop_) throw Napi::Error::New(info.Env(), "the relay is closed");
  if (info.Length() < 1 || !info[0].IsNumber()) throw Napi::TypeError::New(info.Env(), "flow must be a number");
  return static_cast<uint64_t>(info[0].As<Napi::Number>().Int64Value());
}

Napi::Value Relay::Open(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!loop_) throw Napi::Error::New(env, "the relay is closed");
  if (info.Length() < 3 || !info[2].IsNumber()) throw Napi::TypeError::New(env, "open(client, server, group): three numbers");
  RelayCommand command{RelayCommand::kOpen};
  command.client = DuplicateStream(env, info[0], "duplicate the client's socket");
  command.server = DuplicateStream(env, info[1], "duplicate the server's socket");
  command.group = info[2].As<Napi::Number>().Uint32Value();
  command.flow = next_++;
  loop_->Post(std::move(command));
  return Napi::Number::New(env, static_cast<double>(next_ - 1));
}

void Relay::Send(const Napi::CallbackInfo& info) {
  RelayCommand command{RelayCommand::kSend, FlowArgument(info)};
  if (info.Length() < 2 || !info[1].IsBuffer()) throw Napi::TypeError::New(info.Env(), "first must be a Buffer");
  auto first = info[1].As<Napi::Buffer<uint8_t>>();
  command.bytes.assign(first.Data(), first.Data() + first.Length());
  loop_->Post(std::move(command));
}

void Relay::Sent(const Napi::CallbackInfo& info) {
  RelayCommand command{RelayCommand::kSent, FlowArgument(info)};
  if (info.Length() < 2 || !info[1].IsNumber()) throw Napi::TypeError::New(info.Env(), "errno must be a number");
  command.error = info[1].As<Napi::Number>().Int32Value();
  loop_->Post(std::move(command));
}

void Relay::Ask(const Napi::CallbackInfo& info, int kind) {
  RelayCommand command{static_cast<decltype(RelayCommand::kind)>(kind), FlowArgument(info)};
  loop_->Post(std::move(command));
}

void Relay::Watch(const Napi::CallbackInfo& info) { Ask(info, RelayCommand::kWatch); }
void Relay::Unwatch(const Napi::CallbackInfo& info) { Ask(info, RelayCommand::kUnwatch); }
void Relay::Cut(const Napi::CallbackInfo& info) { Ask(info, RelayCommand::kCut); }

void Relay::Close(const Napi::CallbackInfo&) {
  if (!loop_) return;
  Shutdown();
  Unref();
}
