// SPDX-License-Identifier: Apache-2.0
// Writing JSON text. Input is bytes from outside: whether it is UTF-8 is the caller's question, asked with IsUtf8.
#pragma once
#include <string>
#include <string_view>

namespace ambit {

// Where the first byte stands that is not part of well-formed UTF-8 (RFC 3629: no surrogates, nothing overlong, nothing above
// U+10FFFF); npos if there is none.
size_t FirstNotUtf8(std::string_view text);
inline bool IsUtf8(std::string_view text) { return FirstNotUtf8(text) == std::string_view::npos; }

// Appends a quoted string (RFC 8259).
void AppendString(std::string& out, std::string_view text);

// The text with control characters shown as \xNN, so that nobody else's text drives the terminal; line feeds stay.
std::string Printable(std::string_view text);

}  // namespace ambit
