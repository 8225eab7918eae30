/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Where a cell wants to connect. Cgroup hooks, once on the cells' parent: they see every way in (io_uring, sendmmsg, fast open)
 * and only what lives below. They observe, they never refuse: a cell has no route out but its relay.
 * These programs can be preempted: nothing here may lie in a per-CPU buffer.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
AMBIT_LAYOUT(ambit_connect);

static __always_inline void tell(struct bpf_sock_addr *ctx, __u8 family) {
  __u64 id = current_cell(0);
  if (!id)
    return;
  /* volatile: clang 14 would fold the reads into one through a changed context pointer, which the verifier refuses. */
  volatile __u32 protocol = ctx->protocol;
  volatile __u32 port = ctx->user_port;
  volatile __u32 word0 = 0, word1 = 0, word2 = 0, word3 = 0;
  if (family == 4) {
    word0 = ctx->user_ip4;
  } else {
    word0 = ctx->user_ip6[0];
    word1 = ctx->user_ip6[1];
    word2 = ctx->user_ip6[2];
    word3 = ctx->user_ip6[3];
  }
  struct task_struct *task = (struct task_struct *)bpf_get_current_task();
  __u32 number = protocol;
  /* 262: IPPROTO_MPTCP */
  __u8 name = number == 6 || number == 262 ? AMBIT_TCP : number == 17 ? AMBIT_UDP : AMBIT_OTHER;
  __u32 address[4] = {word0, word1, word2, word3};
  struct seen_key key = {
    .cell = id, .kind = AMBIT_CONNECT, .detail = (__u32)BPF_CORE_READ(task, tgid),
    .a = (__u64)address[0] << 32 | address[1], .b = (__u64)address[2] << 32 | address[3],
    .c = (BPF_CORE_READ(task, group_leader, start_boottime) << 24) ^ ((__u64)(port & 0xffff) << 8) ^ (name << 4) ^ family,
  };
  if (was_seen(&key))
    return;
  struct ambit_connect *event = bpf_ringbuf_reserve(&events, sizeof *event, 0);
  count_event(id, AMBIT_CONNECT, event == 0);
  if (!event)
    return;
  fill_header(&event->header, id, AMBIT_CONNECT, sizeof *event);
  __builtin_memcpy(event->address, address, sizeof event->address);
  event->port = __builtin_bswap16(port);
  event->family = family;
  event->protocol = name;
  event->reserved = 0;
  bpf_ringbuf_submit(event, 0);
  mark_seen(&key);
}

SEC("cgroup/connect4")
int network_connect4(struct bpf_sock_addr *ctx) {
  tell(ctx, 4);
  return 1;
}

SEC("cgroup/connect6")
int network_connect6(struct bpf_sock_addr *ctx) {
  tell(ctx, 6);
  return 1;
}

SEC("cgroup/sendmsg4")
int network_sendmsg4(struct bpf_sock_addr *ctx) {
  tell(ctx, 4);
  return 1;
}

SEC("cgroup/sendmsg6")
int network_sendmsg6(struct bpf_sock_addr *ctx) {
  tell(ctx, 6);
  return 1;
}
