// Pixels in memory of yours: of a camera, of OpenCV, of a decoder of your own.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sit_deploy {

/// The bytes of a pixel in their order. The fourth of RGBA and BGRA is dropped, as transparency of a file is.
enum class PixelFormat { rgb, bgr, grey, rgba, bgra };

/// A view of eight-bit pixels, rows from the top. It owns nothing: the memory must live until the call that takes it returns.
/// Whoever takes it throws Error where it cannot be right.
struct Pixels {
    const std::uint8_t* data = nullptr;  ///< first pixel of the first row
    std::size_t size = 0;                ///< bytes that may be read from `data` on; no byte beyond them is
    std::int64_t width = 0, height = 0;
    std::size_t stride = 0;  ///< bytes from the start of a row to that of the next: width * bytes of a pixel, or more
    PixelFormat format = PixelFormat::rgb;
    std::uint8_t orientation = 1;  ///< as of an Image
};

}  // namespace sit_deploy
