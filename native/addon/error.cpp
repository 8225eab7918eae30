// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <string>
#include "addon.hpp"

void ThrowErrno(Napi::Env env, const char* what, int error) {
  Napi::Error thrown = Napi::Error::New(env, std::string(what) + ": " + strerror(error));
  thrown.Set("code", Napi::String::New(env, "NATIVE"));
  thrown.Set("errno", Napi::Number::New(env, error));
  thrown.Set("syscall", Napi::String::New(env, what));
  throw thrown;
}
