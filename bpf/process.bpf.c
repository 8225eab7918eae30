/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Which programs a cell ran, and the life of its processes. Tracepoints that fire when the act is done:
 * sched_process_exec knows the file that was really mapped, and arguments that the process can no longer change.
 * Failed execs are in files.bpf.c: they look like failed opens.
 */
#define RECORD_ROOM (5 * 4096)
#include "paths.h"

#define EEXIST 17

char LICENSE[] SEC("license") = "Dual BSD/GPL";
AMBIT_LAYOUT(ambit_exec);
AMBIT_LAYOUT(ambit_fork);
AMBIT_LAYOUT(ambit_exit);

static __always_inline bool in_setup(struct task_struct *task) {
  struct task_state *state = bpf_task_storage_get(&tasks, task, 0, 0);
  return state && state->setup;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm) {
  __u64 id = current_cell(0);
  if (!id)
    return 0;
  struct scratch *own = begin_record(id, AMBIT_EXEC, __builtin_offsetof(struct ambit_exec, data));
  if (!own)
    return 0;
  struct ambit_exec *event = (struct ambit_exec *)own->record;
  struct file *file = BPF_CORE_READ(bprm, file);
  struct inode *inode = BPF_CORE_READ(file, f_inode);
  event->ino = BPF_CORE_READ(inode, i_ino);
  event->dev = BPF_CORE_READ(inode, i_sb, s_dev);
  event->unlinked = BPF_CORE_READ(inode, i_nlink) == 0;
  event->script_length = 0;
  event->base_length = 0;
  event->argv_length = 0;
  event->reserved[0] = event->reserved[1] = event->reserved[2] = 0;
  walk_up((__u64)BPF_CORE_READ(file, f_path.mnt), (__u64)BPF_CORE_READ(file, f_path.dentry));
  event->path_length = append_walk(own);
  event->header.flags |= path_flags(&own->walk, AMBIT_CUT, AMBIT_UNREACHABLE);

  const char *named = BPF_CORE_READ(bprm, filename);
  if (named != BPF_CORE_READ(bprm, interp)) {
    __u32 at = own->length;
    if (at <= RECORD_ROOM - AMBIT_PATH_MAX) {
      long length = bpf_probe_read_kernel_str(&own->record[at], AMBIT_PATH_MAX, named);
      if (length > 1 && length <= AMBIT_PATH_MAX) {
        event->script_length = length - 1;
        own->length = at + length - 1;
        if (own->record[at] != '/') {
          walk_up((__u64)BPF_CORE_READ(task, fs, pwd.mnt), (__u64)BPF_CORE_READ(task, fs, pwd.dentry));
          event->base_length = append_walk(own);
          event->header.flags |= path_flags(&own->walk, AMBIT_BASE_CUT, AMBIT_BASE_UNREACHABLE);
        }
      }
    }
  }

  unsigned long start = BPF_CORE_READ(task, mm, arg_start);
  unsigned long size = BPF_CORE_READ(task, mm, arg_end) - start;
  if (size > AMBIT_ARGV_MAX) {
    size = AMBIT_ARGV_MAX;
    event->header.flags |= AMBIT_ARGV_CUT;
  }
  __u32 at = own->length;
  if (at <= RECORD_ROOM - AMBIT_PATH_MAX) {
    if (bpf_probe_read_user(&own->record[at], size, (void *)start) == 0) {
      event->argv_length = size;
      own->length = at + size;
    } else {
      event->header.flags |= AMBIT_ARGV_CUT;
    }
  }
  send_record(own, id, AMBIT_EXEC);
  own->busy = 0;
  return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child) {
  if (parent->tgid == child->tgid)
    return 0;
  __u64 id = current_cell(0);
  if (!id || in_setup(parent))
    return 0;
  struct ambit_fork *event = bpf_ringbuf_reserve(&events, sizeof *event, 0);
  count_event(id, AMBIT_FORK, event == 0);
  if (!event)
    return 0;
  fill_header(&event->header, id, AMBIT_FORK, sizeof *event);
  event->child_start = child->start_boottime;
  event->child = child->tgid;
  event->reserved = 0;
  bpf_ringbuf_submit(event, 0);
  return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task) {
  /* kernel/exit.c counts `live` down before this tracepoint: the last thread ends the process. */
  if (BPF_CORE_READ(task, signal, live.counter) != 0)
    return 0;
  __u64 id = current_cell(0);
  if (!id)
    return 0;
  /* A thread that was counted down before the last one can come here after it. */
  struct seen_key key = {.cell = id, .kind = AMBIT_EXIT, .a = BPF_CORE_READ(task, group_leader, start_boottime), .b = BPF_CORE_READ(task, tgid)};
  __u8 one = 1;
  /* Before 6.4 maps answer with an int, and the verifier calls them directly: the upper half is then no sign (kernel commit d7ba4cc900bf). */
  if ((int)bpf_map_update_elem(&seen, &key, &one, BPF_NOEXIST) == -EEXIST)
    return 0;
  struct ambit_exit *event = bpf_ringbuf_reserve(&events, sizeof *event, 0);
  count_event(id, AMBIT_EXIT, event == 0);
  if (!event)
    return 0;
  fill_header(&event->header, id, AMBIT_EXIT, sizeof *event);
  if (in_setup(task))
    event->header.flags |= AMBIT_SETUP;
  /* Kept as long as the process (mm/oom_kill.c, mark_oom_victim). */
  if (BPF_CORE_READ(task, signal, oom_mm))
    event->header.flags |= AMBIT_OOM;
  /* Of the last thread it would be that thread's own name. */
  BPF_CORE_READ_INTO(&event->header.comm, task, group_leader, comm);
  /* SIGNAL_GROUP_EXIT: what wait(2) will tell is then the group's code, not the first thread's. */
  event->status = BPF_CORE_READ(task, signal, flags) & 4 ? BPF_CORE_READ(task, signal, group_exit_code)
                                                          : BPF_CORE_READ(task, group_leader, exit_code);
  event->reserved = 0;
  bpf_ringbuf_submit(event, 0);
  return 0;
}
