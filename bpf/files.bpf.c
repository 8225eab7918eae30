/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Which files a cell opened, failed to open, made, removed or changed, and which programs it failed to execute.
 * At the exit of the call, where the outcome is known and the path argument has been faulted in. The descriptor that an open
 * returned tells the file and its real path; another thread can close or replace it at that moment. If it is gone, what the
 * process said is told, as such. Where lsm.bpf.c is attached it has told of the file before, and there is no such gap. All else is known by its argument alone: changes, looks
 * without opening, and sockets with a path.
 * The loader attaches this before syscalls.bpf.c's exit program, which clears `entered`.
 */
#define RECORD_ROOM (4 * 4096)
#include "opened.h"
#include "arch.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
AMBIT_LAYOUT(ambit_file);
AMBIT_LAYOUT(ambit_call);

/* So that a job cannot choose a path whose hash is that of another. */
const volatile __u64 hash_seed = 0;

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, AMBIT_ARCHES * AMBIT_NUMBERS);
  __type(key, __u32);
  __type(value, struct ambit_call);
} calls SEC(".maps");

#define AT_FDCWD -100
/* uapi/asm-generic/fcntl.h and include/linux/fs.h */
#define O_CREAT 0100
#define O_TRUNC 01000
#define O_PATH 010000000
#define AF_UNIX 1
#define SUN_PATH 108

static long hash_step(__u32 step, void *unused) {
  struct scratch *own = scratch_of();
  __u32 at = FIXED + step * 8;
  if (!own || at > FIXED + AMBIT_PATH_MAX)
    return 1;
  __u64 word = *(__u64 *)&own->record[at];
  __u32 left = own->found - step * 8;
  if (left < 8)
    word &= (1ULL << (left * 8)) - 1;
  __u64 hash = (own->hash ^ word) * 0x9e3779b97f4a7c15ULL;
  own->hash = hash ^ (hash >> 29);
  return 0;
}

static long slash_step(__u32 step, void *unused) {
  struct scratch *own = scratch_of();
  if (!own || own->found == 0)
    return 1;
  __u32 at = FIXED + own->found - 1;
  if (at > FIXED + AMBIT_PATH_MAX)
    return 1;
  if (own->record[at] == '/')
    return 1;
  own->found--;
  return 0;
}

struct act {
  __u64 cell;
  __u64 argument;   /* user address */
  __s32 dirfd;
  __s32 error;      /* positive */
  __u8 kind;        /* enum ambit_kind */
  __u8 access;
  __u8 entry;       /* one name in a directory is made or removed */
  __u8 created;     /* the name was made or removed, or the file came into being */
  __u8 setup;
  __u8 look;        /* nothing was opened */
  __u8 by_lsm;
  __u8 spoken;      /* a socket was spoken to */
  __u8 owner;       /* of it: 1 the cell, 2 the host, 0 not known */
  __u16 limit;      /* of the argument's bytes, without its end; 0: none */
};

/* An act known by its path argument. A directory's entries are told once: who may change one of them may change them all. */
__noinline int tell_argument(struct act *act) {
  if (!act)
    return 0;
  struct scratch *own = begin_record(act->cell, act->kind, FIXED);
  if (!own)
    return 0;
  struct ambit_file *event = (struct ambit_file *)own->record;
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  event->ino = 0;
  event->dev = 0;
  event->error = act->error;
  event->access = act->access;
  event->source = act->look ? AMBIT_NAME : AMBIT_ARGUMENT;
  event->created = act->created;
  event->reserved = 0;
  event->base_length = 0;
  if (act->setup)
    event->header.flags |= AMBIT_SETUP;
  if (act->by_lsm)
    event->header.flags |= AMBIT_BY_LSM;
  if (act->spoken)
    event->header.flags |= AMBIT_SPOKEN_TO;
  if (act->owner)
    event->header.flags |= act->owner == 1 ? AMBIT_OF_CELL : AMBIT_OF_HOST;
  long length = act->argument ? bpf_probe_read_user_str(&own->record[FIXED], AMBIT_PATH_MAX, (void *)act->argument) : 1;
  if (length <= 0 || length > AMBIT_PATH_MAX) {
    event->header.flags |= AMBIT_UNREADABLE;
    length = 1;
  }
  if (act->limit && act->limit <= SUN_PATH && length > act->limit + 1)
    length = act->limit + 1;
  event->path_length = length - 1;
  own->length = FIXED + length - 1;

  struct seen_key key = {.cell = act->cell, .kind = act->kind};
  key.detail = (__u32)act->error << 8 | (__u32)act->owner << 6 | (__u32)act->access << 4 | (__u32)act->spoken << 3 | (__u32)act->look << 2 | (__u32)act->entry << 1 | act->setup;
  struct vfsmount *mnt = 0;
  struct dentry *dentry = 0;
  bool relative = own->record[FIXED] != '/' || length == 1;
  if (relative) {
    if (act->dirfd == AT_FDCWD) {
      mnt = BPF_CORE_READ(task, fs, pwd.mnt);
      dentry = BPF_CORE_READ(task, fs, pwd.dentry);
    } else {
      struct file *file = file_of(act->dirfd);
      if (file) {
        mnt = BPF_CORE_READ(file, f_path.mnt);
        dentry = BPF_CORE_READ(file, f_path.dentry);
      } else {
        event->header.flags |= AMBIT_BASE_UNKNOWN;
      }
    }
    key.a = (__u64)dentry;
    key.b = (__u64)mnt;
  }
  own->found = length - 1;
  if (act->entry) {
    bpf_loop(AMBIT_PATH_MAX, slash_step, 0, 0);
    /* The last name is not followed: under a directory that is known, the path is exact. */
    if (own->found == 0 && dentry)
      event->source = AMBIT_DESCRIPTOR;
  }
  own->hash = hash_seed ^ own->found;
  bpf_loop((own->found + 7) / 8, hash_step, 0, 0);
  key.c = own->hash;
  if (!was_seen(&key)) {
    if (dentry) {
      walk_up((__u64)mnt, (__u64)dentry);
      event->base_length = append_walk(own);
      event->header.flags |= path_flags(&own->walk, AMBIT_BASE_CUT, AMBIT_BASE_UNREACHABLE);
    }
    if (send_record(own, act->cell, act->kind))
      mark_seen(&key);
  }
  own->busy = 0;
  return 0;
}

/*
 * Whose the socket is that this one was connected to, which no name can tell: the cell's, if it was bound in the cell's own mount
 * namespace. A descriptor that another thread has replaced is told as the host's: that is no way to hide it.
 */
static __always_inline __u8 owner_of_peer(__u32 descriptor) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  if (!bpf_core_type_exists(struct unix_sock))
    return 0;
  struct file *file = file_of(descriptor);
  struct socket *socket = (struct socket *)BPF_CORE_READ(file, private_data);
  struct sock *sk = BPF_CORE_READ(socket, sk);
  if (!sk || BPF_CORE_READ(sk, __sk_common.skc_family) != AF_UNIX)
    return 2;
  struct unix_sock *peer = (struct unix_sock *)BPF_CORE_READ((struct unix_sock *)sk, peer);
  if (!peer)
    return 2;
  struct vfsmount *mnt = BPF_CORE_READ(peer, path.mnt);
  /* It was closed before the call came back. */
  if (!mnt)
    return 0;
  return BPF_CORE_READ(mount_of(mnt), mnt_ns) == BPF_CORE_READ(task, nsproxy, mnt_ns) ? 1 : 2;
}

/* A socket by the name that a process gave, if it is a path: without a first byte it is abstract, and the network namespace's. */
static __always_inline void tell_socket(struct act *act, __u64 name, __u32 size) {
  struct { __u16 family; char first; } start = {};
  if (!name || bpf_probe_read_user(&start, 3, (void *)name) || start.family != AF_UNIX || !start.first || size <= 2)
    return;
  /* The kernel reads no further, whatever follows there. */
  act->limit = size - 2 < SUN_PATH ? size - 2 : SUN_PATH;
  act->argument = name + 2;
  act->access = AMBIT_WRITE;
  tell_argument(act);
}

/* Of one sendmmsg; more are told as one that could not be read. Steps of bpf_loop would take more stack than there is. */
#define MESSAGES 8
/* sizeof(struct mmsghdr): a struct msghdr, which begins with the name and its length, and a count. Programs of 32 bits are not run. */
#define MESSAGE_SIZE 64

/* Sets of errnos below 64, so that the verifier meets no branch for each. */
#define BIT(NUMBER) (1ULL << (NUMBER))
#define AGAIN (BIT(4) | BIT(11)) /* EINTR, EAGAIN */
/* Done, EPERM, ENOENT, EACCES, EXDEV (Landlock's refer), EROFS, ELOOP: the others (EEXIST, ENOTEMPTY…) say nothing of authority. */
#define OF_AUTHORITY (BIT(0) | BIT(1) | BIT(2) | BIT(13) | BIT(18) | BIT(30) | BIT(40))

static __always_inline bool telling(const struct ambit_call *call, __u32 error) {
  if (error >= 64)
    return error < 512 && call->op < AMBIT_CALL_ENTRY; /* 512 and on: calls that the kernel starts again */
  return !(BIT(error) & (call->op < AMBIT_CALL_ENTRY ? AGAIN : ~OF_AUTHORITY));
}

SEC("tp_btf/sys_exit")
int BPF_PROG(files_exit, struct pt_regs *regs, long result) {
  if (!near_cells())
    return 0;
  struct task_struct *task = bpf_get_current_task_btf();
  __u8 arch;
  __u32 nr;
  call_of(task, number_at_exit(regs), &arch, &nr);
  if (nr >= AMBIT_NUMBERS)
    return 0;
  __u32 place = arch_row(arch) * AMBIT_NUMBERS + nr;
  struct ambit_call *call = bpf_map_lookup_elem(&calls, &place);
  if (!call || !call->op)
    return 0;
  __u64 cell = current_cell(0);
  if (!cell)
    return 0;
  struct task_state *state = bpf_task_storage_get(&tasks, task, 0, 0);
  /* Stopped by seccomp: it never looked at a path. */
  if (state && !state->entered)
    return 0;
  struct act act = {.cell = cell, .dirfd = AT_FDCWD, .setup = state && state->setup};
  if (act.setup && call->op != AMBIT_CALL_EXEC)
    return 0;
  act.error = result < 0 && result >= -4095 ? -result : 0;
  if (!telling(call, act.error))
    return 0;
  struct arguments arguments;
  arguments_of(regs, arch, &arguments);
  if (call->dirfd >= 0)
    act.dirfd = argument(&arguments, call->dirfd);
  if (call->path >= 0)
    act.argument = argument(&arguments, call->path);

  if (call->op == AMBIT_CALL_EXEC) {
    if (!act.error)
      return 0;
    act.by_lsm = state && state->refused;
    if (state)
      state->refused = 0;
    act.kind = AMBIT_EXEC_FAILED;
    tell_argument(&act);
    return 0;
  }
  act.kind = act.error ? AMBIT_FILE_FAILED : AMBIT_FILE;
  if (call->op == AMBIT_CALL_LOOK) {
    char first = 0;
    /* Without a path it is the descriptor that is looked at, which an open has told of. */
    if (act.error || bpf_probe_read_user(&first, 1, (void *)act.argument) || !first)
      return 0;
    act.access = AMBIT_READ;
    act.look = 1;
    tell_argument(&act);
    return 0;
  }
  if (call->op == AMBIT_CALL_MESSAGE || call->op == AMBIT_CALL_MESSAGES) {
    const __u64 first = act.argument;
    const __u32 count = call->op == AMBIT_CALL_MESSAGE || act.error ? 1 : result;
    act.spoken = 1;
    act.dirfd = AT_FDCWD;
#pragma unroll
    for (int i = 0; i < MESSAGES; i++) {
      struct { __u64 name; __u32 size; } head = {};
      if (i >= count || bpf_probe_read_user(&head, 12, (void *)(first + i * MESSAGE_SIZE)))
        return 0;
      tell_socket(&act, head.name, head.size);
    }
    if (count <= MESSAGES)
      return 0;
    act.limit = 0;
    act.argument = 1; /* no address */
    act.access = AMBIT_WRITE;
    tell_argument(&act);
    return 0;
  }
  if (call->op >= AMBIT_CALL_SOCKET) {
    act.spoken = call->op != AMBIT_CALL_SOCKET;
    /* Only connect has a descriptor of which it is told. */
    if (call->dirfd >= 0 && !act.error)
      act.owner = owner_of_peer(act.dirfd);
    act.dirfd = AT_FDCWD;
    tell_socket(&act, act.argument, call->flags >= 0 ? argument(&arguments, call->flags) : 0);
    return 0;
  }
  if (call->op == AMBIT_CALL_OBJECT && !act.argument) {
    struct file *file = act.error ? 0 : file_of(act.dirfd);
    if (file)
      tell_opened(cell, (__u64)file, 1, AMBIT_DESCRIPTOR);
    return 0;
  }
  if (call->op == AMBIT_CALL_ENTRY || call->op == AMBIT_CALL_OBJECT) {
    act.access = AMBIT_WRITE;
    act.entry = act.created = call->op == AMBIT_CALL_ENTRY && !act.error;
    tell_argument(&act);
    if (call->path2 >= 0) {
      act.dirfd = call->dirfd2 >= 0 ? (__s32)argument(&arguments, call->dirfd2) : AT_FDCWD;
      act.argument = argument(&arguments, call->path2);
      tell_argument(&act);
    }
    return 0;
  }

  __u64 flags = O_CREAT | O_TRUNC | 1;
  if (call->op == AMBIT_CALL_OPEN2) {
    flags = 0;
    bpf_probe_read_user(&flags, sizeof flags, (void *)argument(&arguments, call->flags));
  } else if (call->flags >= 0) {
    flags = argument(&arguments, call->flags);
  }
  /* Names a place and opens nothing. */
  if ((flags & O_PATH) && !act.error)
    return 0;
  if (!act.error && state && state->told) {
    state->told = 0;
    return 0;
  }
  if (!act.error) {
    struct file *file = file_of(result);
    if (file) {
      tell_opened(cell, (__u64)file, (flags & O_TRUNC) != 0, AMBIT_DESCRIPTOR);
      return 0;
    }
  }
  __u32 mode = flags & 3;
  act.access = mode == 0 ? AMBIT_READ : mode == 1 ? AMBIT_WRITE : AMBIT_READ | AMBIT_WRITE;
  if (flags & O_TRUNC)
    act.access |= AMBIT_WRITE;
  tell_argument(&act);
  return 0;
}
