// The part of a resized image that somebody wants.
#pragma once

#include <cstddef>
#include <string>

#include "sit_deploy/image.hpp"

namespace sit_deploy {

/// One direction of a resize: `from` pixels become `to`, and of those `begin` until `end` are wanted, at least one.
struct Span {
    std::size_t from, to, begin, end;
};

/// Throws Error: an image that is not as large as it says, or larger than any should be.
void check(const Image& image);

/// The wanted part of a resized image that check() has passed, equal to that part of the whole. filter: as for resize().
Image resize_window(const Image& image, const Span& across, const Span& down, const std::string& filter);

}  // namespace sit_deploy
