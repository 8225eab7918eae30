// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <bpf/libbpf.h>
#include <cstdint>
#include "events.h"

// What the first row of the syscall sets counts on this machine; bpf/arch.h has the rows in the same order.
#if defined(__x86_64__)
constexpr uint32_t kFirstArch = AMBIT_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kFirstArch = AMBIT_AARCH64;
#endif

// Writes into the object's map `calls` what the arguments of each syscall mean. 0, or a negative errno.
int FillCallTable(bpf_object* files);
