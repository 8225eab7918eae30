/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The kernel types that the programs touch, with the fields that they touch and no others: CO-RE finds the real
 * offsets when an object is loaded, so nothing here comes from the kernel of the machine that builds.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed char __s8;
typedef short __s16;
typedef int __s32;
typedef long long __s64;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s32 s32;
typedef __s64 s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false = 0, true = 1 };

/* uapi/linux/bpf.h: numbers that never change. */
enum bpf_map_type {
  BPF_MAP_TYPE_HASH = 1,
  BPF_MAP_TYPE_ARRAY = 2,
  BPF_MAP_TYPE_PERCPU_ARRAY = 6,
  BPF_MAP_TYPE_LRU_HASH = 9,
  BPF_MAP_TYPE_SOCKMAP = 15,
  BPF_MAP_TYPE_RINGBUF = 27,
  BPF_MAP_TYPE_TASK_STORAGE = 29,
};
enum { BPF_ANY = 0, BPF_NOEXIST = 1, BPF_EXIST = 2, BPF_F_NO_PREALLOC = 1, BPF_F_MMAPABLE = 1024, BPF_LOCAL_STORAGE_GET_F_CREATE = 1 };
enum { AF_INET = 2, AF_INET6 = 10 };
enum sk_action { SK_DROP = 0, SK_PASS = 1 };

#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
#endif

struct thread_info {
  __u32 status; /* x86 alone: TS_COMPAT */
  unsigned long flags;
};

struct qstr {
  __u64 hash_len;
  const unsigned char *name;
};
struct user_namespace {
  int level;
};
struct super_block {
  __u32 s_dev;
  struct user_namespace *s_user_ns;
};
struct inode {
  unsigned short i_mode;
  unsigned int i_nlink;
  unsigned long i_ino;
  struct super_block *i_sb;
};
struct dentry {
  struct dentry *d_parent;
  struct qstr d_name;
  struct inode *d_inode;
};
struct vfsmount {
  struct dentry *mnt_root;
};
struct mnt_namespace;
struct nsproxy {
  struct mnt_namespace *mnt_ns;
};
struct mount {
  struct mnt_namespace *mnt_ns;
  struct mount *mnt_parent;
  struct dentry *mnt_mountpoint;
  struct vfsmount mnt;
};
struct path {
  struct vfsmount *mnt;
  struct dentry *dentry;
};
struct file {
  struct path f_path;
  struct inode *f_inode;
  unsigned int f_flags;
  unsigned int f_mode;
  void *private_data;
};
struct sock_common {
  unsigned short skc_family;
};
struct sock {
  struct sock_common __sk_common;
};
struct socket {
  struct sock *sk;
};
struct unix_sock {
  struct path path;
  struct sock *peer;
};
struct fdtable {
  unsigned int max_fds;
  struct file **fd;
};
struct files_struct {
  struct fdtable *fdt;
};
struct fs_struct {
  struct path root;
  struct path pwd;
};
typedef struct {
  int counter;
} atomic_t;
struct mm_struct;
struct signal_struct {
  atomic_t live;
  unsigned int flags;
  int group_exit_code;
  struct mm_struct *oom_mm;
};
struct mm_struct {
  unsigned long arg_start;
  unsigned long arg_end;
};
struct linux_binprm {
  struct file *file;
  const char *filename;
  const char *interp;
};

struct task_struct {
  struct thread_info thread_info;
  int pid;
  int tgid;
  __u64 start_boottime;
  struct task_struct *group_leader;
  struct task_struct *real_parent;
  struct mm_struct *mm;
  struct fs_struct *fs;
  struct files_struct *files;
  struct nsproxy *nsproxy;
  struct signal_struct *signal;
  int exit_code;
  char comm[16];
};

#ifndef BPF_NO_PRESERVE_ACCESS_INDEX
#pragma clang attribute pop
#endif

/* uapi/linux/bpf.h: contexts whose offsets the verifier rewrites itself, so without CO-RE. */
struct bpf_sock_addr {
  __u32 user_family;
  __u32 user_ip4;
  __u32 user_ip6[4];
  __u32 user_port;
  __u32 family;
  __u32 type;
  __u32 protocol;
};
struct bpf_sock;
struct bpf_sk_lookup {
  union {
    struct bpf_sock *sk;
    __u64 cookie;
  };
  __u32 family;
  __u32 protocol;
  __u32 remote_ip4;
  __u32 remote_ip6[4];
  __be16 remote_port;
  __u16 : 16;
  __u32 local_ip4;
  __u32 local_ip6[4];
  __u32 local_port;
  __u32 ingress_ifindex;
};

#endif
