/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What the TLS libraries were given and gave back in plain text: the request and status lines of calls to declared APIs.
 *
 *   SSL_write, SSL_write_ex, SSL_write_early_data, gnutls_record_send   what was sent
 *   SSL_read, SSL_read_ex, gnutls_record_recv                          what came back
 *   SSL_free, SSL_clear, gnutls_deinit                                  the address may name another connection from now on
 *
 * These and not kprobes or the socket: only here is the text plain. A probe on an inode fires in every process of the
 * host that maps the file, so the first thing that each does is to ask whether the task is in a cell.
 *
 * A call is judged at its return: one that failed, or asks to be repeated, moved nothing. The bytes are read at the return
 * too, when the library has just touched them, so that they are in memory; another thread may have changed them since.
 *
 * Records of one connection, in their order:
 *   the first write; every write that can begin a request or follows an unfinished head; every read that begins with
 *   "HTTP/" or may hold part of an awaited status line: with data, a whole struct ambit_tls;
 *   every other write, so that the reader knows where a body ends: without data, the struct up to `data`;
 *   the end: length 0, without data.
 * A connection that does not speak HTTP/1 is silent after its first write.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Keeps the layout in this object's BTF. */
const struct ambit_tls *unused_tls __attribute__((unused));

/*
 * All that depends on the architecture: the registers as the kernel saves them (arch/ARCH/include/uapi/asm/ptrace.h), under
 * names that bpf_tracing.h expects, and how far the stack pointer at the return is above that at the entry, where x86
 * has pushed the return address.
 */
#if defined(__TARGET_ARCH_x86)
struct registers {
  unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#define STACK_POPPED 8
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
  __u64 regs[31], sp, pc, pstate;
};
#define registers user_pt_regs
#define STACK_POPPED 0
#else
#error "no register layout for this architecture"
#endif

/* A call that has not returned. By stack pointer too: TLS inside TLS nests one call in another on the same thread. */
struct call_key {
  __u64 thread;
  __u64 stack;
};
struct call {
  __u64 session;
  __u64 buffer;
  __u64 moved_at; /* where an _ex function stores how much it moved, else 0 */
};
/* LRU: a thread that is killed in its call never returns. An evicted call is a loss, and counted at its return. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct call_key);
  __type(value, struct call);
} calls SEC(".maps");

struct session_key {
  __u64 session;
  __u32 pid;
  __u32 flavour;
};
struct session {
  __u64 start;    /* of the process: a reused pid is another one */
  __u32 head;     /* writes that may still belong to an unfinished head */
  __u32 awaited;  /* reads that may still hold part of a status line */
  __u32 opaque;   /* does not speak HTTP/1 as a client */
  __u32 reserved;
};
/* LRU: a process that ends frees nothing. After an eviction the next write counts as a first one and comes with data. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 16384);
  __type(key, struct session_key);
  __type(value, struct session);
} sessions SEC(".maps");

/* A head that comes in more pieces than this is left to the reader to call unreadable. */
#define HEAD_WRITES 32
#define AWAITED_READS 32
#define METHOD_MAX 20
#define START_SIZE 24
#define BARE_SIZE (sizeof(struct ambit_tls) - AMBIT_TLS_PREFIX)

_Static_assert(BARE_SIZE % 8 == 0 && sizeof(struct ambit_tls) % 8 == 0, "records are multiples of 8");

static __always_inline void count(__u64 cell, bool dropped) {
  struct counter *counter = counter_of(cell, AMBIT_TLS);
  if (!counter)
    return;
  __sync_fetch_and_add(&counter->produced, 1);
  if (dropped)
    __sync_fetch_and_add(&counter->dropped, 1);
}

static __always_inline __u64 process_start(void) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  return BPF_CORE_READ(task, group_leader, start_boottime);
}

static __always_inline int enter(__u64 stack, __u64 session, __u64 buffer, __u64 moved_at) {
  __u64 cell = current_cell(0);
  if (!cell)
    return 0;
  struct call_key key = {.thread = bpf_get_current_pid_tgid(), .stack = stack};
  struct call call = {.session = session, .buffer = buffer, .moved_at = moved_at};
  bpf_map_update_elem(&calls, &key, &call, BPF_ANY); /* a failure shows at the return */
  return 0;
}

struct moved {
  __u64 cell;
  struct session_key key;
  __u64 buffer;
  __u64 length;
  __u8 direction;
};

/*
 * Whether the call that returns moved bytes, and which. `result` is that of the function: the length, or for
 * an _ex function 1. A call that worked but was not remembered is an event that was lost.
 */
static __always_inline bool leave(__u64 stack, __s64 result, bool ex, __u32 flavour, __u8 direction, struct moved *moved) {
  moved->cell = current_cell(0);
  if (!moved->cell)
    return false;
  __u64 ids = bpf_get_current_pid_tgid();
  struct call_key key = {.thread = ids, .stack = stack - STACK_POPPED};
  struct call *found = bpf_map_lookup_elem(&calls, &key);
  if (!found) {
    if (result > 0)
      count(moved->cell, true);
    return false;
  }
  struct call call = *found;
  bpf_map_delete_elem(&calls, &key);
  if (result <= 0)
    return false;
  moved->length = result;
  if (ex) {
    moved->length = 0;
    if (bpf_probe_read_user(&moved->length, sizeof moved->length, (void *)call.moved_at)) {
      count(moved->cell, true);
      return false;
    }
  }
  moved->key.session = call.session;
  moved->key.pid = ids >> 32;
  moved->key.flavour = flavour;
  moved->buffer = call.buffer;
  moved->direction = direction;
  return moved->length > 0;
}

static __always_inline void describe(struct ambit_tls *event, const struct moved *moved, __u32 size) {
  fill_header(&event->header, moved->cell, AMBIT_TLS, size);
  event->session = moved->key.session;
  event->length = moved->length;
  event->captured = 0;
  event->direction = moved->direction;
  event->flavour = moved->key.flavour;
  event->reserved[0] = 0;
  event->reserved[1] = 0;
}

/* The verifier follows a bound only in the register that it was checked in: the barrier keeps clang from using another. */
static __always_inline __u64 bounded(__u64 value, __u64 limit) {
  barrier_var(value);
  return value < limit ? value : limit;
}

/* Bytes that cannot be read leave `captured` 0 with a length: the reader says so. */
static __always_inline bool emit_data(const struct moved *moved) {
  struct ambit_tls *event = bpf_ringbuf_reserve(&events, sizeof *event, 0);
  count(moved->cell, !event);
  if (!event)
    return false;
  describe(event, moved, sizeof *event);
  __u64 captured = bounded(moved->length, AMBIT_TLS_PREFIX);
  if (bpf_probe_read_user(event->data, captured, (void *)moved->buffer) == 0)
    event->captured = captured;
  bpf_ringbuf_submit(event, 0);
  return true;
}

static __always_inline void emit_bare(const struct moved *moved) {
  struct ambit_tls *event = bpf_ringbuf_reserve(&events, BARE_SIZE, 0);
  count(moved->cell, !event);
  if (!event)
    return;
  describe(event, moved, BARE_SIZE);
  bpf_ringbuf_submit(event, 0);
}

/* The first bytes, zeros where there are fewer or none can be read. */
static __always_inline void read_start(char start[START_SIZE], const struct moved *moved) {
  if (bpf_probe_read_user(start, bounded(moved->length, START_SIZE), (void *)moved->buffer))
    start[0] = 0;
}

static __always_inline bool is_upper(char c) {
  return c >= 'A' && c <= 'Z';
}

static __always_inline bool is_letter(char c) {
  return is_upper(c) || (c >= 'a' && c <= 'z');
}

/* A word in capitals and a space: rough, because the reader looks closely. */
static __always_inline bool can_begin_request(const char start[START_SIZE]) {
  if (!is_upper(start[0]))
    return false;
#pragma unroll
  for (int i = 1; i <= METHOD_MAX; i++) {
    if (start[i] == ' ')
      return true;
    if (!is_upper(start[i]) && start[i] != '-' && start[i] != '_')
      return false;
  }
  return false;
}

static __always_inline bool begins_preface(const char s[START_SIZE]) {
  return s[0] == 'P' && s[1] == 'R' && s[2] == 'I' && s[3] == ' ' && s[4] == '*' && s[5] == ' ' && s[6] == 'H';
}

static __always_inline bool begins_response(const char s[START_SIZE]) {
  return s[0] == 'H' && s[1] == 'T' && s[2] == 'T' && s[3] == 'P' && s[4] == '/';
}

static __always_inline bool ends_head(const struct moved *moved) {
  char end[4] = {};
  if (moved->length < sizeof end)
    return false;
  if (bpf_probe_read_user(end, sizeof end, (void *)(moved->buffer + moved->length - sizeof end)))
    return false;
  return end[0] == '\r' && end[1] == '\n' && end[2] == '\r' && end[3] == '\n';
}

static __always_inline int wrote(const struct moved *moved) {
  __u64 process = process_start();
  struct session *known = bpf_map_lookup_elem(&sessions, &moved->key);
  bool first = !known || known->start != process;
  if (!first && known->opaque)
    return 0;
  char start[START_SIZE] = {};
  read_start(start, moved);
  bool request = can_begin_request(start);
  if (!first && !request && !known->head) {
    emit_bare(moved);
    return 0;
  }
  /* A first write that is lost leaves the connection unknown, so that the next one comes with data. */
  if (!emit_data(moved))
    return 0;
  __u32 head = first || request ? HEAD_WRITES : known->head - 1;
  struct session next = {
      .start = process,
      .head = ends_head(moved) ? 0 : head,
      .awaited = AWAITED_READS,
      .opaque = begins_preface(start) || (first && (!is_letter(start[0]) || begins_response(start))),
  };
  bpf_map_update_elem(&sessions, &moved->key, &next, BPF_ANY);
  return 0;
}

static __always_inline int got(const struct moved *moved) {
  struct session *known = bpf_map_lookup_elem(&sessions, &moved->key);
  if (!known || known->opaque || known->start != process_start())
    return 0;
  char start[START_SIZE] = {};
  read_start(start, moved);
  bool response = begins_response(start);
  if (!response && !known->awaited)
    return 0;
  emit_data(moved);
  /* "HTTP/1.1 200": whole, and not an interim answer that another follows. */
  if (response && moved->length >= 12)
    known->awaited = start[9] == '1' ? AWAITED_READS : 0;
  else if (known->awaited)
    known->awaited--;
  return 0;
}

static __always_inline int freed(__u64 session, __u32 flavour) {
  struct moved moved = {.cell = current_cell(0), .direction = AMBIT_TLS_WRITE};
  if (!moved.cell)
    return 0;
  moved.key.session = session;
  moved.key.pid = bpf_get_current_pid_tgid() >> 32;
  moved.key.flavour = flavour;
  if (bpf_map_delete_elem(&sessions, &moved.key))
    return 0;
  emit_bare(&moved);
  return 0;
}

/* int SSL_write(SSL *, const void *, int), int SSL_read(SSL *, void *, int), and both of GnuTLS with size_t. */
SEC("uprobe")
int plain_enter(struct registers *ctx) {
  return enter(PT_REGS_SP(ctx), PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), 0);
}

/* int SSL_write_ex(SSL *, const void *, size_t, size_t *written), SSL_read_ex, SSL_write_early_data. */
SEC("uprobe")
int ex_enter(struct registers *ctx) {
  return enter(PT_REGS_SP(ctx), PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM4(ctx));
}

SEC("uretprobe")
int openssl_write_return(struct registers *ctx) {
  struct moved moved = {};
  return leave(PT_REGS_SP(ctx), (int)PT_REGS_RC(ctx), false, AMBIT_TLS_OPENSSL, AMBIT_TLS_WRITE, &moved) ? wrote(&moved) : 0;
}

SEC("uretprobe")
int openssl_write_ex_return(struct registers *ctx) {
  struct moved moved = {};
  return leave(PT_REGS_SP(ctx), (int)PT_REGS_RC(ctx), true, AMBIT_TLS_OPENSSL, AMBIT_TLS_WRITE, &moved) ? wrote(&moved) : 0;
}

SEC("uretprobe")
int openssl_read_return(struct registers *ctx) {
  struct moved moved = {};
  return leave(PT_REGS_SP(ctx), (int)PT_REGS_RC(ctx), false, AMBIT_TLS_OPENSSL, AMBIT_TLS_READ, &moved) ? got(&moved) : 0;
}

SEC("uretprobe")
int openssl_read_ex_return(struct registers *ctx) {
  struct moved moved = {};
  return leave(PT_REGS_SP(ctx), (int)PT_REGS_RC(ctx), true, AMBIT_TLS_OPENSSL, AMBIT_TLS_READ, &moved) ? got(&moved) : 0;
}

SEC("uretprobe")
int gnutls_write_return(struct registers *ctx) {
  struct moved moved = {};
  return leave(PT_REGS_SP(ctx), (__s64)PT_REGS_RC(ctx), false, AMBIT_TLS_GNUTLS, AMBIT_TLS_WRITE, &moved) ? wrote(&moved) : 0;
}

SEC("uretprobe")
int gnutls_read_return(struct registers *ctx) {
  struct moved moved = {};
  return leave(PT_REGS_SP(ctx), (__s64)PT_REGS_RC(ctx), false, AMBIT_TLS_GNUTLS, AMBIT_TLS_READ, &moved) ? got(&moved) : 0;
}

SEC("uprobe")
int openssl_free(struct registers *ctx) {
  return freed(PT_REGS_PARM1(ctx), AMBIT_TLS_OPENSSL);
}

SEC("uprobe")
int gnutls_free(struct registers *ctx) {
  return freed(PT_REGS_PARM1(ctx), AMBIT_TLS_GNUTLS);
}
