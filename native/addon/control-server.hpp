// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <sys/socket.h>
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>
#include "common/fd.hpp"

// What the thread hands to JavaScript. Descriptors that nobody takes are closed with it.
struct ControlEvent {
  enum Kind { kMessage, kClosed } kind;
  uint32_t connection;
  ucred peer;
  std::vector<uint8_t> message;
  std::vector<ambit::Fd> fds;
};

class ControlServer {
 public:
  // `deliver` is called on the server's thread and must not block.
  using Deliver = std::function<void(std::unique_ptr<ControlEvent>)>;

  // Makes the socket; on failure `*step` names the call and the errno is returned.
  int Open(const std::string& path, uint32_t mode, uint32_t gid, const char** step);
  void Run(const Deliver& deliver);

  // The rest is called from JavaScript's thread. A connection that is gone is not an error: its end is on its way as an event.
  void Send(uint32_t connection, const uint8_t* bytes, size_t size);
  void Disconnect(uint32_t connection);
  void Handled(uint32_t connection);
  void Stop();
  void Unlink();

 private:
  struct Connection {
    uint32_t id = 0;
    ambit::Fd fd;
    ucred peer{};
    std::deque<std::vector<uint8_t>> out;
    size_t out_bytes = 0;
    int unhandled = 0;     // messages that JavaScript has not taken yet
    bool ended = false;    // to be closed by the thread
    uint32_t interest = 0;
  };

  void Accept();
  void Read(Connection& connection, bool hung_up);
  void Flush(Connection& connection);
  void Watch(Connection& connection);
  void Settle();
  void Wake();
  size_t CountOf(uint32_t uid) const;

  std::mutex mutex_;
  std::map<uint32_t, Connection> connections_;
  std::vector<uint32_t> touched_;  // connections whose state JavaScript changed
  std::atomic<bool> stop_{false};
  uint32_t next_ = 1;
  Deliver deliver_;
  std::vector<uint8_t> buffer_;
  ambit::Fd listener_, epoll_, wake_, spare_, folder_;
  std::string name_;
  uint64_t inode_ = 0;
};
