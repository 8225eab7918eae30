// SPDX-License-Identifier: Apache-2.0
// What the daemon says: NAME=VALUE fields, each ended by a zero byte (src/daemon/protocol.ts, encodeDaemonMessage).
#pragma once
#include <charconv>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace ambit {

class Reply {
 public:
  // False: not a well-formed message.
  bool Parse(std::string_view bytes) {
    while (!bytes.empty()) {
      size_t end = bytes.find('\0');
      if (end == std::string_view::npos) return false;
      std::string_view field = bytes.substr(0, end);
      size_t equals = field.find('=');
      if (equals == std::string_view::npos || equals == 0) return false;
      if (!fields_.emplace(field.substr(0, equals), field.substr(equals + 1)).second) return false;
      bytes.remove_prefix(end + 1);
    }
    return Has("type");
  }
  bool Has(const char* name) const { return fields_.count(name) != 0; }
  std::string Text(const char* name) const {
    auto found = fields_.find(name);
    return found == fields_.end() ? "" : found->second;
  }
  std::optional<int> Number(const char* name) const {
    std::string text = Text(name);
    int value = 0;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
    return value;
  }

 private:
  std::map<std::string, std::string, std::less<>> fields_;
};

}  // namespace ambit
