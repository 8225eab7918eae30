// SPDX-License-Identifier: Apache-2.0
#include "addon.hpp"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  if (RegisterSpawner) RegisterSpawner(env, exports);
  if (RegisterControl) RegisterControl(env, exports);
  if (RegisterProbes) RegisterProbes(env, exports);
  if (RegisterRelay) RegisterRelay(env, exports);
  if (RegisterDatagrams) RegisterDatagrams(env, exports);
  if (RegisterSystem) RegisterSystem(env, exports);
  return exports;
}

NODE_API_MODULE(ambit, Init)
