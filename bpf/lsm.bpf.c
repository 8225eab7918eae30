/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What only an LSM hook sees, on kernels that let eBPF programs be one (lsm=…,bpf and trampolines).
 *   file_open            the file that is being opened, whatever way the call came in (io_uring too), before another thread can
 *                        touch the descriptor; it runs after the other modules, so what they refuse never comes here. An open
 *                        that the file's own driver refuses afterwards is told as opened.
 *   bprm_check_security  each file that an execve is to run: the program, and the interpreter of a script. Here the list of a
 *                        contract is held, by device and inode and not by name.
 * A program that refuses ends the chain: whoever comes here was refused by none before.
 * These programs may be preempted, unlike tracepoints. If another holds this CPU's scratch, files.bpf.c tells of the open.
 */
#define RECORD_ROOM (4 * 4096)
#include "opened.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define EACCES 13
/* uapi/asm-generic/fcntl.h and include/linux/fs.h */
#define O_TRUNC 01000
#define FMODE_EXEC 0x20
#define FMODE_BACKING 0x2000000
#define FMODE_NONOTIFY 0x4000000
/* Directories above a program that are looked up: deeper ones count as not granted. */
#define ABOVE 64

/* A kernel that has the hooks but not this module among its lsm=… attaches these programs and never calls them. */
__u32 heard = 0;

/* Cells whose programs are listed. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 1024);
  __type(key, __u64);
  __type(value, __u8);
} exec_held SEC(".maps");

/* What such a cell may execute: a file, or all that lies below a directory. Written by the daemon before the cell starts. */
struct exec_key {
  __u64 cell;
  __u64 ino;
  __u32 dev;      /* kernel form */
  __u32 reserved;
};
enum { EXEC_FILE = 1, EXEC_TREE = 2 };
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 131072);
  __type(key, struct exec_key);
  __type(value, __u8);
} exec_allowed SEC(".maps");

SEC("lsm/file_open")
int BPF_PROG(lsm_file_open, struct file *file) {
  if (!heard)
    heard = 1;
  __u64 cell = current_cell(0);
  if (!cell)
    return 0;
  struct task_struct *task = bpf_get_current_task_btf();
  struct task_state *state = bpf_task_storage_get(&tasks, task, 0, 0);
  if (state && state->setup)
    return 0;
  __u32 flags = BPF_CORE_READ(file, f_flags);
  __u32 mode = BPF_CORE_READ(file, f_mode);
  /* Programs are told of when they run. What lies below an overlay's file is opened by the kernel, a second time. */
  if ((flags & (FMODE_EXEC | FMODE_NONOTIFY)) || (mode & FMODE_BACKING))
    return 0;
  struct scratch *own = scratch_of();
  bool taken = !own || own->busy;
  if (state)
    state->told = !taken;
  if (taken) {
    if (!state || !state->entered)
      count_event(cell, AMBIT_FILE, 1);
    return 0;
  }
  /* The verifier takes no pointer for a global function's number: it is read back as one. */
  struct file *const held = file;
  __u64 opened = 0;
  bpf_probe_read_kernel(&opened, sizeof opened, &held);
  tell_opened(cell, opened, (flags & O_TRUNC) != 0, AMBIT_FROM_LSM);
  return 0;
}

struct climb {
  __u64 cell;
  __u64 dentry;
  __u32 dev;
  __u32 allowed;
};

static long climb_step(__u32 step, struct climb *climb) {
  struct dentry *dentry = (struct dentry *)climb->dentry;
  struct exec_key key = {.cell = climb->cell, .ino = BPF_CORE_READ(dentry, d_inode, i_ino), .dev = climb->dev};
  __u8 *rule = bpf_map_lookup_elem(&exec_allowed, &key);
  if (rule && (*rule == EXEC_TREE || step == 0)) {
    climb->allowed = 1;
    return 1;
  }
  struct dentry *parent = BPF_CORE_READ(dentry, d_parent);
  if (parent == dentry || !parent)
    return 1;
  climb->dentry = (__u64)parent;
  return 0;
}

SEC("lsm/bprm_check_security")
int BPF_PROG(lsm_exec, struct linux_binprm *bprm) {
  __u64 cell = current_cell(0);
  if (!cell || !bpf_map_lookup_elem(&exec_held, &cell))
    return 0;
  struct file *file = BPF_CORE_READ(bprm, file);
  struct super_block *super = BPF_CORE_READ(file, f_inode, i_sb);
  /* Made within the cell (its /tmp, /dev and root): what executes there is the mounts' and Landlock's to hold. */
  if (BPF_CORE_READ(super, s_user_ns, level) > 0)
    return 0;
  struct climb climb = {
    .cell = cell, .dentry = (__u64)BPF_CORE_READ(file, f_path.dentry),
    .dev = BPF_CORE_READ(super, s_dev),
  };
  bpf_loop(ABOVE, climb_step, &climb, 0);
  if (climb.allowed)
    return 0;
  struct task_struct *task = bpf_get_current_task_btf();
  struct task_state *state = bpf_task_storage_get(&tasks, task, 0, 0);
  if (state)
    state->refused = 1;
  return -EACCES;
}
