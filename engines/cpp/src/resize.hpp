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

/// Where red, green and blue are in a pixel, and how many bytes it has.
struct Channels {
    std::size_t red, green, blue, count;
};

/// Throws Error: a format that is none.
Channels channels_of(PixelFormat format);

/// Throws Error: an image that is not as large as it says, or larger than any should be.
void check(const Image& image);

/// Throws Error: pixels that are not all in their memory, or more than any image should have.
void check(const Pixels& pixels);

/// The wanted part of a resized image that check() has passed, equal to that part of the whole. filter: as for resize().
Image resize_window(const Pixels& pixels, const Span& across, const Span& down, const std::string& filter);

}  // namespace sit_deploy
