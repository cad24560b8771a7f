// What goes wrong, in one line that says what to do.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace sit_deploy {

/// Every error of this library: a damaged bundle, an image that cannot be decoded, a runtime that is missing.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// A text from a file or from outside, for a terminal: on one line, control characters, which could drive it, made spaces.
std::string printable(std::string_view text);

}  // namespace sit_deploy
