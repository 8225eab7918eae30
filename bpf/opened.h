/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/* The record of an opened file, told by the file itself: files.bpf.c has it from a descriptor, lsm.bpf.c from the kernel. */
#ifndef AMBIT_OPENED_H
#define AMBIT_OPENED_H

#include "paths.h"

#define FIXED __builtin_offsetof(struct ambit_file, data)
/* include/linux/fs.h */
#define FMODE_CREATED 0x100000

__noinline int tell_opened(__u64 cell, __u64 opened, __u32 truncated, __u32 source) {
  struct file *file = (struct file *)opened;
  struct inode *inode = BPF_CORE_READ(file, f_inode);
  struct dentry *dentry = BPF_CORE_READ(file, f_path.dentry);
  struct vfsmount *mnt = BPF_CORE_READ(file, f_path.mnt);
  __u32 mode = BPF_CORE_READ(file, f_mode);
  __u8 access = (mode & 3) | (truncated ? AMBIT_WRITE : 0); /* FMODE_READ, FMODE_WRITE */
  __u8 created = (mode & FMODE_CREATED) != 0;
  /* A number is used again for another file as soon as the first is removed: its name and place tell them apart. */
  struct seen_key key = {
    .cell = cell, .kind = AMBIT_FILE, .detail = (__u32)access << 4 | created << 3,
    .a = BPF_CORE_READ(inode, i_ino),
    .b = (__u64)BPF_CORE_READ(inode, i_sb, s_dev) << 32 | (__u32)BPF_CORE_READ(dentry, d_name.hash_len),
    .c = (__u64)mnt,
  };
  if (was_seen(&key))
    return 0;
  struct scratch *own = begin_record(cell, AMBIT_FILE, FIXED);
  if (!own)
    return 0;
  struct ambit_file *event = (struct ambit_file *)own->record;
  event->ino = key.a;
  event->dev = key.b >> 32;
  event->error = 0;
  event->access = access;
  event->source = source;
  event->created = created;
  event->reserved = 0;
  event->base_length = 0;
  walk_up((__u64)mnt, (__u64)dentry);
  event->path_length = append_walk(own);
  event->header.flags |= path_flags(&own->walk, AMBIT_CUT, AMBIT_UNREACHABLE);
  if (send_record(own, cell, AMBIT_FILE))
    mark_seen(&key);
  own->busy = 0;
  return 0;
}

#endif
