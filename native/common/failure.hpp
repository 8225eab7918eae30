// SPDX-License-Identifier: Apache-2.0
// How a step that failed travels up to whoever reports it: what was tried, in words, and errno.
#pragma once
#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

namespace ambit {

struct Failure {
  std::string step;
  int error;
};

[[noreturn]] inline void Fail(std::string step, int error) { throw Failure{std::move(step), error}; }

// Passes a result that is not negative through; otherwise fails with errno, naming the step and what it was about.
inline int Must(int result, std::string_view step, std::string_view about = {}) {
  if (result < 0) {
    int error = errno;
    std::string text(step);
    if (!about.empty()) text.append(" ").append(about);
    Fail(std::move(text), error);
  }
  return result;
}

}  // namespace ambit
