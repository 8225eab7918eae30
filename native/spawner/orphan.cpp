// SPDX-License-Identifier: Apache-2.0
// Cells without a daemon: they are held until the next one asks for them, or their time is over.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <climits>
#include "common/packet.hpp"
#include "spawner/cells.hpp"
#include "spawner/launch.hpp"

namespace ambit {

// From asking to killing, as the daemon has it (src/cell/cell.ts).
constexpr int64_t kGraceMs = 3000;
// How long the end of a cell is kept for a daemon that may still come.
constexpr int64_t kLingerMs = 10 * 60 * 1000;
// What one cell and all of them together may leave here.
constexpr size_t kMaxKept = 4096;

static int64_t Now() {
  struct timespec now;
  clock_gettime(CLOCK_BOOTTIME, &now);
  return now.tv_sec * 1000ll + now.tv_nsec / 1000000;
}

static void Kill(int pidfd) { syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0); }

void Cells::Hold(Cell& cell, int64_t deadline) {
  cell.held = true;
  cell.deadline = deadline;
  DieWithDaemon(false);
}

void Cells::Keep(const std::string& id, std::string_view name, std::vector<Fd> fds) {
  if (fds.size() != 1 || kept_.size() >= kMaxKept) return;
  kept_.remove_if([&](const Kept& kept) { return kept.id == id && kept.name == name; });
  kept_.push_back({id, std::string(name), std::move(fds[0])});
}

void Cells::Drop(std::string_view id) {
  // Of a cell that ends now, the next daemon will want to know; what still observes the host for nobody is let go.
  if (orphaned_) {
    if (cells_.size() <= 1) kept_.remove_if([](const Kept& kept) { return kept.id.empty() && kept.name.compare(0, 5, "link ") == 0; });
    return;
  }
  const bool any = std::any_of(cells_.begin(), cells_.end(), [&](const Cell& cell) { return cell.held && cell.id != id; });
  kept_.remove_if([&](const Kept& kept) { return kept.id == id || (!any && kept.id.empty()); });
}

bool Cells::AnyHeld() const {
  return std::any_of(cells_.begin(), cells_.end(), [](const Cell& cell) { return cell.held; });
}

bool Cells::Orphan() {
  addon_ = -1;
  for (auto& cell : cells_) if (!cell.held) Kill(cell.pidfd.get());
  for (auto at = cells_.begin(); at != cells_.end();) {
    if (at->held) { ++at; continue; }
    Reap(*at);
    Drop(at->id);
    at = cells_.erase(at);
  }
  orphaned_ = true;
  forget_ = Now() + kLingerMs;
  return !cells_.empty();
}

int Cells::Wait() const {
  if (!orphaned_) return -1;
  int64_t next = cells_.empty() ? forget_ : INT64_MAX;
  for (auto& cell : cells_) next = std::min(next, cell.deadline + (cell.asked_to_end ? kGraceMs : 0));
  return static_cast<int>(std::clamp<int64_t>(next - Now(), 0, INT_MAX));
}

bool Cells::Mind() {
  const int64_t now = Now();
  for (auto& cell : cells_) {
    if (now < cell.deadline) continue;
    if (now >= cell.deadline + kGraceMs) Kill(cell.pidfd.get());
    if (cell.asked_to_end) continue;
    cell.asked_to_end = true;
    Order(cell, kDeliverAll, SIGTERM);
    Order(cell, kDeliverAll, SIGCONT);
  }
  if (!cells_.empty()) forget_ = now + kLingerMs;
  return !cells_.empty() || now < forget_;
}

void Cells::Give(int addon) {
  addon_ = addon;
  orphaned_ = false;
  for (auto& cell : cells_) TellReserved(cell);
  for (auto& end : ends_) Tell(end);
  ends_.clear();
  for (auto& kept : kept_) {
    TellMessage message = {kKept};
    CopyText(message.id, kept.id);
    CopyText(message.step, kept.name);
    Tell(message, {kept.fd.get()});
  }
  for (auto& kept : std::exchange(kept_, {})) {
    if (kept.id.empty() ? !cells_.empty() : Find(kept.id) != nullptr) kept_.push_back(std::move(kept));
  }
  TellMessage given = {kGiven};
  given.status = kProtocol;
  Tell(given);
}

}  // namespace ambit
