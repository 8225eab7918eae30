/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Which syscalls a cell made, counted without loss, and what became of them.
 *   sys_enter           the number and architecture as called: at exit an i386 execve has become a 64-bit one
 *   sys_exit            the outcome; an exit without an entry is a call that seccomp stopped
 *   sched_process_exit  exit, exit_group and calls in which a thread was killed never reach sys_exit
 *   sched_process_fork  a child leaves a clone that it never entered; and whose child it is
 *   sched_process_exec  here cell-init's child becomes the command
 * A thread that comes into a cell from outside has no state yet: how its first call began is not known, so that one is not counted.
 */
#include "maps.h"
#include "arch.h"

#define EAGAIN 11

char LICENSE[] SEC("license") = "Dual BSD/GPL";
AMBIT_LAYOUT(ambit_header);
AMBIT_LAYOUT(ambit_refused);
AMBIT_LAYOUT(ambit_count);

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, AMBIT_SLOTS * AMBIT_ROW);
  __type(key, __u32);
  __type(value, struct ambit_count);
} syscall_counts SEC(".maps");

enum outcome { SUCCEEDED, FAILED, REFUSED, UNFINISHED };

static __always_inline void count(__u32 slot, __u8 arch, __u32 nr, enum outcome outcome) {
  __u32 start = slot * AMBIT_ROW;
  __u32 place = start + arch_row(arch) * AMBIT_NUMBERS + nr;
  bool fits = nr < AMBIT_NUMBERS;
  if (!fits)
    place = start + AMBIT_ROW - 1;
  struct ambit_count *counts = bpf_map_lookup_elem(&syscall_counts, &place);
  if (!counts)
    return;
  /* A number out of range that the filter stopped used nothing: only what reached the kernel leaves a gap. */
  if (outcome == REFUSED)
    __sync_fetch_and_add(&counts->refused, 1);
  else if (!fits || outcome == SUCCEEDED)
    __sync_fetch_and_add(&counts->succeeded, 1);
  else if (outcome == FAILED)
    __sync_fetch_and_add(&counts->failed, 1);
  else
    __sync_fetch_and_add(&counts->unfinished, 1);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(syscalls_enter, struct pt_regs *regs, long number) {
  if (!near_cells())
    return 0;
  __u64 id = bpf_get_current_ancestor_cgroup_id(cell_level);
  struct task_struct *task = bpf_get_current_task_btf();
  struct task_state *state = bpf_task_storage_get(&tasks, task, 0, 0);
  if (!state || state->cell != id) {
    struct cell *cell;
    id = current_cell(&cell);
    if (!id)
      return 0;
    if (!state)
      state = bpf_task_storage_get(&tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
    if (!state) {
      count_event(id, AMBIT_SYSCALLS, 1);
      return 0;
    }
    state->cell = id;
    state->slot = cell->slot;
  }
  call_of(task, number, &state->arch, &state->nr);
  state->newborn = 0;
  state->entered = 1;
  return 0;
}

static __always_inline void tell_once(__u64 id, __u32 kind, __u8 arch, __u32 nr, long result) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  struct seen_key key = {
    .cell = id, .kind = kind, .detail = arch, .a = nr,
    .b = BPF_CORE_READ(task, tgid), .c = BPF_CORE_READ(task, group_leader, start_boottime),
  };
  if (was_seen(&key))
    return;
  struct ambit_refused *event = bpf_ringbuf_reserve(&events, sizeof *event, 0);
  count_event(id, kind, event == 0);
  if (!event)
    return;
  fill_header(&event->header, id, kind, sizeof *event);
  event->arch = arch;
  event->nr = nr;
  event->error = result < 0 && result >= -4095 ? -result : 0;
  event->reserved = 0;
  bpf_ringbuf_submit(event, 0);
  mark_seen(&key);
}

SEC("tp_btf/sys_exit")
int BPF_PROG(syscalls_exit, struct pt_regs *regs, long result) {
  if (!near_cells())
    return 0;
  struct task_struct *task = bpf_get_current_task_btf();
  struct task_state *state = bpf_task_storage_get(&tasks, task, 0, 0);
  __u64 number = number_at_exit(regs);
  if (state && state->entered) {
    state->entered = 0;
    /* After rt_sigreturn the result is the interrupted call's. */
    bool failed = result < 0 && result >= -4095 && (__u32)number != (__u32)-1;
    if (!state->setup)
      count(state->slot, state->arch, state->nr, failed ? FAILED : SUCCEEDED);
    /* What the pids controller refuses (kernel/fork.c); a limit of the user's own would look the same. */
    if (failed && result == -EAGAIN && makes_process(state->arch, state->nr))
      tell_once(state->cell, AMBIT_FORK_FAILED, state->arch, state->nr, result);
    return 0;
  }
  if (state && (state->newborn || state->setup)) {
    state->newborn = 0;
    return 0;
  }
  struct cell *cell;
  __u64 id = current_cell(&cell);
  if (!id)
    return 0;
  if (!state) {
    if (!bpf_task_storage_get(&tasks, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE))
      count_event(id, AMBIT_SYSCALLS, 1);
    return 0;
  }
  __u8 arch;
  __u32 nr;
  call_of(task, number, &arch, &nr);
  count(cell->slot, arch, nr, REFUSED);
  tell_once(id, AMBIT_SYSCALL_REFUSED, arch, nr, result);
  return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(syscalls_gone, struct task_struct *task) {
  if (!near_cells())
    return 0;
  struct task_state *state = bpf_task_storage_get(&tasks, task, 0, 0);
  if (state && state->entered && !state->setup)
    count(state->slot, state->arch, state->nr, UNFINISHED);
  return 0;
}

/* Runs in the parent before the child does. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(syscalls_fork, struct task_struct *parent, struct task_struct *child) {
  if (!near_cells())
    return 0;
  __u64 id = bpf_get_current_ancestor_cgroup_id(cell_level);
  struct cell *cell = id ? bpf_map_lookup_elem(&cells, &id) : 0;
  if (!cell)
    return 0;
  struct task_state *own = bpf_task_storage_get(&tasks, parent, 0, 0);
  struct task_state *state = bpf_task_storage_get(&tasks, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (!state) {
    count_event(id, AMBIT_SYSCALLS, 1);
    return 0;
  }
  state->cell = id;
  state->slot = cell->slot;
  state->newborn = 1;
  state->setup = (__u32)parent->tgid == cell->init_pid || (own && own->setup);
  return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(syscalls_exec, struct task_struct *task) {
  if (!current_cell(0))
    return 0;
  struct task_state *state = bpf_task_storage_get(&tasks, task, 0, 0);
  if (state)
    state->setup = 0;
  return 0;
}
