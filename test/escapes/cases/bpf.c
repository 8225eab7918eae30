/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a map and loads a program of the caller's own into the kernel. */
#include "../attack.h"
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
  union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
  struct bpf_insn code[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K}, {.code = BPF_JMP | BPF_EXIT}};
  union bpf_attr program = {.prog_type = BPF_PROG_TYPE_SOCKET_FILTER, .insns = (unsigned long)code, .insn_cnt = 2, .license = (unsigned long)"GPL"};
  int made = syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map), error = errno;
  int loaded = syscall(SYS_bpf, BPF_PROG_LOAD, &program, sizeof program);
  made < 0 && loaded < 0 ? held("bpf: %s; %s", error_name(error), error_name(errno)) : worked("%s was loaded into the kernel", loaded >= 0 ? "a program" : "a map");
}
