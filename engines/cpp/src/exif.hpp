// What a picture says of how it was held, read as Pillow 13 reads it: its quirks are part of being equal to it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace sit_deploy {

/// The orientation, 1 to 8; 1 where nothing, or nothing sensible, is said.
/// exif: a TIFF file, also behind "Exif\0\0". xmp: asked where the EXIF has no orientation.
std::uint8_t orientation_of(std::optional<std::string_view> exif, std::string_view xmp);

}  // namespace sit_deploy
