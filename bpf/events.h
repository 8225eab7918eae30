/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The wire format between the eBPF programs and the daemon: every record is a header and one of the structs below.
 * No kernel types, fixed-width integers, no padding holes: src/evidence/decode.ts reads it by offset.
 */
#ifndef AMBIT_EVENTS_H
#define AMBIT_EVENTS_H

#include "wire-types.h"

enum ambit_kind {
  AMBIT_EXEC = 1,
  AMBIT_EXEC_FAILED = 2,
  AMBIT_FORK = 3,
  AMBIT_EXIT = 4,
  AMBIT_FILE = 5,
  AMBIT_FILE_FAILED = 6,
  AMBIT_CONNECT = 7,
  AMBIT_SYSCALL_REFUSED = 8,
  AMBIT_TLS = 9,
  AMBIT_SYSCALLS = 10, /* no event: counts what the syscall sets could not take in */
  AMBIT_FORK_FAILED = 11,
  AMBIT_KIND_COUNT = 12,
};

/* Flags of every record that carries paths. */
enum ambit_path_flag {
  AMBIT_UNREACHABLE = 1,      /* the path does not lead up to the process's root: a detached tree, a memfd, outside a chroot */
  AMBIT_CUT = 2,              /* the path is deeper or longer than could be followed: only its end is there */
  AMBIT_BASE_UNREACHABLE = 4, /* the same two for the base */
  AMBIT_BASE_CUT = 8,
  AMBIT_BASE_UNKNOWN = 16,    /* relative to a descriptor that is not there */
  AMBIT_UNREADABLE = 32,      /* the argument could not be read from the process */
  AMBIT_SETUP = 64,           /* by cell-init's child, before the command's first exec */
  AMBIT_ARGV_CUT = 128,
  AMBIT_SPOKEN_TO = 1024,     /* a socket that was connected to, or sent to */
  AMBIT_OF_CELL = 2048,       /* the socket spoken to is known to be one that the cell made */
  AMBIT_OF_HOST = 4096,       /* it is known to be none; neither: not known */
  AMBIT_OOM = 256,            /* of an exit: the out-of-memory killer chose this process */
  AMBIT_BY_LSM = 512,         /* of a failed exec: lsm.bpf.c refused it */
};

struct ambit_header {
  __u32 size;      /* of the whole record in bytes, header included; a multiple of 8 */
  __u16 kind;      /* enum ambit_kind */
  __u16 flags;     /* per kind */
  __u64 cell;      /* id of the cell's v2 cgroup */
  __u64 time;      /* nanoseconds since boot (CLOCK_BOOTTIME) */
  __u64 start;     /* start time of the process, nanoseconds since boot */
  __u32 pid;       /* thread group id on the host */
  __u32 tid;
  __u32 ppid;      /* parent's thread group id on the host */
  __u32 reserved;
  char comm[16];
};

/* AMBIT_SYSCALL_REFUSED and AMBIT_FORK_FAILED are struct ambit_refused. */
#define AMBIT_PATH_MAX 4096
#define AMBIT_ARGV_MAX 4096

/* AMBIT_EXEC; `data` holds, back to back: path, script, base, argv (each argument with its NUL). */
struct ambit_exec {
  struct ambit_header header;
  __u64 ino;
  __u32 dev;            /* kernel form: major << 20 | minor */
  __u16 path_length;    /* of the file really executed */
  __u16 script_length;  /* what the process named, where that was a script for an interpreter; else 0 */
  __u16 base_length;    /* its working directory, where the script's name is relative; else 0 */
  __u16 argv_length;
  __u8 unlinked;
  __u8 reserved[3];
  char data[];
};

/* AMBIT_FILE, AMBIT_FILE_FAILED, AMBIT_EXEC_FAILED; `data` holds path and base. */
enum ambit_access { AMBIT_READ = 1, AMBIT_WRITE = 2 };
enum ambit_source {
  AMBIT_DESCRIPTOR = 1,
  AMBIT_ARGUMENT = 2,   /* what the process said, which a link may have led elsewhere */
  AMBIT_NAME = 3,       /* the same, of something that was looked at and not opened */
  AMBIT_FROM_LSM = 4,   /* the file that the kernel was opening, from lsm/file_open */
};
struct ambit_file {
  struct ambit_header header;
  __u64 ino;            /* 0: not known */
  __u32 dev;
  __s32 error;          /* positive errno, 0: done */
  __u8 access;
  __u8 source;
  __u8 created;
  __u8 reserved;
  __u16 path_length;
  __u16 base_length;    /* of the directory that a relative path starts from; else 0 */
  char data[];
};

struct ambit_fork {
  struct ambit_header header;
  __u64 child_start;
  __u32 child;
  __u32 reserved;
};

struct ambit_exit {
  struct ambit_header header;
  __u32 status;         /* as wait(2) tells it */
  __u32 reserved;
};

enum ambit_protocol { AMBIT_OTHER = 0, AMBIT_TCP = 1, AMBIT_UDP = 2 };
struct ambit_connect {
  struct ambit_header header;
  __u8 address[16];     /* network order; four bytes are used where family is 4 */
  __u16 port;           /* host order */
  __u8 family;          /* 4 or 6 */
  __u8 protocol;
  __u32 reserved;
};

/* Numbers of architectures on the wire and in the syscall sets. */
enum ambit_arch { AMBIT_X86_64 = 0, AMBIT_I386 = 1, AMBIT_X32 = 2, AMBIT_AARCH64 = 3, AMBIT_ARM = 4 };
struct ambit_refused {
  struct ambit_header header;
  __u32 arch;
  __u32 nr;
  __s32 error;          /* positive errno; 0: killed, trapped, or a filter that pretends success */
  __u32 reserved;
};

/* The syscall sets: per cell one row of this many counts, and one more for what does not fit. */
#define AMBIT_SLOTS 288 /* cells at once */
#define AMBIT_ARCHES 3  /* a machine has at most three: see arch_row() in arch.h */
#define AMBIT_NUMBERS 640
#define AMBIT_ROW (AMBIT_ARCHES * AMBIT_NUMBERS + 1)
struct ambit_count {
  __u64 succeeded;      /* of the last one of a row: numbers out of range */
  __u64 failed;
  __u64 refused;
  __u64 unfinished;
};

/* What files.bpf.c must know of a syscall; the addon fills one in for each number, from libseccomp's names. */
enum ambit_call_op {
  AMBIT_CALL_OPEN = 1,    /* flags in an argument */
  AMBIT_CALL_OPEN2 = 2,   /* flags in a struct open_how */
  AMBIT_CALL_CREAT = 3,
  AMBIT_CALL_HANDLE = 4,  /* no path at all */
  AMBIT_CALL_EXEC = 5,
  AMBIT_CALL_ENTRY = 6,   /* makes or removes a name in a directory */
  AMBIT_CALL_OBJECT = 7,  /* changes what the path names; without a path, what the descriptor is of */
  AMBIT_CALL_LOOK = 8,    /* tells of what the path names, and opens nothing */
  AMBIT_CALL_SOCKET = 9,  /* makes the socket that a struct sockaddr_un names */
  AMBIT_CALL_SPEAK = 10,  /* speaks to it */
  AMBIT_CALL_MESSAGE = 11, /* the same, named by a struct msghdr */
  AMBIT_CALL_MESSAGES = 12, /* the same, named by each struct mmsghdr that was sent */
};
struct ambit_call {
  __u8 op;
  __s8 dirfd, path, flags; /* places of the arguments; -1: has none; of a call that names a socket, `flags` is the length's */
  __s8 dirfd2, path2;
  __u8 reserved[2];
};

/* AMBIT_TLS: the first bytes of one successful TLS write or read. */
#define AMBIT_TLS_PREFIX 1024
enum ambit_tls_direction { AMBIT_TLS_WRITE = 1, AMBIT_TLS_READ = 2 };
enum ambit_tls_flavour { AMBIT_TLS_OPENSSL = 1, AMBIT_TLS_GNUTLS = 2 };
struct ambit_tls {
  struct ambit_header header;
  __u64 session;   /* address of the SSL or gnutls_session_t: names the connection within the process */
  __u64 length;    /* bytes that the call really moved */
  __u32 captured;  /* bytes of `data` that are valid */
  __u8 direction;
  __u8 flavour;
  __u8 reserved[2];
  __u8 data[AMBIT_TLS_PREFIX];
};

#endif
