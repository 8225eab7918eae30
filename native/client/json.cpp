// SPDX-License-Identifier: Apache-2.0
#include "client/json.hpp"

namespace ambit {

namespace {

constexpr char kHex[] = "0123456789abcdef";

// Length of the well-formed sequence at `at`, 0 if there is none (Unicode 15, table 3-7).
size_t SequenceAt(std::string_view text, size_t at) {
  auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  auto within = [&](size_t i, unsigned low, unsigned high) { return byte(i) >= low && byte(i) <= high; };
  auto tail = [&](size_t i) { return within(i, 0x80, 0xbf); };
  unsigned first = byte(at);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return tail(at + 1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    bool second = within(at + 1, first == 0xe0 ? 0xa0 : 0x80, first == 0xed ? 0x9f : 0xbf);
    return second && tail(at + 2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    bool second = within(at + 1, first == 0xf0 ? 0x90 : 0x80, first == 0xf4 ? 0x8f : 0xbf);
    return second && tail(at + 2) && tail(at + 3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

size_t FirstNotUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    size_t length = SequenceAt(text, at);
    if (length == 0) return at;
    at += length;
  }
  return std::string_view::npos;
}

void AppendString(std::string& out, std::string_view text) {
  out += '"';
  for (char character : text) {
    auto byte = static_cast<unsigned char>(character);
    if (byte == '"' || byte == '\\') {
      out += '\\';
      out += character;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += character;
    }
  }
  out += '"';
}

std::string Printable(std::string_view text) {
  std::string out;
  auto show = [&](unsigned char byte) {
    out += "\\x";
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
  };
  for (size_t at = 0; at < text.size();) {
    auto byte = static_cast<unsigned char>(text[at]);
    size_t length = SequenceAt(text, at);
    bool c1 = length == 2 && byte == 0xc2 && static_cast<unsigned char>(text[at + 1]) < 0xa0;
    if (length == 0 || c1 || byte == 0x7f || (byte < 0x20 && byte != '\n')) {
      for (size_t i = 0; i < (length == 0 ? 1 : length); i++) show(static_cast<unsigned char>(text[at + i]));
    } else {
      out += text.substr(at, length);
    }
    at += length == 0 ? 1 : length;
  }
  return out;
}

}  // namespace ambit
