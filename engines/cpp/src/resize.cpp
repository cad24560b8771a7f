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

Image empty_image(std::size_t width, std::size_t height) {
    return {width, height, std::vector<std::uint8_t>(checked_product("bytes of an image", {3, width, height}))};
}

/// A part of a source image, which is `x`, `y` into the image that the axes speak of.
struct Part {
    const Image& image;
    std::size_t x, y;

    [[nodiscard]] const std::uint8_t* pixel(std::size_t column, std::size_t row) const {
        return image.rgb.data() + 3 * ((row - y) * image.width + (column - x));
    }
};

/// Columns of the window, from the given rows.
Image horizontally(const Part& source, const Axis& axis, Reach rows) {
    const std::size_t width = axis.end() - axis.begin();
    Image out = empty_image(width, rows.last - rows.first);
    if (axis.is_copy()) {
        for (std::size_t y = 0; y < out.height; ++y)
            std::memcpy(out.rgb.data() + 3 * y * width, source.pixel(axis.begin(), rows.first + y), 3 * width);
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
            std::uint8_t* target = out.rgb.data() + 3 * (y * width + first);
            for (std::size_t x = 0; x < count; ++x, target += 3) {
                const std::uint8_t* in = source.pixel(reaches[x].first, rows.first + y);
                std::int32_t r = 1 << (precision_bits - 1), g = r, b = r;
                for (const std::int32_t w : weights[x]) {
                    r += in[0] * w;
                    g += in[1] * w;
                    b += in[2] * w;
                    in += 3;
                }
                target[0] = clip(r);
                target[1] = clip(g);
                target[2] = clip(b);
            }
        }
    }
    return out;
}

/// Rows of the window, from the given columns.
Image vertically(const Part& source, const Axis& axis, Reach columns) {
    Image out = empty_image(columns.last - columns.first, axis.end() - axis.begin());
    const std::size_t row = 3 * out.width;
    std::vector<std::int32_t> sums(row), weights;
    std::vector<double> exact;
    for (std::size_t y = 0; y < out.height; ++y) {
        std::uint8_t* target = out.rgb.data() + y * row;
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

Image resize_window(const Image& image, const Span& across, const Span& down, const std::string& filter) {
    const Filter how = filter_named(filter);
    const Axis x(across, how), y(down, how);
    // Each pass rounds, so their order shows. Pillow's, from 13.0 on: down first where the height loses more than twice
    // as many pixels as the width; before, across first always.
    const auto lost = [](const Span& span) { return static_cast<double>(span.from) - static_cast<double>(span.to); };
    const bool down_first = down.from > down.to && lost(down) > 2 * lost(across);
    if (down_first) {
        const Reach columns = x.reach();
        return horizontally({vertically({image, 0, 0}, y, columns), columns.first, y.begin()}, x, {y.begin(), y.end()});
    }
    const Reach rows = y.reach();
    return vertically({horizontally({image, 0, 0}, x, rows), x.begin(), rows.first}, y, {x.begin(), x.end()});
}

Image resize(const Image& image, std::size_t width, std::size_t height, const std::string& filter) {
    return at_boundary("resizing an image", [&] {
        check(image);
        if (width == 0 || height == 0 || width > limits::pixels / height)
            throw Error("an image cannot be resized to " + std::to_string(width) + " x " + std::to_string(height) + " pixels");
        Image out = resize_window(image, {image.width, width, 0, width}, {image.height, height, 0, height}, filter);
        out.orientation = image.orientation;
        return out;
    });
}

}  // namespace sit_deploy
