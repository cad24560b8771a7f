// Turning, cropping and normalising as sit_deploy/preprocessing.py does: equal to it to the bit, which the tests hold.
#include <algorithm>
#include <cstring>

#include "boundary.hpp"
#include "manifest.hpp"
#include "resize.hpp"
#include "sit_deploy/error.hpp"
#include "sit_deploy/image.hpp"

namespace sit_deploy {
namespace {

/// The middle `crop` of `to` pixels that `from` become. Between two pixels it begins at the lower one, or as Python's
/// round() has it at the even one.
Span middle(std::size_t from, std::size_t to, std::size_t crop, bool floor) {
    const std::size_t down = (to - crop) / 2;
    const std::size_t begin = floor || (to - crop) % 2 == 0 ? down : down + down % 2;
    return {from, to, begin, begin + crop};
}

}  // namespace

Pixels view(const Image& image) {
    return at_boundary("looking at an image", [&] {
        check(image);
        return Pixels{image.rgb.data(), image.rgb.size(), static_cast<std::int64_t>(image.width), static_cast<std::int64_t>(image.height),
                      3 * image.width,  PixelFormat::rgb, image.orientation};
    });
}

Image upright(const Pixels& pixels) {
    return at_boundary("turning an image", [&] {
        check(pixels);
        const unsigned how = pixels.orientation;
        const Channels channels = channels_of(pixels.format);
        const auto width = static_cast<std::size_t>(pixels.width), height = static_cast<std::size_t>(pixels.height);
        const bool swapped = how >= 5;
        const bool from_right = how == 2 || how == 3 || how == 7 || how == 8;
        const bool from_below = how == 3 || how == 4 || how == 6 || how == 7;
        Image out{swapped ? height : width, swapped ? width : height, {}};
        out.rgb.resize(3 * width * height);
        std::uint8_t* target = out.rgb.data();
        for (std::size_t y = 0; y < out.height; ++y)
            for (std::size_t x = 0; x < out.width; ++x, target += 3) {
                const std::size_t column = swapped ? y : x, row = swapped ? x : y;
                const std::size_t from_x = from_right ? width - 1 - column : column;
                const std::size_t from_y = from_below ? height - 1 - row : row;
                const std::uint8_t* in = pixels.data + from_y * pixels.stride + from_x * channels.count;
                target[0] = in[channels.red];
                target[1] = in[channels.green];
                target[2] = in[channels.blue];
            }
        return out;
    });
}

Image upright(const Image& image) {
    const Pixels pixels = view(image);
    return image.orientation == 1 ? image : upright(pixels);
}

std::vector<std::uint8_t> crop_pixels(const Pixels& pixels, const Preprocessing& how) {
    return at_boundary("preparing an image", [&] {
        check(pixels);
        check(how);
        if (how.upright && pixels.orientation != 1) return crop_pixels(upright(pixels), how);  // which stands, and says so
        const auto width = static_cast<std::size_t>(pixels.width), height = static_cast<std::size_t>(pixels.height);
        // the longer side is rounded down, from a quotient in double precision, as torchvision has it
        const auto longer = static_cast<std::size_t>(static_cast<double>(how.resize * std::max(width, height)) /
                                                     static_cast<double>(std::min(width, height)));
        const bool portrait = width <= height;
        std::size_t across = portrait ? how.resize : longer, down = portrait ? longer : how.resize;
        if (how.squash) {
            across = how.resize * how.width / std::max(how.width, how.height);
            down = how.resize * how.height / std::max(how.width, how.height);
        }
        return resize_window(pixels, middle(width, across, how.width, how.crop_floor), middle(height, down, how.height, how.crop_floor),
                             how.interpolation)
            .rgb;
    });
}

std::vector<std::uint8_t> crop_pixels(const Image& image, const Preprocessing& how) { return crop_pixels(view(image), how); }

void prepare(const Image& image, const Preprocessing& how, void* out) { prepare(view(image), how, out); }

void prepare(const Pixels& pixels, const Preprocessing& how, void* out) {
    return at_boundary("preparing an image", [&] {
        if (!out) throw Error("no memory is given to prepare an image into");
        const std::vector<std::uint8_t> crop = crop_pixels(pixels, how);
        if (how.pixels) {
            std::memcpy(out, crop.data(), crop.size());
            return;
        }
        // a byte has 256 values: each is normalised once, in the order of operations of the Python side
        const std::size_t plane = how.height * how.width;
        std::vector<float> planes(3 * plane);
        for (std::size_t c = 0; c < 3; ++c) {
            std::array<float, 256> value{};
            for (std::size_t v = 0; v < 256; ++v) value[v] = (static_cast<float>(v) / 255.0F - how.mean[c]) / how.std[c];
            for (std::size_t i = 0; i < plane; ++i) planes[c * plane + i] = value[crop[3 * i + c]];
        }
        std::memcpy(out, planes.data(), planes.size() * sizeof(float));
    });
}

}  // namespace sit_deploy
