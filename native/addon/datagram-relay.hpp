// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sys/socket.h>
#include <array>
#include <atomic>
#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>
#include "common/fd.hpp"

// An address and port; IPv4 in the first four bytes, in network order.
struct Endpoint {
  int family = AF_UNSPEC;
  uint16_t port = 0;  // host order
  std::array<uint8_t, 16> address{};
  auto operator<=>(const Endpoint&) const = default;
  std::string Text() const;
};

// What the thread hands to JavaScript.
struct DatagramEvent {
  // kFlow: a first datagram waits for Rule(). kEnd: a flow that was ruled on is over. kRemoved: nothing is left of the cell.
  enum Kind { kFlow, kEnd, kRemoved } kind;
  uint32_t cell = 0;
  uint64_t flow = 0;
  Endpoint client, dialled;
  uint64_t bytes_out = 0, bytes_in = 0;
  uint64_t unheard = 0;    // kRemoved: datagrams that were dropped before anybody ruled on them
  int error = 0;           // kEnd: why it could not go on
  const char* step = "";   // kEnd: what ended it
};

// Carries the datagrams of cells whose sockets sk_lookup hands everything to, on one thread for all of them. Who may talk
// to whom is not decided here: each new pair of client and destination waits until it was ruled on.
class DatagramRelay {
 public:
  // `deliver` is called on the relay's thread and must not block.
  using Deliver = std::function<void(std::unique_ptr<DatagramEvent>)>;

  DatagramRelay(uint32_t idle_ms, size_t flows_of_one);
  // False, with errno: the thread's own descriptors could not be made.
  bool Open();
  void Run(const Deliver& deliver);

  // From any thread. The sockets are of the namespace `netns`; one may be missing.
  // `answers`: the map of struct ambit_answer that the namespace's program reads.
  uint32_t Add(ambit::Fd netns, ambit::Fd udp4, ambit::Fd udp6, ambit::Fd answers);
  // `target`: where datagrams of the flow go, from a socket of this process's namespace. Null: they are refused.
  void Rule(uint64_t flow, const Endpoint* target);
  void Remove(uint32_t cell);
  void Stop();

 private:
  struct Cell {
    ambit::Fd netns, udp4, udp6, answers;
    ambit::Fd icmp4, icmp6;  // opened with the first refusal
    std::map<std::pair<Endpoint, Endpoint>, uint64_t> flows;
    size_t waiting = 0;
    uint64_t unheard = 0;
  };
  struct Flow {
    enum State { kWaiting, kOpen, kRefused } state = kWaiting;
    uint32_t cell = 0;
    Endpoint client, dialled;
    ambit::Fd inner, outer;
    std::vector<std::vector<uint8_t>> held;
    uint64_t bytes_out = 0, bytes_in = 0;
    int64_t last_ms = 0;
  };
  struct Command {
    enum Kind { kAdd, kRule, kRemove } kind;
    uint32_t cell = 0;
    uint64_t flow = 0;
    bool allowed = false;
    Endpoint target;
    Cell given;
  };

  void Push(Command command);
  void Obey();
  void Accept(Command& command);
  void Decide(Command& command);
  void Drop(uint32_t cell);
  void Take(uint32_t id, Cell& cell, int fd);
  void TakeOne(uint32_t id, Cell& cell, const Endpoint& client, const Endpoint& dialled, const uint8_t* data, size_t size);
  void Forward(uint64_t id, Flow& flow, bool outwards);
  void SendOut(uint64_t id, Flow& flow, const uint8_t* data, size_t size);
  bool OpenFlow(Cell& cell, Flow& flow, const Endpoint& target, const char** step, int* error);
  void Refuse(Cell& cell, const Flow& flow);
  void End(uint64_t id, const char* step, int error);
  void MakeRoom(Cell& cell);
  void Sweep();
  void Watch(int fd, uint64_t tag);

  const int64_t idle_ms_;
  const size_t flows_of_one_;
  Deliver deliver_;
  ambit::Fd epoll_, wake_;
  std::atomic<bool> stop_{false};
  std::mutex mutex_;               // for the three below
  std::vector<Command> commands_;
  uint32_t next_cell_ = 1;
  // The thread's own from here on.
  std::unordered_map<uint32_t, Cell> cells_;
  std::unordered_map<uint64_t, Flow> flows_;
  uint64_t next_flow_ = 1;
  std::vector<uint8_t> buffer_;
};
