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

/// Python's round(): half to even.
std::size_t half(std::size_t difference) {
    const std::size_t down = difference / 2;
    return difference % 2 == 0 ? down : down + down % 2;
}

/// The middle `crop` of `to` pixels that `from` become.
Span middle(std::size_t from, std::size_t to, std::size_t crop) {
    const std::size_t begin = half(to - crop);
    return {from, to, begin, begin + crop};
}

}  // namespace

Image upright(const Image& image) {
    return at_boundary("turning an image", [&] {
        check(image);
        const unsigned how = image.orientation;
        if (how == 1) return image;
        const bool swapped = how >= 5;
        const bool from_right = how == 2 || how == 3 || how == 7 || how == 8;
        const bool from_below = how == 3 || how == 4 || how == 6 || how == 7;
        Image out{swapped ? image.height : image.width, swapped ? image.width : image.height, {}};
        out.rgb.resize(image.rgb.size());
        std::uint8_t* target = out.rgb.data();
        for (std::size_t y = 0; y < out.height; ++y)
            for (std::size_t x = 0; x < out.width; ++x, target += 3) {
                const std::size_t column = swapped ? y : x, row = swapped ? x : y;
                const std::size_t from_x = from_right ? image.width - 1 - column : column;
                const std::size_t from_y = from_below ? image.height - 1 - row : row;
                std::memcpy(target, image.rgb.data() + 3 * (from_y * image.width + from_x), 3);
            }
        return out;
    });
}

std::vector<std::uint8_t> crop_pixels(const Image& image, const Preprocessing& how) {
    return at_boundary("preparing an image", [&] {
        check(image);
        check(how);
        if (how.upright && image.orientation != 1) {
            Preprocessing then = how;
            then.upright = false;
            return crop_pixels(upright(image), then);
        }
        // the longer side is rounded down, from a quotient in double precision, as torchvision has it
        const auto longer = static_cast<std::size_t>(static_cast<double>(how.resize * std::max(image.width, image.height)) /
                                                     static_cast<double>(std::min(image.width, image.height)));
        const bool portrait = image.width <= image.height;
        return resize_window(image, middle(image.width, portrait ? how.resize : longer, how.width),
                             middle(image.height, portrait ? longer : how.resize, how.height), how.interpolation)
            .rgb;
    });
}

void prepare(const Image& image, const Preprocessing& how, void* out) {
    return at_boundary("preparing an image", [&] {
        if (!out) throw Error("no memory is given to prepare an image into");
        const std::vector<std::uint8_t> pixels = crop_pixels(image, how);
        if (how.pixels) {
            std::memcpy(out, pixels.data(), pixels.size());
            return;
        }
        // a byte has 256 values: each is normalised once, in the order of operations of the Python side
        const std::size_t plane = how.height * how.width;
        std::vector<float> planes(3 * plane);
        for (std::size_t c = 0; c < 3; ++c) {
            std::array<float, 256> value{};
            for (std::size_t v = 0; v < 256; ++v) value[v] = (static_cast<float>(v) / 255.0F - how.mean[c]) / how.std[c];
            for (std::size_t i = 0; i < plane; ++i) planes[c * plane + i] = value[pixels[3 * i + c]];
        }
        std::memcpy(out, planes.data(), planes.size() * sizeof(float));
    });
}

}  // namespace sit_deploy
