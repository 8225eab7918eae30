/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * A cell's only way out: each TCP connection of its network namespace that is not meant for loopback goes to the relay,
 * which learns the address that was dialled from its own socket's name. Port 53 of every address is the resolver's, which
 * listens there itself. UDP to anywhere else finds no socket and is refused by the kernel.
 * The addon loads this program once for each cell, with that cell's own `relay` map.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* 0: IPv4, 1: IPv6 */
struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, 2);
  __type(key, __u32);
  __type(value, __u64);
} relay SEC(".maps");

SEC("sk_lookup")
int relay_lookup(struct bpf_sk_lookup *ctx) {
  volatile __u32 family = ctx->family;
  volatile __u32 protocol = ctx->protocol;
  volatile __u32 port = ctx->local_port;
  if (protocol != 6 || port == 53)
    return SK_PASS;
  __u32 place = 0;
  if (family == AF_INET) {
    volatile __u32 address = ctx->local_ip4;
    if ((address & 0xff) == 127) /* network order */
      return SK_PASS;
  } else {
    volatile __u32 a = ctx->local_ip6[0], b = ctx->local_ip6[1], c = ctx->local_ip6[2], d = ctx->local_ip6[3];
    if (a == 0 && b == 0 && c == 0 && d == __builtin_bswap32(1))
      return SK_PASS;
    place = 1;
  }
  struct bpf_sock *socket = bpf_map_lookup_elem(&relay, &place);
  if (!socket)
    return SK_DROP;
  long error = bpf_sk_assign(ctx, socket, 0);
  bpf_sk_release(socket);
  return error ? SK_DROP : SK_PASS;
}
