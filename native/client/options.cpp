// SPDX-License-Identifier: Apache-2.0
#include "client/options.hpp"
#include <string_view>
#include "client/failure.hpp"
#include "client/json.hpp"

namespace ambit {

const char kUsage[] =
    "Usage: ambit-client run [options] --contract FILE -- COMMAND [ARGUMENT...]\n"
    "\n"
    "Runs a command in a cell of the daemon on this host.\n"
    "\n"
    "  --contract FILE   what the command may do (YAML or JSON)\n"
    "  --evidence DIR    write the signed evidence bundle here; the directory must be empty or not exist\n"
    "  --socket PATH     control socket of the daemon (default: /run/ambit/ambit.sock)\n"
    "  --json            a summary as one JSON line on stderr\n"
    "  --help            this text\n"
    "\n"
    "Input, output and the exit status pass through, and the signals INT, TERM, HUP, QUIT, USR1, USR2, WINCH. 128+N: ended by\n"
    "signal N; 124: its time was over; 137: out of memory, or killed; 125: the cell could not be built, or the daemon went away;\n"
    "2: not understood. Arguments and the contract must be UTF-8; environment variables that are not stay outside.\n";

namespace {

[[noreturn]] void Refuse(const std::string& why) {
  throw Failure{kExitUsage, "", "read the command line", why, "`ambit-client --help` shows what it understands"};
}

}  // namespace

Options ParseOptions(int argc, char** argv) {
  Options options;
  if (argc < 2) Refuse("no command was given");
  std::string_view verb = argv[1];
  if (verb == "--help" || verb == "-h") { options.help = true; return options; }
  if (verb != "run") Refuse("\"" + std::string(verb) + "\" is not a command");
  int at = 2;
  for (; at < argc; at++) {
    std::string_view word = argv[at];
    if (word == "--") { at++; break; }
    if (word.empty() || word[0] != '-') break;
    if (word == "--help" || word == "-h") { options.help = true; return options; }
    if (word == "--json") { options.json = true; continue; }
    size_t equals = word.find('=');
    std::string_view name = word.substr(0, equals);
    std::string* target = name == "--contract" ? &options.contract : name == "--evidence" ? &options.evidence : name == "--socket" ? &options.socket : nullptr;
    if (target == nullptr) Refuse("there is no option \"" + std::string(name) + "\"");
    if (equals == std::string_view::npos && at + 1 >= argc) Refuse(std::string(name) + " needs a value");
    *target = equals == std::string_view::npos ? argv[++at] : std::string(word.substr(equals + 1));
    if (target->empty()) Refuse(std::string(name) + " needs a value");
  }
  options.command.assign(argv + at, argv + argc);
  if (options.contract.empty()) Refuse("--contract is missing");
  if (options.command.empty()) Refuse("the command to run is missing");
  for (size_t i = 0; i < options.command.size(); i++) {
    if (!IsUtf8(options.command[i])) Refuse("argument " + std::to_string(i) + " of the command is not UTF-8, and would not reach it unchanged");
  }
  return options;
}

}  // namespace ambit
