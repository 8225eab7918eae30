// SPDX-License-Identifier: Apache-2.0
// For test/evidence/tls.test.ts: the TLS probes alone, without the rest of the addon. Makes the shared maps, registers one
// cell, attaches, and prints one JSON object for each line: hooks first, then records as they come, then the counters.
//   tls-harness OBJECT LEVEL CELL INIT_PID [FLAVOUR=PATH]...
// Commands on stdin: "flush" (prints {"flushed":true} once the ring is empty), "detach", "attach FLAVOUR=PATH"; its end stops it.
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <poll.h>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include "../../bpf/events.h"
#include "../../native/addon/tls.hpp"

struct Cell { __u32 init_pid, reserved; };
struct CounterKey { __u64 cell; __u32 kind, reserved; };
struct Counter { __u64 produced, dropped; };

static std::string Quote(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    char escape[8];
    if (c == '"' || c == '\\' || c < 0x20 || c > 0x7e) { snprintf(escape, sizeof escape, "\\u%04x", c); out += escape; }
    else out += static_cast<char>(c);
  }
  return out + "\"";
}

static void Print(const HookState& hook) {
  printf("{\"hook\":%s,\"family\":%s,\"state\":%s,\"detail\":%s}\n", Quote(hook.name).c_str(), Quote(hook.family).c_str(), Quote(hook.state).c_str(), Quote(hook.detail).c_str());
}

static int OnRecord(void*, void* data, size_t size) {
  const ambit_tls* e = static_cast<const ambit_tls*>(data);
  std::string hex;
  char byte[3];
  for (unsigned i = 0; i < e->captured; i++) { snprintf(byte, sizeof byte, "%02x", e->data[i]); hex += byte; }
  printf("{\"record\":{\"ring\":%zu,\"size\":%u,\"kind\":%u,\"cell\":\"%llu\",\"pid\":%u,\"start\":\"%llu\",\"comm\":%s,\"session\":\"%llx\",\"length\":%llu,\"direction\":%u,\"flavour\":%u,\"data\":\"%s\"}}\n",
    size, e->header.size, e->header.kind, e->header.cell, e->header.pid, e->header.start, Quote(std::string(e->header.comm, strnlen(e->header.comm, 16))).c_str(), e->session, e->length, e->direction, e->flavour, hex.c_str());
  return 0;
}

int main(int argc, char** argv) {
  if (argc < 5) return 2;
  const int level = atoi(argv[2]);
  const __u64 cell = strtoull(argv[3], nullptr, 10);
  const Cell value = {static_cast<__u32>(atoi(argv[4])), 0};
  const CounterKey key = {cell, AMBIT_TLS, 0};
  int events = -1, counters = -1;

  // As the loader of the addon does: the maps are made once and handed over by name.
  const __u32 ring_size = getenv("RING_SIZE") ? atoi(getenv("RING_SIZE")) : 8 * 1024 * 1024;
  int cells = bpf_map_create(BPF_MAP_TYPE_HASH, "cells", 8, sizeof(Cell), 1024, nullptr);
  events = bpf_map_create(BPF_MAP_TYPE_RINGBUF, "events", 0, 0, ring_size, nullptr);
  counters = bpf_map_create(BPF_MAP_TYPE_HASH, "counters", sizeof(CounterKey), sizeof(Counter), 1024 * AMBIT_KIND_COUNT, nullptr);
  if (cells < 0 || events < 0 || counters < 0) { perror("maps"); return 1; }
  const Counter none = {};
  bpf_map_update_elem(cells, &cell, &value, BPF_ANY);
  bpf_map_update_elem(counters, &key, &none, BPF_ANY);

  TlsProbes probes(argv[1], [&](bpf_object* object) {
    bpf_map* map;
    bpf_object__for_each_map(map, object) {
      std::string name = bpf_map__name(map);
      int fd = name == "cells" ? cells : name == "events" ? events : name == "counters" ? counters : -1;
      if (name == "events" && bpf_map__set_max_entries(map, ring_size) < 0) return -errno;
      if (fd >= 0 && bpf_map__reuse_fd(map, fd) < 0) return -errno;
      if (name.find(".rodata") != std::string::npos) {
        size_t size;
        const void* initial = bpf_map__initial_value(map, &size);
        if (!initial || size < sizeof level) return -EINVAL;
        memcpy(const_cast<void*>(initial), &level, sizeof level);
      }
    }
    return 0;
  });
  std::string why;
  if (!probes.Load(&why)) { fprintf(stderr, "%s\n", why.c_str()); return 1; }
  auto attach = [&](const std::string& what) {
    size_t equals = what.find('=');
    for (const HookState& hook : probes.Attach(what.substr(equals + 1), what.substr(0, equals))) Print(hook);
  };
  for (int i = 5; i < argc; i++) attach(argv[i]);
  printf("{\"ready\":true}\n");
  fflush(stdout);

  setvbuf(stdin, nullptr, _IONBF, 0);  // poll sees only what stdio has not taken
  ring_buffer* ring = ring_buffer__new(events, OnRecord, nullptr, nullptr);
  if (!ring) return 1;
  const bool lazy = getenv("LAZY") != nullptr;  // reads the ring only when told to, so that it can fill up
  pollfd input[2] = {{0, POLLIN, 0}, {lazy ? -1 : ring_buffer__epoll_fd(ring), POLLIN, 0}};
  for (;;) {
    if (poll(input, 2, -1) < 0 && errno != EINTR) return 1;
    if (!lazy) ring_buffer__consume(ring);
    if (input[0].revents) {
      char text[4096];
      if (!fgets(text, sizeof text, stdin)) break;
      const std::string line(text, strcspn(text, "\n"));
      if (line == "flush") {
        ring_buffer__consume(ring);
        Counter counter = {};
        bpf_map_lookup_elem(counters, &key, &counter);
        printf("{\"flushed\":true,\"produced\":%llu,\"dropped\":%llu}\n", counter.produced, counter.dropped);
      } else if (line == "detach") {
        probes.Detach();
        printf("{\"detached\":true}\n");
      } else if (line.rfind("attach ", 0) == 0) {
        attach(line.substr(7));
        printf("{\"ready\":true}\n");
      }
    }
    fflush(stdout);
  }
  ring_buffer__free(ring);
  return 0;
}
