// SPDX-License-Identifier: Apache-2.0
// What addon, spawner and cell-init say to each other: one fixed struct per packet on SOCK_SEQPACKET sockets.
#pragma once
#include <cstdint>
#include <cstring>
#include <string_view>

namespace ambit {

constexpr int kMaxDescriptors = 250;  // SCM_RIGHTS takes 253
constexpr int kStepSize = 224;
constexpr int kIdSize = 64;
constexpr uint32_t kMaxPlanSize = 8 * 1024 * 1024;

// The listening sockets of a cell, in the order in which they are sent. A host without IPv6 lacks every second one.
enum ListeningSocket : int { kRelay4, kRelay6, kDnsUdp4, kDnsUdp6, kDnsTcp4, kDnsTcp6, kUdp4, kUdp6, kSocketCount };

// Changes with every struct here: a daemon takes cells back only from a spawner that speaks the same.
constexpr int32_t kProtocol = 1;
constexpr int kNameSize = 64;

// addon → spawner. kReserve comes with the v2 cgroup's folder and the `tasks` file of each v1 one; kPrepare with the plan's
// memfd, stdin, stdout, stderr, then the binds' descriptors. kHold: the cell outlives the daemon, until `deadline`. kKeep comes
// with one descriptor, which the next daemon gets back under its name: it is closed with the cell or, with no id, with the last
// cell that is held.
enum Ask : uint32_t { kReserve = 1, kPrepare = 2, kGo = 3, kSignal = 4, kSignalAll = 5, kHold = 6, kKeep = 7 };
constexpr int kPlanDescriptors = 4;
constexpr size_t kMaxV1Groups = 32;
struct AskMessage {
  uint32_t ask;
  char id[kIdSize];
  int32_t signal;
  uint32_t base, count;  // kReserve: host ids of the cell
  char name[kNameSize];
  int64_t deadline;      // milliseconds since boot (CLOCK_BOOTTIME)
};

// spawner → addon. kReserved comes with pidfd, netns and the sockets whose bit is set. kRefused: it was never reserved.
// Whatever ends a cell after that is told by kExited, once. To a daemon that takes over: kReserved for each cell that is there,
// kExited for each that ended meanwhile, kKept with each descriptor (its name in `step`), then kGiven with the protocol in `status`.
enum Tell : uint32_t { kReserved = 1, kPrepared = 2, kRefused = 3, kExited = 4, kKept = 5, kGiven = 6 };
struct TellMessage {
  uint32_t tell;
  char id[kIdSize];
  int32_t pid;
  int32_t status;    // wait status of the command, -1: none was told
  int32_t error;     // errno of the step that failed, 0: none did
  uint32_t sockets;  // bit N: ListeningSocket N is among the descriptors
  uint32_t unheld;   // kPrepared: trees to be read whose sockets can be connected to all the same
  char step[kStepSize];
  uint64_t user_us, system_us, max_rss_kib;
  uint32_t time_over, reserved;  // kExited: the spawner ended it, since no daemon was there to do so
};

// spawner → init. kStart once the ids are mapped, read before init is executed; kPlan with the plan's memfd, stdin, stdout
// and stderr; kTrees with detached mounts; kBuild when all of them were sent; kRun to let the command start; kDeliver: a signal
// for it; kDeliverAll: for all of the cell.
enum Order : uint32_t { kStart = 1, kPlan = 2, kTrees = 3, kBuild = 4, kRun = 5, kDeliver = 6, kDeliverAll = 7 };
struct OrderMessage {
  uint32_t order;
  int32_t signal;
  uint32_t count;                   // kTrees: descriptors in this packet
  uint16_t mount[kMaxDescriptors];  // kTrees: which mount of the plan each one is for
};

// init → spawner. kListening, the namespaces are set up, comes with the sockets whose bit is set; kReady: built as planned;
// kEnded tells init's own use of the processor, which is not the command's.
enum Report : uint32_t { kListening = 1, kReady = 2, kFailed = 3, kEnded = 4 };
struct ReportMessage {
  uint32_t report;
  int32_t status;
  int32_t error;
  uint32_t sockets;
  char step[kStepSize];
  uint64_t user_us, system_us;
};

template <size_t N>
void CopyText(char (&to)[N], std::string_view from) {
  size_t size = from.size() < N - 1 ? from.size() : N - 1;
  memcpy(to, from.data(), size);
  memset(to + size, 0, N - size);
}

// The text of a field that came from elsewhere: never read beyond its end, whoever forgot the terminator.
template <size_t N>
std::string_view TextOf(const char (&from)[N]) {
  return {from, strnlen(from, N)};
}

}  // namespace ambit
