// SPDX-License-Identifier: Apache-2.0
#include "spawner/cells.hpp"
#include <fcntl.h>
#include <linux/sockios.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "common/check.hpp"
#include "common/packet.hpp"
#include "spawner/launch.hpp"
#include "spawner/trees.hpp"

#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C
#endif

namespace ambit {

static void Kill(int pidfd) { syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, nullptr, 0); }

// Whoever sent the plan can no longer change it: what is checked here is what cell-init reads.
static Plan ReadPlan(int fd, size_t given) {
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if ((Must(fcntl(fd, F_GET_SEALS), "look at the plan's seals") & kSeals) != kSeals) Fail("read the plan: it is not sealed", EINVAL);
  struct stat status;
  Must(fstat(fd, &status), "look at the plan");
  if (status.st_size > kMaxPlanSize) Fail("read the plan: it is too large", E2BIG);
  std::string bytes(status.st_size, '\0');
  if (pread(fd, bytes.data(), bytes.size(), 0) != status.st_size) Fail("read the plan", EIO);
  Plan plan;
  if (!Decode(bytes.data(), bytes.size(), &plan)) Fail("read the plan: it is damaged", EINVAL);
  std::string wrong = WhatIsWrong(plan, given);
  if (!wrong.empty()) Fail("accept the plan: " + wrong, EINVAL);
  return plan;
}

Cells::Cell* Cells::Find(std::string_view id) {
  for (auto& cell : cells_) if (cell.id == id) return &cell;
  return nullptr;
}

void Cells::Tell(const TellMessage& message, const std::vector<int>& fds) {
  if (orphaned_) {
    if (message.tell == kExited) ends_.push_back(message);
    return;
  }
  // The addon is gone if this fails; the end of its stream is noticed next.
  SendPacket(addon_, &message, sizeof message, fds);
}

void Cells::Take(const AskMessage& ask, std::vector<Fd> fds) {
  std::string id(TextOf(ask.id));
  if (ask.ask == kReserve) return Reserve(ask, std::move(fds));
  Cell* cell = Find(id);
  if (ask.ask == kKeep && (id.empty() || cell != nullptr)) return Keep(id, TextOf(ask.name), std::move(fds));
  if (cell == nullptr || !cell->reserved) return;
  if (ask.ask == kPrepare && !cell->planned) return Prepare(*cell, std::move(fds));
  if (!cell->planned) return;
  if (ask.ask == kHold) Hold(*cell, ask.deadline);
  if (ask.ask == kGo) {
    cell->wanted = true;
    Run(*cell);
  }
  if (ask.ask == kSignal && cell->running) Order(*cell, kDeliver, ask.signal);
  if (ask.ask == kSignalAll && cell->running) Order(*cell, kDeliverAll, ask.signal);
}

void Cells::Reserve(const AskMessage& ask, std::vector<Fd> fds) {
  std::string id(TextOf(ask.id));
  try {
    if (broken_) throw *broken_;
    if (id.empty() || Find(id) != nullptr) Fail("take the id " + id + ": a cell has it", EEXIST);
    if (!IsIdRange(ask.base, ask.count)) Fail("take the range of ids", EINVAL);
    if (fds.empty() || fds.size() > 1 + kMaxV1Groups) Fail("enter the cgroups: descriptors are missing", EBADF);
    Launch launch = {image_.get(), -1, fds[0].get(), ask.base, {}};
    MustBeCgroup(fds[0].get(), 2);
    for (size_t i = 1; i < fds.size(); i++) {
      MustBeCgroup(fds[i].get(), 1);
      launch.tasks.push_back(fds[i].get());
    }
    int ends[2];
    Must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), "make the socket to cell-init");
    Fd ours(ends[0]), theirs(ends[1]);
    launch.control = theirs.get();
    Cell& cell = cells_.emplace_back();
    cell.id = id;
    cell.control = std::move(ours);
    cell.base = ask.base;
    cell.count = ask.count;
    try {
      cell.pid = StartInit(launch, &cell.pidfd);
    } catch (...) {
      cells_.pop_back();
      throw;
    }
    // From here on a failure is told by Reap, when nothing of the cell is left.
    try {
      WriteIdMap(proc_, cell.pid, "uid_map", 0, ask.base, ask.count);
      WriteIdMap(proc_, cell.pid, "gid_map", 0, ask.base, ask.count);
      OrderMessage order = {kStart};
      Must(SendPacket(cell.control.get(), &order, sizeof order), "start cell-init");
    } catch (const Failure& failure) {
      Break(cell, failure);
    }
  } catch (const Failure& failure) {
    fds.clear();
    TellMessage refused = {kRefused};
    CopyText(refused.id, id);
    CopyText(refused.step, failure.step);
    refused.error = failure.error;
    Tell(refused);
  }
}

void Cells::Prepare(Cell& cell, std::vector<Fd> fds) {
  cell.planned = true;
  try {
    if (fds.size() < kPlanDescriptors) Fail("read the plan: descriptors are missing", EBADF);
    std::vector<Fd> given(std::make_move_iterator(fds.begin() + kPlanDescriptors), std::make_move_iterator(fds.end()));
    fds.resize(kPlanDescriptors);
    Plan plan = ReadPlan(fds[0].get(), given.size());
    if (plan.id != cell.id || plan.base != cell.base || plan.count != cell.count) Fail("accept the plan: it is for another cell", EINVAL);
    std::vector<Tree> trees = OpenTrees(plan, given, owners_, &cell.unheld);
    OrderMessage order = {kPlan};
    Must(SendPacket(cell.control.get(), &order, sizeof order, {fds[0].get(), fds[1].get(), fds[2].get(), fds[3].get()}), "send the plan to cell-init");
    for (size_t at = 0; at < trees.size();) {
      order = {kTrees};
      std::vector<int> batch;
      for (; at < trees.size() && batch.size() < kMaxDescriptors; at++) {
        order.mount[batch.size()] = trees[at].mount;
        batch.push_back(trees[at].fd.get());
      }
      order.count = batch.size();
      Must(SendPacket(cell.control.get(), &order, sizeof order, batch), "send mounts to cell-init");
    }
    order = {kBuild};
    Must(SendPacket(cell.control.get(), &order, sizeof order), "start the building");
  } catch (const Failure& failure) {
    Break(cell, failure);
  }
}

void Cells::Break(Cell& cell, const Failure& failure) {
  if (!cell.failure) cell.failure = failure;
  Kill(cell.pidfd.get());
}

void Cells::Order(Cell& cell, uint32_t order, int signal) {
  OrderMessage message = {order, signal};
  // Never wait for a cell: one whose queue is full of signals misses some.
  if (SendPacket(cell.control.get(), &message, sizeof message, {}, MSG_DONTWAIT) < 0 && order == kRun) Kill(cell.pidfd.get());
}

void Cells::Reserved(Cell& cell, uint32_t mask, std::vector<Fd> fds) {
  cell.sockets = std::move(fds);
  cell.mask = mask;
  cell.reserved = true;
  TellReserved(cell);
}

void Cells::TellReserved(const Cell& cell) {
  Fd netns(ioctl(cell.sockets[0].get(), SIOCGSKNS));
  Must(netns.get(), "open the cell's network namespace");
  TellMessage message = {kReserved};
  CopyText(message.id, cell.id);
  message.pid = cell.pid;
  message.sockets = cell.mask;
  std::vector<int> handed = {cell.pidfd.get(), netns.get()};
  for (auto& socket : cell.sockets) handed.push_back(socket.get());
  Tell(message, handed);
}

void Cells::Prepared(Cell& cell) {
  TellMessage message = {kPrepared};
  CopyText(message.id, cell.id);
  cell.prepared = true;
  message.unheld = cell.unheld;
  Run(cell);
  Tell(message);
}

void Cells::Run(Cell& cell) {
  if (!cell.prepared || !cell.wanted || cell.running) return;
  cell.running = true;
  Order(cell, kRun, 0);
}

bool Cells::Listen(Cell& cell) {
  if (!cell.control) return false;
  ReportMessage report;
  std::vector<Fd> fds;
  int got = ReceivePacket(cell.control.get(), &report, sizeof report, &fds, MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) return false;
  if (got <= 0) {
    // Without its socket it can be told nothing more; a cell-init that ends by itself is noticed by its pidfd.
    cell.control.Reset();
    Kill(cell.pidfd.get());
    return false;
  }
  cell.own_user_us = report.user_us;
  cell.own_system_us = report.system_us;
  try {
    if (report.report == kListening) {
      if (cell.reserved || fds.empty() || static_cast<size_t>(__builtin_popcount(report.sockets)) != fds.size() || report.sockets >> kSocketCount != 0) Fail("understand cell-init", EPROTO);
      Reserved(cell, report.sockets, std::move(fds));
    } else if (report.report == kReady) {
      if (!cell.planned || cell.prepared) Fail("understand cell-init", EPROTO);
      Prepared(cell);
    } else if (report.report == kFailed) {
      Fail(std::string(TextOf(report.step)), report.error != 0 ? report.error : EIO);
    } else if (report.report == kEnded) {
      cell.status = report.status;
    }
  } catch (const Failure& failure) {
    Break(cell, failure);
  }
  return true;
}

static uint64_t Microseconds(const struct timeval& time) { return time.tv_sec * 1000000ull + time.tv_usec; }

void Cells::Reap(Cell& cell) {
  while (Listen(cell)) {}
  int status = 0;
  struct rusage usage = {};
  pid_t got;
  do got = wait4(cell.pid, &status, 0, &usage);
  while (got < 0 && errno == EINTR);
  TellMessage message = {cell.reserved ? kExited : kRefused};
  CopyText(message.id, cell.id);
  message.pid = cell.pid;
  message.status = cell.status;
  // Killed from outside, together with its command: that is the command's end as well.
  if (message.status < 0 && WIFSIGNALED(status)) message.status = status;
  if (!cell.failure && (!cell.prepared || message.status < 0)) cell.failure = Failure{"keep cell-init running: it was killed or ended", ECHILD};
  if (cell.failure) {
    message.error = cell.failure->error;
    CopyText(message.step, cell.failure->step);
  }
  // The kernel's sum for process 1 and all that was reaped in the cell, without what building it took.
  uint64_t user = Microseconds(usage.ru_utime), system = Microseconds(usage.ru_stime);
  message.user_us = user > cell.own_user_us ? user - cell.own_user_us : 0;
  message.system_us = system > cell.own_system_us ? system - cell.own_system_us : 0;
  message.max_rss_kib = usage.ru_maxrss;
  message.time_over = cell.asked_to_end;
  // Told last: who hears it finds nothing of the cell any more.
  cell.sockets.clear();
  cell.control.Reset();
  cell.pidfd.Reset();
  Tell(message);
}

void Cells::Watch(std::vector<struct pollfd>* polls) const {
  for (auto& cell : cells_) {
    polls->push_back({cell.pidfd.get(), POLLIN, 0});
    polls->push_back({cell.control.get(), POLLIN, 0});
  }
}

void Cells::Serve(const struct pollfd* polls) {
  for (auto at = cells_.begin(); at != cells_.end(); polls += 2) {
    bool ended = polls[0].revents != 0;
    if (!ended && polls[1].revents != 0) Listen(*at);
    if (!ended) { ++at; continue; }
    Reap(*at);
    Drop(at->id);
    at = cells_.erase(at);
    DieWithDaemon(!AnyHeld());
  }
}

void Cells::EndAll() {
  for (auto& cell : cells_) Kill(cell.pidfd.get());
  for (auto& cell : cells_) Reap(cell);
  cells_.clear();
}

}  // namespace ambit
