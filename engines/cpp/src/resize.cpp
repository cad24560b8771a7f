// Resizing as Pillow does it (libImaging/Resample.c, the 8-bit path), equal to it to the bit, which the tests hold; of the
// resized image only a window is computed, whose pixels are those that the whole would have there.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "boundary.hpp"
#include "checked.hpp"
#include "limits.hpp"
#include "resize.hpp"
#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

constexpr int precision_bits = 32 - 8 - 2;  // of the fixed point: 8 for the value, 2 for overshoot
constexpr double pi = 3.14159265358979323846;

struct Filter {
    double support;
    std::function<double(double)> weight;
};

double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * pi) / (x * pi); }

Filter filter_named(const std::string& name) {
    if (name == "bilinear") return {1.0, [](double x) { return std::max(0.0, 1.0 - std::fabs(x)); }};
    if (name == "bicubic")
        return {2.0, [](double x) {
                    constexpr double a = -0.5;
                    x = std::fabs(x);
                    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
                    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
                    return 0.0;
                }};
    if (name == "lanczos") return {3.0, [](double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }};
    throw Error("interpolation " + name + " is unknown here; it must be bilinear, bicubic or lanczos");
}

/// Where the inputs of one output position begin, and the end of them.
struct Reach {
    std::size_t first, last;
};

/// How one direction is resized, and which inputs each output position weighs.
class Axis {
public:
    Axis(const Span& span, const Filter& filter)
        : span_(span),
          scale_(static_cast<double>(span.from) / static_cast<double>(span.to)),
          stretch_(std::max(scale_, 1.0)),  // antialiasing: the filter widens when the image shrinks
          support_(filter.support * stretch_),
          filter_(filter) {}

    [[nodiscard]] bool is_copy() const { return span_.from == span_.to; }
    [[nodiscard]] std::size_t begin() const { return span_.begin; }
    [[nodiscard]] std::size_t end() const { return span_.end; }

    /// The most inputs that an output position weighs.
    [[nodiscard]] std::size_t widest() const { return 2 * static_cast<std::size_t>(std::ceil(support_)) + 1; }

    /// The inputs that the whole window needs.
    [[nodiscard]] Reach reach() const {
        if (is_copy()) return {span_.begin, span_.end};
        return {reach_of(span_.begin).first, reach_of(span_.end - 1).last};
    }

    [[nodiscard]] Reach reach_of(std::size_t position) const {
        const double center = (static_cast<double>(position) + 0.5) * scale_;
        // a source has fewer positions than an int holds, and so has the place of each output in it
        const int low = std::max(static_cast<int>(center - support_ + 0.5), 0);
        const int high = std::min(static_cast<int>(center + support_ + 0.5), static_cast<int>(span_.from));
        return {static_cast<std::size_t>(low), static_cast<std::size_t>(high)};
    }

    /// What each input of an output position weighs, in fixed point, into the front of `out`.
    void weigh(std::size_t position, Reach reach, std::vector<double>& exact, std::vector<std::int32_t>& out) const {
        const double center = (static_cast<double>(position) + 0.5) * scale_, inverse = 1.0 / stretch_;
        const std::size_t count = reach.last - reach.first;
        exact.resize(count);
        out.resize(count);
        double sum = 0.0;
        for (std::size_t k = 0; k < count; ++k) {
            const double w = filter_.weight((static_cast<double>(k + reach.first) - center + 0.5) * inverse);
            exact[k] = w;
            sum += w;
        }
        for (std::size_t k = 0; k < count; ++k) {
            const double w = sum != 0.0 ? exact[k] / sum : exact[k];
            const double scaled = w * (1 << precision_bits);
            out[k] = static_cast<std::int32_t>(w < 0 ? scaled - 0.5 : scaled + 0.5);
        }
    }

private:
    Span span_;
    double scale_, stretch_, support_;
    const Filter& filter_;
};

std::uint8_t clip(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255));
}

/// What a pass gives: `channels` bytes a pixel, rows without a gap.
struct Pass {
    std::size_t width, height, channels;
    std::vector<std::uint8_t> bytes;

    Pass(std::size_t wide, std::size_t high, std::size_t deep)
        : width(wide), height(high), channels(deep), bytes(checked_product("bytes of an image", {deep, wide, high})) {}
};

/// A part of a source image, which is `x`, `y` into the image that the axes speak of.
struct Part {
    const std::uint8_t* data;
    std::size_t stride, channels, x, y;

    Part(const Pixels& pixels, std::size_t deep) : data(pixels.data), stride(pixels.stride), channels(deep), x(0), y(0) {}
    Part(const Pass& pass, std::size_t left, std::size_t top)
        : data(pass.bytes.data()), stride(pass.channels * pass.width), channels(pass.channels), x(left), y(top) {}

    [[nodiscard]] const std::uint8_t* pixel(std::size_t column, std::size_t row) const {
        return data + (row - y) * stride + (column - x) * channels;
    }
};

/// Columns of the window, from the given rows, as RGB. R, G, B, N: the Channels of the source, which are known when this is
/// compiled, as it is where the time goes.
template <std::size_t R, std::size_t G, std::size_t B, std::size_t N>
Pass horizontally(const Part& source, const Axis& axis, Reach rows) {
    const std::size_t width = axis.end() - axis.begin();
    Pass out(width, rows.last - rows.first, 3);
    if (axis.is_copy()) {
        for (std::size_t y = 0; y < out.height; ++y) {
            std::uint8_t* target = out.bytes.data() + 3 * y * width;
            const std::uint8_t* in = source.pixel(axis.begin(), rows.first + y);
            for (std::size_t x = 0; x < width; ++x, target += 3, in += N) {
                target[0] = in[R];
                target[1] = in[G];
                target[2] = in[B];
            }
        }
        return out;
    }
    // some columns at a time: for all, an image that is long and thin would ask for more weights than it has pixels
    const std::size_t at_once = std::clamp<std::size_t>((std::size_t{1} << 20) / axis.widest(), 1, 64);
    std::vector<double> exact;
    std::vector<std::vector<std::int32_t>> weights(std::min(at_once, width));
    std::vector<Reach> reaches(weights.size());
    for (std::size_t first = 0; first < width; first += at_once) {
        const std::size_t count = std::min(at_once, width - first);
        for (std::size_t x = 0; x < count; ++x) {
            const std::size_t position = axis.begin() + first + x;
            reaches[x] = axis.reach_of(position);
            axis.weigh(position, reaches[x], exact, weights[x]);
        }
        for (std::size_t y = 0; y < out.height; ++y) {
            std::uint8_t* target = out.bytes.data() + 3 * (y * width + first);
            for (std::size_t x = 0; x < count; ++x, target += 3) {
                const std::uint8_t* in = source.pixel(reaches[x].first, rows.first + y);
                std::int32_t r = 1 << (precision_bits - 1), g = r, b = r;
                for (const std::int32_t w : weights[x]) {
                    r += in[R] * w;
                    g += in[G] * w;
                    b += in[B] * w;
                    in += N;
                }
                target[0] = clip(r);
                target[1] = clip(g);
                target[2] = clip(b);
            }
        }
    }
    return out;
}

Pass horizontally(const Part& source, PixelFormat format, const Axis& axis, Reach rows) {
    switch (format) {
        case PixelFormat::rgb: return horizontally<0, 1, 2, 3>(source, axis, rows);
        case PixelFormat::bgr: return horizontally<2, 1, 0, 3>(source, axis, rows);
        case PixelFormat::grey: return horizontally<0, 0, 0, 1>(source, axis, rows);
        case PixelFormat::rgba: return horizontally<0, 1, 2, 4>(source, axis, rows);
        case PixelFormat::bgra: return horizontally<2, 1, 0, 4>(source, axis, rows);
    }
    throw Error("no such pixel format");  // channels_of() has refused it
}

/// Rows of the window, from the given columns, in the channels of the source.
Pass vertically(const Part& source, const Axis& axis, Reach columns) {
    Pass out(columns.last - columns.first, axis.end() - axis.begin(), source.channels);
    const std::size_t row = out.channels * out.width;
    std::vector<std::int32_t> sums(row), weights;
    std::vector<double> exact;
    for (std::size_t y = 0; y < out.height; ++y) {
        std::uint8_t* target = out.bytes.data() + y * row;
        if (axis.is_copy()) {
            std::memcpy(target, source.pixel(columns.first, axis.begin() + y), row);
            continue;
        }
        const Reach reach = axis.reach_of(axis.begin() + y);
        axis.weigh(axis.begin() + y, reach, exact, weights);
        std::fill(sums.begin(), sums.end(), 1 << (precision_bits - 1));
        for (std::size_t k = 0; k < weights.size(); ++k) {
            const std::uint8_t* in = source.pixel(columns.first, reach.first + k);
            for (std::size_t i = 0; i < row; ++i) sums[i] += in[i] * weights[k];
        }
        std::transform(sums.begin(), sums.end(), target, clip);
    }
    return out;
}

}  // namespace

void check(const Image& image) {
    if (image.width == 0 || image.height == 0) throw Error("an image has no pixels");
    if (image.width > limits::pixels / image.height)
        throw Error("an image of " + std::to_string(image.width) + " x " + std::to_string(image.height) + " pixels is too large to trust");
    if (image.rgb.size() != 3 * image.width * image.height)
        throw Error("an image of " + std::to_string(image.width) + " x " + std::to_string(image.height) + " pixels must have " +
                    std::to_string(3 * image.width * image.height) + " bytes, and has " + std::to_string(image.rgb.size()));
    if (image.orientation < 1 || image.orientation > 8)
        throw Error("an image's orientation is 1 to 8, not " + std::to_string(image.orientation));
}

Channels channels_of(PixelFormat format) {
    switch (format) {
        case PixelFormat::rgb: return {0, 1, 2, 3};
        case PixelFormat::bgr: return {2, 1, 0, 3};
        case PixelFormat::grey: return {0, 0, 0, 1};
        case PixelFormat::rgba: return {0, 1, 2, 4};
        case PixelFormat::bgra: return {2, 1, 0, 4};
    }
    throw Error("the pixel format " + std::to_string(static_cast<int>(format)) + " is unknown here; it must be rgb, bgr, grey, rgba or bgra");
}

void check(const Pixels& pixels) {
    const std::size_t deep = channels_of(pixels.format).count;
    const std::string size = std::to_string(pixels.width) + " x " + std::to_string(pixels.height) + " pixels";
    if (!pixels.data) throw Error("the pixels are at a null pointer; was the frame read?");
    if (pixels.width < 1 || pixels.height < 1) throw Error("an image of " + size + " has nothing to see; pass its width and height");
    const auto width = static_cast<std::uint64_t>(pixels.width), height = static_cast<std::uint64_t>(pixels.height);
    if (width > limits::pixels / height) throw Error("an image of " + size + " is too large to trust; are width and height right?");
    const std::size_t row = deep * width;
    if (pixels.stride < row)
        throw Error("a stride of " + std::to_string(pixels.stride) + " bytes is less than the " + std::to_string(row) + " of a row of " +
                    std::to_string(width) + " pixels of " + std::to_string(deep) + "; pass the bytes from the start of a row to the next");
    // all rows but the last have a stride: what fills it up need not be there behind the last
    const auto before = product({height - 1, pixels.stride});
    if (!before || pixels.size < row || pixels.size - row < *before)
        throw Error("an image of " + size + " with a stride of " + std::to_string(pixels.stride) + " bytes does not fit into " +
                    std::to_string(pixels.size) + " bytes; pass the size of its whole memory, and its true stride");
    if (pixels.orientation < 1 || pixels.orientation > 8)
        throw Error("an image's orientation is 1 to 8, not " + std::to_string(pixels.orientation));
}

Image resize_window(const Pixels& pixels, const Span& across, const Span& down, const std::string& filter) {
    const Filter how = filter_named(filter);
    const Axis x(across, how), y(down, how);
    const Part source(pixels, channels_of(pixels.format).count);
    const auto image = [](Pass pass) { return Image{pass.width, pass.height, std::move(pass.bytes)}; };
    // Each pass rounds, so their order shows. Pillow's, from 13.0 on: down first where the height loses more than twice
    // as many pixels as the width; before, across first always.
    const auto lost = [](const Span& span) { return static_cast<double>(span.from) - static_cast<double>(span.to); };
    const bool down_first = down.from > down.to && lost(down) > 2 * lost(across);
    if (down_first) {
        const Reach columns = x.reach();
        return image(horizontally({vertically(source, y, columns), columns.first, y.begin()}, pixels.format, x, {y.begin(), y.end()}));
    }
    const Reach rows = y.reach();
    return image(vertically({horizontally(source, pixels.format, x, rows), x.begin(), rows.first}, y, {x.begin(), x.end()}));
}

Image resize(const Image& image, std::size_t width, std::size_t height, const std::string& filter) {
    return at_boundary("resizing an image", [&] {
        const Pixels pixels = view(image);
        if (width == 0 || height == 0 || width > limits::pixels / height)
            throw Error("an image cannot be resized to " + std::to_string(width) + " x " + std::to_string(height) + " pixels");
        Image out = resize_window(pixels, {image.width, width, 0, width}, {image.height, height, 0, height}, filter);
        out.orientation = image.orientation;
        return out;
    });
}

}  // namespace sit_deploy
