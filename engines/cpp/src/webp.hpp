// WebP by libwebp, where the library is built with it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sit_deploy/image.hpp"

namespace sit_deploy {

/// Throws Error: an image of no pixels, or of more than are believed.
void check_size(std::size_t width, std::size_t height);

/// Decode a WebP, of an animated one the first frame, as Pillow does. Throws Error: damaged, truncated or too large; or built
/// without libwebp.
Image decode_webp(const std::uint8_t* data, std::size_t size);

}  // namespace sit_deploy
