// SPDX-License-Identifier: Apache-2.0
#include "client/session.hpp"
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <set>
#include "client/failure.hpp"
#include "client/json.hpp"
#include "client/output.hpp"
#include "client/reply.hpp"
#include "common/unix-address.hpp"

namespace ambit {

namespace {

constexpr int kForwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH};
constexpr int kExitTimeOver = 124;
constexpr int kExitOutOfMemory = 137;

Failure Unreachable(const std::string& socket, int error) {
  const char* remedy = error == EACCES || error == EPERM
      ? "ask whoever runs this host to put you into the group that the daemon serves (`ambit daemon --group NAME`)"
      : "start the daemon (`ambit daemon`), or name its socket with --socket";
  return {kExitUsage, "", "reach the daemon", socket + ": " + strerror(error), remedy};
}

Failure DaemonGone(const std::string& why) {
  return {kExitCellFailed, "", "follow the cell to its end", why, "the daemon's log tells more; the cell ends with the daemon or by its ttl"};
}

// If this fails the daemon is gone, which the next read tells.
void PassOn(const Fd& daemon, int signal) {
  std::string message = "{\"op\":\"signal\",\"signal\":" + std::to_string(signal) + "}";
  while (send(daemon.get(), message.data(), message.size(), MSG_NOSIGNAL) < 0 && errno == EINTR) continue;
}

void Summary(const Options& options, const Reply& reply) {
  auto number = [&](const char* name) {
    auto value = reply.Number(name);
    return value ? std::to_string(*value) : std::string("null");
  };
  std::string line = "{\"cell\":";
  AppendString(line, reply.Text("cell"));
  line += ",\"code\":" + number("code") + ",\"signal\":" + number("signal") + ",\"reason\":";
  AppendString(line, reply.Text("reason"));
  line += ",\"evidence\":";
  const std::string where = options.evidence.empty() ? reply.Text("evidence") : options.evidence;
  if (IsUtf8(where)) AppendString(line, where);
  else line += "null";
  line += ",\"notice\":";
  if (reply.Has("notice")) AppendString(line, reply.Text("notice"));
  else line += "null";
  if (reply.Has("changes")) {
    line += ",\"changes\":";
    AppendString(line, reply.Text("changes"));
  }
  Say(STDERR_FILENO, line + "}\n");
}

// An overlay workspace is as it was: whoever looks for what the job made must be told.
void TellChanges(const Reply& reply) {
  if (!reply.Has("changes")) return;
  Say(STDERR_FILENO, "ambit: the workspace is as it was; what the job wrote is kept apart: `ambit changes " + Printable(reply.Text("changes")) + "` shows it, --apply writes it, --discard forgets it\n");
}

int ExitStatus(const Reply& reply) {
  const std::string reason = reply.Text("reason");
  if (reason == "ttl") return kExitTimeOver;
  if (reason == "memory") return kExitOutOfMemory;
  if (reason == "daemon-stopped") throw DaemonGone("the daemon was stopped, and ended the cell");
  if (auto code = reply.Number("code")) return *code;
  if (auto signal = reply.Number("signal")) return 128 + *signal;
  throw DaemonGone("the daemon's last message has neither a code nor a signal");
}

}  // namespace

Fd BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : kForwarded) sigaddset(&set, signal);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  return Fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

std::string RunRequest(const Options& options, const std::string& contract, const std::map<std::string, std::string>& profiles, char** environment) {
  std::string out = "{\"op\":\"run\",\"contract\":{\"text\":";
  AppendString(out, contract);
  out += ",\"file\":";
  AppendString(out, IsUtf8(options.contract) ? options.contract : Printable(options.contract));
  if (!profiles.empty()) {
    out += ",\"profiles\":{";
    for (auto& [name, text] : profiles) {
      if (out.back() != '{') out += ',';
      AppendString(out, name);
      out += ':';
      AppendString(out, text);
    }
    out += '}';
  }
  out += "},\"argv\":[";
  for (size_t i = 0; i < options.command.size(); i++) {
    if (i > 0) out += ',';
    AppendString(out, options.command[i]);
  }
  out += "],\"env\":{";
  bool first = true;
  for (char** entry = environment; *entry != nullptr; entry++) {
    std::string_view text = *entry;
    size_t equals = text.find('=');
    // What is no UTF-8 cannot pass through JSON unchanged, and a changed value would be worse than none.
    if (equals == std::string_view::npos || equals == 0 || !IsUtf8(text)) continue;
    if (!first) out += ',';
    first = false;
    AppendString(out, text.substr(0, equals));
    out += ':';
    AppendString(out, text.substr(equals + 1));
  }
  out += "},\"evidence\":";
  out += options.evidence.empty() ? "false}" : "true}";
  if (out.size() > kMaxMessage) {
    throw Failure{kExitUsage, "", "ask for the cell",
                  "contract, command line and environment together are " + std::to_string(out.size()) + " bytes, and " + std::to_string(kMaxMessage) + " is the most",
                  "shorten the command line, or run it with a smaller environment (`env -i NAME=VALUE ambit run …`)"};
  }
  return out;
}

Fd Ask(const Options& options, const std::string& request, const std::vector<int>& descriptors) {
  UnixAddress address;
  if (int error = address.Set(options.socket)) throw Unreachable(options.socket, error);
  Fd daemon(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!daemon) throw Unreachable(options.socket, errno);
  setsockopt(daemon.get(), SOL_SOCKET, SO_SNDBUF, &kSendBuffer, sizeof kSendBuffer);
  if (connect(daemon.get(), address.get(), address.size()) != 0) throw Unreachable(options.socket, errno);

  iovec vector{const_cast<char*>(request.data()), request.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPassed)] = {};
  msghdr header{.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int) * descriptors.size())};
  if (descriptors.empty()) header.msg_controllen = 0;
  cmsghdr* part = descriptors.empty() ? reinterpret_cast<cmsghdr*>(control) : CMSG_FIRSTHDR(&header);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = SCM_RIGHTS;
  part->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
  memcpy(CMSG_DATA(part), descriptors.data(), sizeof(int) * descriptors.size());
  ssize_t sent;
  do sent = sendmsg(daemon.get(), &header, MSG_NOSIGNAL); while (sent < 0 && errno == EINTR);
  if (sent < 0) throw Unreachable(options.socket, errno);
  return daemon;
}

namespace {

// How long a cell that outlives its daemon is waited for, and how often the next daemon is looked for.
constexpr int kReturnMs = 5 * 60 * 1000;
constexpr int kLookMs = 200;

// Connects to the next daemon, asked for the cell; none if it did not come in time. A signal that comes twice ends the waiting.
Fd AskAgain(const Options& options, const std::string& cell, int evidence, const Fd& signals, std::set<int>* early, int* ended) {
  Say(STDERR_FILENO, "ambit: the daemon went away; the cell goes on without it. Waiting up to " + std::to_string(kReturnMs / 60000) + " minutes for its return\n");
  std::string request = "{\"op\":\"resume\",\"cell\":";
  AppendString(request, cell);
  request += evidence < 0 ? ",\"evidence\":false}" : ",\"evidence\":true}";
  for (int waited = 0; waited < kReturnMs; waited += kLookMs) {
    pollfd watched = {signals.get(), POLLIN, 0};
    poll(&watched, 1, kLookMs);
    signalfd_siginfo info;
    while (watched.revents != 0 && read(signals.get(), &info, sizeof info) == sizeof info) {
      int signal = static_cast<int>(info.ssi_signo);
      if (signal == SIGWINCH) continue;
      if (!early->insert(signal).second) {
        *ended = 128 + signal;
        return Fd();
      }
    }
    try {
      return Ask(options, request, evidence < 0 ? std::vector<int>{} : std::vector<int>{evidence});
    } catch (const Failure&) {
      // Not yet.
    }
  }
  return Fd();
}

}  // namespace

int Follow(const Options& options, Fd daemon, const Fd& signals, int evidence) {
  bool started = false, lasts = false;
  std::string cell;
  std::set<int> early;
  std::vector<char> buffer(kMaxMessage);
  for (;;) {
    pollfd watched[] = {{daemon.get(), POLLIN, 0}, {signals.get(), POLLIN, 0}};
    if (poll(watched, 2, -1) < 0) {
      if (errno == EINTR) continue;
      throw DaemonGone(strerror(errno));
    }
    signalfd_siginfo info;
    while (watched[1].revents != 0 && read(signals.get(), &info, sizeof info) == sizeof info) {
      int signal = static_cast<int>(info.ssi_signo);
      // Until the command runs there is nobody to signal: it waits. Who asks twice gets their way.
      if (!started && early.count(signal) != 0 && signal != SIGWINCH) return 128 + signal;
      if (started) PassOn(daemon, signal);
      else early.insert(signal);
    }
    if (watched[0].revents == 0) continue;
    ssize_t size = recv(daemon.get(), buffer.data(), buffer.size(), 0);
    // A daemon that closed without reading a signal of ours leaves this error in front of its answer.
    if (size < 0 && (errno == EINTR || errno == ECONNRESET)) continue;
    if (size <= 0 && lasts) {
      started = false;
      early.clear();
      int ended = 0;
      daemon = AskAgain(options, cell, evidence, signals, &early, &ended);
      if (ended != 0) return ended;
      if (!daemon) throw Failure{kExitCellFailed, "", "follow the cell to its end", "no daemon came back for it", "the cell ends with its time at the latest; its evidence is at the daemon, unsealed"};
      continue;
    }
    if (size <= 0) {
      throw started ? DaemonGone("the daemon went away") : Failure{kExitCellFailed, "", "build the cell", "the daemon went away without an answer", "the daemon's log tells more"};
    }
    Reply reply;
    if (!reply.Parse({buffer.data(), static_cast<size_t>(size)})) throw DaemonGone("the daemon said something that this client does not understand");
    const std::string type = reply.Text("type");
    if (type == "started") {
      started = true;
      lasts = reply.Text("lasts") == "yes";
      cell = reply.Text("cell");
      for (int signal : early) PassOn(daemon, signal);
    }
    if (type == "error") {
      Say(STDERR_FILENO, "ambit: " + Printable(reply.Text("text")) + "\n");
      return reply.Number("exitCode").value_or(kExitCellFailed);
    }
    if (type == "ended") {
      if (options.json) Summary(options, reply);
      else {
        if (reply.Has("notice")) Say(STDERR_FILENO, "ambit: " + Printable(reply.Text("notice")) + "\n");
        TellChanges(reply);
      }
      return ExitStatus(reply);
    }
  }
}

}  // namespace ambit
