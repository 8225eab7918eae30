/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* Everything that differs between processor architectures: which call a task is in, and its arguments. */
#ifndef AMBIT_ARCH_H
#define AMBIT_ARCH_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include "events.h"

/* The registers of a task in a call: uapi on both architectures, so without CO-RE. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
  unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip;
};
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
  __u64 regs[31];
  __u64 sp, pc, pstate;
  __u64 orig_x0;
  __s32 syscallno;
};
#endif

/* The call as the task made it (from bpf_get_current_task_btf, so that its fields can be read directly), with the number that its architecture gives it. */
static __always_inline void call_of(struct task_struct *task, __u64 id, __u8 *arch, __u32 *nr) {
  *nr = (__u32)id;
#if defined(__TARGET_ARCH_x86)
  /* arch/x86/include/asm/thread_info.h: TS_COMPAT holds from the entry of a 32-bit call until after the exit tracepoint. */
  if (task->thread_info.status & 0x0002) {
    *arch = AMBIT_I386;
  } else if (*nr != (__u32)-1 && (*nr & 0x40000000)) { /* __X32_SYSCALL_BIT */
    *arch = AMBIT_X32;
    *nr &= ~0x40000000u;
  } else {
    *arch = AMBIT_X86_64;
  }
#elif defined(__TARGET_ARCH_arm64)
  *arch = task->thread_info.flags & (1UL << 22) ? AMBIT_ARM : AMBIT_AARCH64; /* TIF_32BIT */
#endif
}

/* The number at the exit of a call; -1 after rt_sigreturn, which restores another call's registers. */
static __always_inline __u64 number_at_exit(struct pt_regs *regs) {
#if defined(__TARGET_ARCH_x86)
  return regs->orig_ax;
#elif defined(__TARGET_ARCH_arm64)
  return regs->syscallno;
#endif
}

static __always_inline __u32 arch_row(__u8 arch) {
  return arch >= AMBIT_AARCH64 ? arch - AMBIT_AARCH64 : arch;
}

/* Whether the call makes a process or thread. Of this machine's own architecture: cells make no call of another. */
static __always_inline bool makes_process(__u8 arch, __u32 nr) {
#if defined(__TARGET_ARCH_x86)
  return arch == AMBIT_X86_64 && (nr == 56 || nr == 57 || nr == 58 || nr == 435); /* clone, fork, vfork, clone3 */
#elif defined(__TARGET_ARCH_arm64)
  return arch == AMBIT_AARCH64 && (nr == 220 || nr == 435);
#endif
}

#define ARGUMENTS 8 /* room for more than a call has, so that a masked place is always within */
struct arguments {
  __u64 at[ARGUMENTS];
};

/* All at once and then by place: a choice for each one read would multiply the paths that the verifier must walk. */
static __always_inline void arguments_of(struct pt_regs *regs, __u8 arch, struct arguments *to) {
#if defined(__TARGET_ARCH_x86)
  struct pt_regs all;
  bpf_probe_read_kernel(&all, sizeof all, regs);
  bool compat = arch == AMBIT_I386;
  to->at[0] = compat ? (__u32)all.bx : all.di;
  to->at[1] = compat ? (__u32)all.cx : all.si;
  to->at[2] = compat ? (__u32)all.dx : all.dx;
  to->at[3] = compat ? (__u32)all.si : all.r10;
  to->at[4] = compat ? (__u32)all.di : all.r8;
  to->at[5] = compat ? (__u32)all.bp : all.r9;
  to->at[6] = to->at[7] = 0;
#elif defined(__TARGET_ARCH_arm64)
  bpf_probe_read_kernel(to->at, sizeof to->at, regs->regs);
  bpf_probe_read_kernel(&to->at[0], sizeof to->at[0], &regs->orig_x0); /* x0 is the result by now */
  if (arch == AMBIT_ARM)
    for (int i = 0; i < ARGUMENTS; i++)
      to->at[i] = (__u32)to->at[i];
#endif
}

static __always_inline __u64 argument(const struct arguments *from, __s8 place) {
  return from->at[place & (ARGUMENTS - 1)];
}

#endif
