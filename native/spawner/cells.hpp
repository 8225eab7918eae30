// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <poll.h>
#include <list>
#include <optional>
#include <string>
#include <vector>
#include "common/failure.hpp"
#include "common/fd.hpp"
#include "common/messages.hpp"
#include "common/plan.hpp"
#include "spawner/owner-map.hpp"

namespace ambit {

// Every cell from its clone to the reaping of its process 1, which the kernel ends after all others of the cell.
class Cells {
 public:
  // `addon`: where to tell. `proc`: the host's /proc. `broken`: why cell-init cannot be started, if so.
  Cells(int addon, int proc, Fd image, std::optional<Failure> broken) : addon_(addon), proc_(proc), image_(std::move(image)), broken_(std::move(broken)), owners_(proc) {}

  void Take(const AskMessage& ask, std::vector<Fd> fds);
  // What to wait for, and what to do about what came: `polls` are those that Watch added, and no cell was taken since.
  void Watch(std::vector<struct pollfd>* polls) const;
  void Serve(const struct pollfd* polls);
  // Kills every cell and tells each one's end.
  void EndAll();
  // The daemon is gone: ends every cell that is not held. False: none is left.
  bool Orphan();
  // Milliseconds until `Mind` has something to do, -1: never.
  int Wait() const;
  // While nobody else does: ends cells whose time is over. False: neither a cell nor an end that somebody could ask for is left.
  bool Mind();
  // Hands everything over to the next daemon.
  void Give(int addon);

 private:
  struct Cell {
    std::string id;
    pid_t pid = -1;
    Fd pidfd;
    Fd control;
    uint32_t base = 0, count = 0;
    uint32_t unheld = 0;  // trees whose sockets can be connected to
    // Its namespaces stand; a plan was sent; it is built as planned; the command may start; it was let go.
    bool reserved = false, planned = false, prepared = false, wanted = false, running = false;
    bool held = false, asked_to_end = false;
    int64_t deadline = 0;  // CLOCK_BOOTTIME, ms
    uint32_t mask = 0;     // of the sockets
    // Held as long as the cell lives, so that no job can take their place while the daemon is away.
    std::vector<Fd> sockets;
    std::optional<Failure> failure;
    int status = -1;
    uint64_t own_user_us = 0, own_system_us = 0;
  };

  void Reserve(const AskMessage& ask, std::vector<Fd> fds);
  void Prepare(Cell& cell, std::vector<Fd> fds);
  // Ends a cell that cannot go on; Reap tells why.
  void Break(Cell& cell, const Failure& failure);
  void Order(Cell& cell, uint32_t order, int signal);
  void Hold(Cell& cell, int64_t deadline);
  void Keep(const std::string& id, std::string_view name, std::vector<Fd> fds);
  // What was kept for a cell that is gone, or for all of them.
  void Drop(std::string_view id);
  bool AnyHeld() const;
  void TellReserved(const Cell& cell);
  // Takes one message from cell-init; false if there was none.
  bool Listen(Cell& cell);
  void Reserved(Cell& cell, uint32_t mask, std::vector<Fd> fds);
  void Prepared(Cell& cell);
  // Lets the command start once it may and everything is there.
  void Run(Cell& cell);
  void Reap(Cell& cell);
  void Tell(const TellMessage& message, const std::vector<int>& fds = {});
  Cell* Find(std::string_view id);

  int addon_, proc_;
  Fd image_;
  std::optional<Failure> broken_;
  OwnerMaps owners_;
  std::list<Cell> cells_;

  struct Kept {
    std::string id, name;
    Fd fd;
  };
  std::list<Kept> kept_;
  bool orphaned_ = false;
  std::vector<TellMessage> ends_;  // of held cells, while there is no daemon
  int64_t forget_ = 0;             // when the last of them need not be known any more
};

}  // namespace ambit
