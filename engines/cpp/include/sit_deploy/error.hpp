// What goes wrong, in one line that says what to do.
#pragma once

#include <stdexcept>

namespace sit_deploy {

/// Every error of this library: a damaged bundle, an image that cannot be decoded, a runtime that is missing.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

}  // namespace sit_deploy
