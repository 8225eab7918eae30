/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * A cell's only way out: each TCP connection of its network namespace that is not meant for loopback goes to the relay,
 * which learns the address that was dialled from its own socket's name; each datagram goes to the relay's UDP socket, which is
 * told where it was sent to. Port 53 of every address is the resolver's, which listens there itself.
 * The addon loads this program once for each cell, with that cell's own maps.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "relay.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* TCP: 0 IPv4, 1 IPv6; UDP: 2 and 3 */
struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, 4);
  __type(key, __u32);
  __type(value, __u64);
} relay SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, AMBIT_ANSWERS);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, struct ambit_answer);
  __type(value, __u8);
} answers SEC(".maps");

SEC("sk_lookup")
int relay_lookup(struct bpf_sk_lookup *ctx) {
  volatile __u32 family = ctx->family;
  volatile __u32 protocol = ctx->protocol;
  volatile __u32 port = ctx->local_port;
  if ((protocol != 6 && protocol != 17) || port == 53)
    return SK_PASS;
  __u32 place = protocol == 17 ? 2 : 0;
  struct ambit_answer answer = {};
  if (family == AF_INET) {
    volatile __u32 address = ctx->local_ip4;
    if ((address & 0xff) == 127) /* network order */
      return SK_PASS;
    answer.client[0] = address;
    volatile __u32 remote = ctx->remote_ip4;
    answer.dialled[0] = remote;
  } else {
    volatile __u32 a = ctx->local_ip6[0], b = ctx->local_ip6[1], c = ctx->local_ip6[2], d = ctx->local_ip6[3];
    if (a == 0 && b == 0 && c == 0 && d == __builtin_bswap32(1))
      return SK_PASS;
    place += 1;
    answer.client[0] = a;
    answer.client[1] = b;
    answer.client[2] = c;
    answer.client[3] = d;
    volatile __u32 e = ctx->remote_ip6[0], f = ctx->remote_ip6[1], g = ctx->remote_ip6[2], h = ctx->remote_ip6[3];
    answer.dialled[0] = e;
    answer.dialled[1] = f;
    answer.dialled[2] = g;
    answer.dialled[3] = h;
  }
  if (protocol == 17) {
    volatile __u16 from = ctx->remote_port;
    answer.client_port = port;
    answer.dialled_port = __builtin_bswap16(from);
    if (bpf_map_lookup_elem(&answers, &answer))
      return SK_PASS;
  }
  struct bpf_sock *socket = bpf_map_lookup_elem(&relay, &place);
  if (!socket)
    return SK_DROP;
  long error = bpf_sk_assign(ctx, socket, 0);
  bpf_sk_release(socket);
  return error ? SK_DROP : SK_PASS;
}
