/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Records with paths are put together in one per-CPU buffer and copied to the ring: their length is known only then.
 * Only tracepoints may do so, where preemption is off; `busy` is the guard if a kernel should ever change that.
 *
 * A path is walked from its dentry up to the process's root, across mounts, without locks: a rename at the same moment
 * can mix two paths, a freed name reads as noise, nothing worse (bpf_probe_read_kernel).
 */
#ifndef AMBIT_PATHS_H
#define AMBIT_PATHS_H

#include "maps.h"

#define WALK_STEPS 512

struct walk {
  __u64 dentry, mount;
  __u64 root_dentry, root_mount;
  __u32 at; /* the text begins here and ends at AMBIT_PATH_MAX */
  __u32 cut, unreachable;
  char text[AMBIT_PATH_MAX + 256];
};

/* An object defines RECORD_ROOM, enough for its largest record and AMBIT_PATH_MAX more, before it includes this. */
struct scratch {
  __u32 busy;
  __u32 length; /* of the record so far */
  __u64 hash;
  __u32 found;
  __u32 reserved;
  struct walk walk;
  char record[RECORD_ROOM];
};
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct scratch *scratch_of(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline void prepend(struct walk *walk, struct dentry *dentry) {
  const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
  __u32 length = BPF_CORE_READ(dentry, d_name.hash_len) >> 32;
  __u32 at = walk->at;
  if (length > 255)
    length = 255;
  if (at < length + 1 || at > AMBIT_PATH_MAX) {
    walk->cut = 1;
    return;
  }
  at -= length;
  bpf_probe_read_kernel(&walk->text[at & (AMBIT_PATH_MAX - 1)], length & 255, name);
  at -= 1;
  walk->text[at & (AMBIT_PATH_MAX - 1)] = '/';
  walk->at = at;
}

static long walk_step(__u32 step, void *unused) {
  struct scratch *own = scratch_of();
  if (!own)
    return 1;
  struct walk *walk = &own->walk;
  struct dentry *dentry = (struct dentry *)walk->dentry;
  struct mount *mount = (struct mount *)walk->mount;
  if (walk->dentry == walk->root_dentry && walk->mount == walk->root_mount)
    return 1;
  if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
    struct mount *above = BPF_CORE_READ(mount, mnt_parent);
    if (above == mount || !above) {
      walk->unreachable = 1;
      return 1;
    }
    walk->dentry = (__u64)BPF_CORE_READ(mount, mnt_mountpoint);
    walk->mount = (__u64)above;
    return 0;
  }
  struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
  prepend(walk, dentry);
  if (walk->cut)
    return 1;
  if (parent == dentry || !parent) {
    walk->unreachable = 1;
    return 1;
  }
  walk->dentry = (__u64)parent;
  if (step == WALK_STEPS - 1)
    walk->cut = 1;
  return 0;
}

static __always_inline struct mount *mount_of(struct vfsmount *mnt) {
  return (struct mount *)((char *)mnt - bpf_core_field_offset(struct mount, mnt));
}

/* Leaves the text in the walk. Global functions, with numbers for kernel pointers, are verified once and not at each call. */
__noinline int walk_up(__u64 mnt, __u64 dentry) {
  struct scratch *own = scratch_of();
  if (!own)
    return 0;
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  struct walk *walk = &own->walk;
  walk->dentry = dentry;
  walk->mount = (__u64)mount_of((struct vfsmount *)mnt);
  walk->root_dentry = (__u64)BPF_CORE_READ(task, fs, root.dentry);
  walk->root_mount = (__u64)mount_of(BPF_CORE_READ(task, fs, root.mnt));
  walk->at = AMBIT_PATH_MAX;
  walk->cut = 0;
  walk->unreachable = 0;
  bpf_loop(WALK_STEPS, walk_step, 0, 0);
  if (walk->at >= AMBIT_PATH_MAX) {
    walk->at = AMBIT_PATH_MAX - 1;
    walk->text[AMBIT_PATH_MAX - 1] = '/';
  }
  return 0;
}

/* Adds the walked text to the record; its length. */
static __always_inline __u32 append_walk(struct scratch *own) {
  __u32 start = own->walk.at;
  __u32 at = own->length;
  if (start >= AMBIT_PATH_MAX || at > RECORD_ROOM - AMBIT_PATH_MAX)
    return 0;
  __u32 length = AMBIT_PATH_MAX - start;
  bpf_probe_read_kernel(&own->record[at], length, &own->walk.text[start]);
  own->length = at + length;
  return length;
}

static __always_inline __u64 path_flags(const struct walk *walk, __u32 cut, __u32 unreachable) {
  return (walk->cut ? cut : 0) | (walk->unreachable ? unreachable : 0);
}

/* Sends the record: padded to eight bytes, sized, counted. Whether it is in the ring. */
static __always_inline bool send_record(struct scratch *own, __u64 cell, __u32 kind) {
  struct ambit_header *header = (struct ambit_header *)own->record;
  __u32 length = own->length;
  if (length > RECORD_ROOM - 8)
    return false;
  *(__u64 *)&own->record[length] = 0;
  length = (length + 7) & ~7u;
  if (length > RECORD_ROOM)
    return false;
  header->size = length;
  long error = bpf_ringbuf_output(&events, own->record, length, 0);
  count_event(cell, kind, error);
  return error == 0;
}

/* The scratch of this CPU, or 0 and a loss counted. */
static __always_inline struct scratch *begin_record(__u64 cell, __u32 kind, __u32 fixed) {
  struct scratch *own = scratch_of();
  if (!own || own->busy) {
    count_event(cell, kind, 1);
    return 0;
  }
  own->busy = 1;
  own->length = fixed;
  fill_header((struct ambit_header *)own->record, cell, kind, fixed);
  return own;
}

/* The file behind a descriptor of the current task, or 0. */
static __always_inline struct file *file_of(__u32 descriptor) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  struct fdtable *table = BPF_CORE_READ(task, files, fdt);
  struct file **files = BPF_CORE_READ(table, fd);
  struct file *file = 0;
  if (descriptor >= BPF_CORE_READ(table, max_fds))
    return 0;
  bpf_probe_read_kernel(&file, sizeof file, &files[descriptor]);
  return file;
}

#endif
