/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The maps that all programs share, and the way from a task to its cell. Each object declares them; the loader
 * creates them once and hands them to every other object by name (bpf_map__reuse_fd).
 */
#ifndef AMBIT_MAPS_H
#define AMBIT_MAPS_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "events.h"

/* Kept so that the layout of each record is in the object's BTF, where a test compares it with the decoder's. */
#define AMBIT_LAYOUT(NAME) const struct NAME *layout_of_##NAME __attribute__((unused))

/* Depth of the cells' cgroups below the v2 root; set between open and load. */
const volatile int cell_level = 1;
/* Id of the cgroup that holds all cells: tells a process of the host without a look into a map. 0: not set. */
const volatile __u64 parent_id = 0;

struct cell {
  __u32 init_pid;   /* cell-init on the host (tgid): its own acts are not evidence */
  __u32 slot;       /* its row in the syscall sets */
};

/* v2 cgroup id -> cell. Written by the daemon alone. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1024);
  __type(key, __u64);
  __type(value, struct cell);
} cells SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 8 * 1024 * 1024);
} events SEC(".maps");

/* produced = delivered + dropped, to the event. */
struct counter {
  __u64 produced;
  __u64 dropped;
};
struct counter_key {
  __u64 cell;
  __u32 kind;
  __u32 reserved;
};
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1024 * AMBIT_KIND_COUNT);
  __type(key, struct counter_key);
  __type(value, struct counter);
} counters SEC(".maps");

/* False: the current task is in no cell. */
static __always_inline bool near_cells(void) {
  return !parent_id || bpf_get_current_ancestor_cgroup_id(cell_level - 1) == parent_id;
}

/* The cell of the current task, 0 outside every cell. A nested cgroup belongs to the cell above it. */
static __always_inline __u64 current_cell(struct cell **found) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  if (!near_cells())
    return 0;
  __u64 id = bpf_get_current_ancestor_cgroup_id(cell_level);
  struct cell *cell = id ? bpf_map_lookup_elem(&cells, &id) : 0;
  if (!cell)
    return 0;
  if ((__u32)BPF_CORE_READ(task, tgid) == cell->init_pid)
    return 0;
  if (found)
    *found = cell;
  return id;
}

/* Counters of a cell are created by the daemon before the cell starts: a missing one is another cell's end, not a loss. */
static __always_inline struct counter *counter_of(__u64 cell, __u32 kind) {
  struct counter_key key = {.cell = cell, .kind = kind};
  return bpf_map_lookup_elem(&counters, &key);
}

static __always_inline void fill_header(struct ambit_header *header, __u64 cell, __u32 kind, __u32 size) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  header->size = size;
  header->kind = kind;
  header->flags = 0;
  header->cell = cell;
  header->time = bpf_ktime_get_boot_ns();
  header->start = BPF_CORE_READ(task, group_leader, start_boottime);
  header->pid = BPF_CORE_READ(task, tgid);
  header->tid = BPF_CORE_READ(task, pid);
  header->ppid = BPF_CORE_READ(task, real_parent, tgid);
  header->reserved = 0;
  BPF_CORE_READ_INTO(&header->comm, task, comm);
}

/* One event more of a kind; `error` is what the ring said. */
static __always_inline void count_event(__u64 cell, __u32 kind, long error) {
  struct counter *counter = counter_of(cell, kind);
  if (!counter)
    return;
  __sync_fetch_and_add(&counter->produced, 1);
  if (error)
    __sync_fetch_and_add(&counter->dropped, 1);
}

/*
 * What a cell was already seen to do. The oldest entries make way when it is full: an act is then told twice, never not at all.
 * Cgroup ids are not used again within a boot, so what an ended cell leaves here means nothing and ages out.
 */
struct seen_key {
  __u64 cell;
  __u32 kind;
  __u32 detail;
  __u64 a, b, c;
};
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct seen_key);
  __type(value, __u8);
} seen SEC(".maps");

static __always_inline bool was_seen(const struct seen_key *key) {
  return bpf_map_lookup_elem(&seen, key) != 0;
}

/* Only after the event is in the ring: what was dropped must be told the next time. */
static __always_inline void mark_seen(const struct seen_key *key) {
  __u8 one = 1;
  bpf_map_update_elem(&seen, key, &one, BPF_ANY);
}

/* What is known of a thread in a cell. Kept by syscalls.bpf.c, read by the others; only tracepoints, where nothing preempts. */
struct task_state {
  __u64 cell;   /* what the two below are of, 0: nothing is known yet */
  __u32 slot;
  __u32 nr;
  __u8 arch;
  __u8 entered; /* inside a syscall that seccomp let through */
  __u8 newborn; /* will leave a clone that it never entered */
  __u8 setup;   /* cell-init's child before the command's first exec: not the job's acts */
  __u8 told;    /* lsm.bpf.c told of the file that was opened last */
  __u8 refused; /* lsm.bpf.c refused the exec that is going on */
  __u16 reserved;
};
struct {
  __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct task_state);
} tasks SEC(".maps");

#endif
