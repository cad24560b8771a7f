// Images: decoded from JPEG, PNG and WebP, and prepared exactly as the training did it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "sit_deploy/bundle.hpp"
#include "sit_deploy/pixels.hpp"

namespace sit_deploy {

/// Eight-bit RGB, rows from the top: exactly 3 * width * height bytes, or whoever takes it throws Error.
struct Image {
    std::size_t width = 0, height = 0;
    std::vector<std::uint8_t> rgb;
    std::uint8_t orientation = 1;  ///< by EXIF, 1 to 8: how the stored pixels stand; prepare() turns where the bundle asks
};

/// Decode a JPEG, PNG or, where the library was built with libwebp, WebP. Grey and CMYK become RGB, 16 bits their high byte,
/// transparency is dropped; of an animation it is the first frame; the pixels are as stored.
/// Throws Error: damaged, truncated, of another format, or too large to trust.
Image decode(const std::uint8_t* data, std::size_t size);

/// Decode a file; the error names it.
Image load_image(const std::filesystem::path& path);

/// Resize to width x height as Image.resize of Pillow 13 does, to the bit. filter: "bilinear", "bicubic" or "lanczos".
/// The orientation stays with the image.
Image resize(const Image& image, std::size_t width, std::size_t height, const std::string& filter);

/// The image as it was seen: turned as its orientation says, equal to Pillow's ImageOps.exif_transpose.
Image upright(const Image& image);

Image upright(const Pixels& pixels);

/// An image as pixels: a view, which ends with the image. Throws Error where the image is not as large as it says.
Pixels view(const Image& image);

/// The turned, resized and cropped image: 3 * H * W bytes, (H, W, 3). Of the resized image no more is made than the crop.
std::vector<std::uint8_t> crop_pixels(const Image& image, const Preprocessing& how);
std::vector<std::uint8_t> crop_pixels(const Pixels& pixels, const Preprocessing& how);

/// Write what the network takes of an image: how.bytes() bytes at `out`, equal to the Python preprocessing to the bit.
/// Pixels of any format are read where they are, and copied only where they have to be turned.
void prepare(const Image& image, const Preprocessing& how, void* out);
void prepare(const Pixels& pixels, const Preprocessing& how, void* out);

}  // namespace sit_deploy
