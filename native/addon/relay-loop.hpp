// SPDX-License-Identifier: Apache-2.0
// Carries the bytes of every cell's connections on one thread of its own: epoll, splice(2) where there is much, a copy where there
// is little. Nothing is decided here: JavaScript opens a flow, starts each of its two ways, and cuts it.
#pragma once
#include <cstdint>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>
#include "common/fd.hpp"

// What the thread hands to JavaScript.
struct RelayEvent {
  // kHeard: bytes from the server, which go on to the client as well; none: from here on all are shown. kOver: no more come.
  // kEnded: the last event of a flow.
  enum Kind { kHeard, kOver, kEnded } kind;
  enum Culprit { kNobody, kClient, kServer, kCut } culprit = kNobody;
  uint64_t flow = 0;
  int error = 0;
  uint64_t bytes_out = 0, bytes_in = 0;
  std::vector<uint8_t> bytes;
};

// What JavaScript asks of the thread. A flow that has ended is not an error: its end is on its way as an event.
struct RelayCommand {
  // kSend: the way to the server is the thread's from now on, `bytes` first. kSent: it was carried elsewhere and is over.
  enum Kind { kOpen, kSend, kSent, kWatch, kUnwatch, kCut } kind;
  uint64_t flow = 0;
  uint32_t group = 0;
  int error = 0;
  ambit::Fd client, server;
  std::vector<uint8_t> bytes;
};

// Pipes for splice(2), lent only while bytes are on their way. Their number is bounded, in all and for one group, so that
// connections which nobody reads take neither the daemon's descriptors nor other cells' pipes: who gets none is served by copies.
class PipePool {
 public:
  struct Pipe {
    ambit::Fd out, in;
    bool large = false;
  };
  std::unique_ptr<Pipe> Take(uint32_t group);
  // Only an empty one can be lent again.
  void Give(std::unique_ptr<Pipe> pipe, uint32_t group, bool empty);

 private:
  std::vector<std::unique_ptr<Pipe>> idle_;
  std::unordered_map<uint32_t, size_t> lent_;
  size_t count_ = 0, large_ = 0;
};

class RelayLoop {
 public:
  // `deliver` is called on the loop's thread and must not block.
  using Deliver = std::function<void(std::unique_ptr<RelayEvent>)>;

  // On failure `*step` names the call and the errno is returned.
  int Open(const char** step);
  // Until Stop(); then every flow is reset, and not told.
  void Run(const Deliver& deliver);

  // From any thread.
  void Post(RelayCommand command);
  void Stop();

 private:
  struct Side {
    ambit::Fd fd;
    bool readable = true, writable = true;
    int error = 0;
  };
  struct Way {
    bool open = false;   // carried here
    bool ended = false;  // the sender said that no more comes, and all was read
    bool done = false;   // the receiver was told so
    bool bulk = false;   // there was more than one copy holds
    uint64_t bytes = 0;
    std::vector<uint8_t> held;  // what the receiver did not take of a copy
    size_t at = 0;
    std::unique_ptr<PipePool::Pipe> pipe;
    size_t piped = 0;
    bool Pending() const { return at < held.size() || piped > 0; }
  };
  struct Flow {
    uint64_t id = 0;
    uint32_t group = 0;
    Side client, server;
    Way out, in;
    bool queued = false;
    bool watched = false;
    size_t shown = 0;
  };
  enum class Step { kWait, kMore, kGone };

  void Obey();
  void Do(RelayCommand& command);
  void Happened(uint64_t key, uint32_t events);
  void Queue(Flow& flow);
  void Pump(Flow& flow);
  Step Move(Flow& flow, Way& way);
  Step Drain(Flow& flow, Way& way);
  Step Fill(Flow& flow, Way& way);
  Step Copy(Flow& flow, Way& way);
  Step Finish(Flow& flow, Way& way);
  Step Broke(Flow& flow, Side& side, int error);
  void Shown(Flow& flow, size_t size);
  void Over(Flow& flow);
  void Drop(Flow& flow, Way& way);
  bool Settle(Flow& flow);
  void CheckLingering();
  void End(Flow& flow, RelayEvent::Culprit culprit, int error);
  void Wake();

  std::mutex mutex_;
  std::vector<RelayCommand> commands_;
  std::atomic<bool> stop_{false};
  Deliver deliver_;
  ambit::Fd epoll_, wake_;
  std::vector<uint8_t> buffer_;
  PipePool pool_;
  std::unordered_map<uint64_t, std::unique_ptr<Flow>> flows_;
  std::vector<uint64_t> ready_;
  std::unordered_set<uint64_t> lingering_;  // broken off by the server, while the client still reads what came before
};
