// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <napi.h>

// Each part of the addon puts its class or functions on `exports`; src/native.ts holds their types.
__attribute__((weak)) void RegisterSpawner(Napi::Env env, Napi::Object exports);
__attribute__((weak)) void RegisterControl(Napi::Env env, Napi::Object exports);
__attribute__((weak)) void RegisterProbes(Napi::Env env, Napi::Object exports);
__attribute__((weak)) void RegisterRelay(Napi::Env env, Napi::Object exports);
__attribute__((weak)) void RegisterDatagrams(Napi::Env env, Napi::Object exports);
__attribute__((weak)) void RegisterSystem(Napi::Env env, Napi::Object exports);

// Throws a JavaScript Error with {code: 'NATIVE', errno, syscall}; `what` is the call that failed.
[[noreturn]] void ThrowErrno(Napi::Env env, const char* what, int error);
