// SPDX-License-Identifier: Apache-2.0
// The hot path of `ambit run`: hands its own descriptors to the daemon and follows the cell. Static, so that it starts in less
// than a millisecond; it decides nothing.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include "client/evidence-directory.hpp"
#include "client/failure.hpp"
#include "client/json.hpp"
#include "client/options.hpp"
#include "client/output.hpp"
#include "client/session.hpp"
#include "common/unix-address.hpp"

using namespace ambit;

namespace {

// The three that the command starts with: one that the caller closed is nothing, not whatever is opened next.
void FillStandardDescriptors() {
  for (int fd = 0; fd < 3; fd++) {
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
  }
}

std::string ReadContract(const std::string& path) {
  auto failed = [&](const std::string& why) { return Failure{kExitUsage, "", "read the contract", path + ": " + why, "check the path and that you may read it"}; };
  Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) throw failed(strerror(errno));
  std::string text;
  char chunk[16 * 1024];
  for (;;) {
    ssize_t size = read(file.get(), chunk, sizeof chunk);
    if (size < 0 && errno == EINTR) continue;
    if (size < 0) throw failed(strerror(errno));
    if (size == 0) break;
    text.append(chunk, static_cast<size_t>(size));
    if (text.size() > kMaxMessage) throw failed("it is larger than " + std::to_string(kMaxMessage) + " bytes");
  }
  size_t bad = FirstNotUtf8(text);
  if (bad != std::string::npos) {
    size_t line = 1;
    for (size_t i = 0; i < bad; i++) line += text[i] == '\n';
    throw Failure{kExitUsage, path + ":" + std::to_string(line) + ": ", "read the contract", "byte " + std::to_string(bad) + " is not UTF-8", "write the contract in UTF-8"};
  }
  return text;
}

// A seccomp profile that the contract may name as `oci:FILE`, from the contract's folder. The daemon opens no path of a caller's,
// so what looks like such a name is read here, with the caller's rights; the daemon decides whether it is one.
std::map<std::string, std::string> ReadProfiles(const std::string& contract, const std::string& text) {
  constexpr std::string_view kPrefix = "oci:";
  std::map<std::string, std::string> found;
  size_t slash = contract.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : contract.substr(0, slash + 1);
  for (size_t at = text.find(kPrefix); at != std::string::npos && found.size() < 4; at = text.find(kPrefix, at + 1)) {
    size_t begin = at + kPrefix.size();
    std::string name = text.substr(begin, text.find_first_of(" \t\r\n\"',{}[]#", begin) - begin);
    if (name.empty() || (at > 0 && isalnum(static_cast<unsigned char>(text[at - 1])))) continue;
    Fd file(open((name[0] == '/' ? name : folder + name).c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    struct stat status;
    if (!file || fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_size > static_cast<off_t>(kMaxMessage)) continue;
    std::string content(status.st_size, '\0');
    ssize_t size = pread(file.get(), content.data(), content.size(), 0);
    if (size < 0) continue;
    content.resize(size);
    if (FirstNotUtf8(content) == std::string::npos) found.emplace(std::move(name), std::move(content));
  }
  return found;
}

int Run(const Options& options) {
  Fd signals = BlockSignals();
  if (!signals) throw Failure{kExitCellFailed, "", "watch for signals", strerror(errno), "check the limit of open files"};
  const std::string contract = ReadContract(options.contract);
  std::string request = RunRequest(options, contract, ReadProfiles(options.contract, contract), environ);
  Fd workspace(open(".", O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!workspace) throw Failure{kExitUsage, "", "open the current directory", strerror(errno), "run this from a directory that exists"};
  EvidenceDirectory evidence;
  std::vector<int> descriptors{STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO, workspace.get()};
  if (!options.evidence.empty()) {
    evidence.Open(options.evidence);
    descriptors.push_back(evidence.get());
  }
  Fd daemon = Ask(options, request, descriptors);
  int status = Follow(options, std::move(daemon), signals, options.evidence.empty() ? -1 : evidence.get());
  if (!options.evidence.empty()) evidence.Confirm();
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  FillStandardDescriptors();
  // A reader that has gone must not turn the command's exit status into ours.
  signal(SIGPIPE, SIG_IGN);
  try {
    Options options = ParseOptions(argc, argv);
    if (options.help) {
      Say(STDOUT_FILENO, kUsage);
      return 0;
    }
    return Run(options);
  } catch (const Failure& failure) {
    Say(STDERR_FILENO, "ambit: " + Printable(failure.where + "could not " + failure.attempted + ": " + failure.why + "\n  " + failure.remedy) + "\n");
    return failure.exit;
  }
}
