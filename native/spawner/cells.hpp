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

 private:
  struct Cell {
    std::string id;
    pid_t pid = -1;
    Fd pidfd;
    Fd control;
    uint32_t base = 0, count = 0;
    // Its namespaces stand; a plan was sent; it is built as planned; the command was let go.
    uint32_t unheld = 0;  // trees whose sockets can be connected to
    bool reserved = false, planned = false, prepared = false, running = false;
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
  // Takes one message from cell-init; false if there was none.
  bool Listen(Cell& cell);
  void Reserved(Cell& cell, uint32_t mask, std::vector<Fd> fds);
  void Prepared(Cell& cell);
  void Reap(Cell& cell);
  void Tell(const TellMessage& message, const std::vector<int>& fds = {});
  Cell* Find(std::string_view id);

  int addon_, proc_;
  Fd image_;
  std::optional<Failure> broken_;
  OwnerMaps owners_;
  std::list<Cell> cells_;
};

}  // namespace ambit
