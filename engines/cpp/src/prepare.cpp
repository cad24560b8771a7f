// Resizing as Pillow does it (libImaging/Resample.c, the 8-bit path) and cropping and normalising as
// sit_deploy/preprocessing.py does: equal to both to the bit, which the tests hold.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "sit_deploy/error.hpp"
#include "sit_deploy/image.hpp"

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

/// For each output position, where its inputs begin and what each of them weighs, in fixed point.
struct Weights {
    std::vector<std::size_t> first, count;
    std::vector<std::int32_t> values;
    std::size_t stride = 0;
};

Weights weights_for(std::size_t from, std::size_t to, const Filter& filter) {
    const double scale = static_cast<double>(from) / static_cast<double>(to);
    const double stretch = std::max(scale, 1.0);  // antialiasing: the filter widens when the image shrinks
    const double support = filter.support * stretch;
    Weights out;
    out.stride = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
    out.values.resize(to * out.stride);
    std::vector<double> exact(out.stride);
    for (std::size_t i = 0; i < to; ++i) {
        const double center = (static_cast<double>(i) + 0.5) * scale;
        const double inverse = 1.0 / stretch;
        const int low = std::max(static_cast<int>(center - support + 0.5), 0);
        const int high = std::min(static_cast<int>(center + support + 0.5), static_cast<int>(from));
        double sum = 0.0;
        for (int k = 0; k < high - low; ++k) {
            const double w = filter.weight((k + low - center + 0.5) * inverse);
            exact[static_cast<std::size_t>(k)] = w;
            sum += w;
        }
        for (int k = 0; k < high - low; ++k) {
            double w = exact[static_cast<std::size_t>(k)];
            if (sum != 0.0) w /= sum;
            const double scaled = w * (1 << precision_bits);
            out.values[i * out.stride + static_cast<std::size_t>(k)] =
                static_cast<std::int32_t>(w < 0 ? scaled - 0.5 : scaled + 0.5);
        }
        out.first.push_back(static_cast<std::size_t>(low));
        out.count.push_back(static_cast<std::size_t>(high - low));
    }
    return out;
}

std::uint8_t clip(std::int32_t sum) {
    return static_cast<std::uint8_t>(std::clamp(sum >> precision_bits, 0, 255));
}

Image horizontally(const Image& image, std::size_t width, const Filter& filter) {
    const Weights weights = weights_for(image.width, width, filter);
    Image out{width, image.height, std::vector<std::uint8_t>(3 * width * image.height)};
    for (std::size_t y = 0; y < image.height; ++y) {
        const std::uint8_t* row = image.rgb.data() + 3 * y * image.width;
        for (std::size_t x = 0; x < width; ++x) {
            const std::int32_t* w = weights.values.data() + x * weights.stride;
            const std::uint8_t* in = row + 3 * weights.first[x];
            std::int32_t r = 1 << (precision_bits - 1), g = r, b = r;
            for (std::size_t k = 0; k < weights.count[x]; ++k, in += 3) {
                r += in[0] * w[k];
                g += in[1] * w[k];
                b += in[2] * w[k];
            }
            std::uint8_t* target = out.rgb.data() + 3 * (y * width + x);
            target[0] = clip(r);
            target[1] = clip(g);
            target[2] = clip(b);
        }
    }
    return out;
}

Image vertically(const Image& image, std::size_t height, const Filter& filter) {
    const Weights weights = weights_for(image.height, height, filter);
    const std::size_t row = 3 * image.width;
    Image out{image.width, height, std::vector<std::uint8_t>(row * height)};
    std::vector<std::int32_t> sums(row);
    for (std::size_t y = 0; y < height; ++y) {
        std::fill(sums.begin(), sums.end(), 1 << (precision_bits - 1));
        for (std::size_t k = 0; k < weights.count[y]; ++k) {
            const std::int32_t w = weights.values[y * weights.stride + k];
            const std::uint8_t* in = image.rgb.data() + (weights.first[y] + k) * row;
            for (std::size_t i = 0; i < row; ++i) sums[i] += in[i] * w;
        }
        std::transform(sums.begin(), sums.end(), out.rgb.begin() + static_cast<std::ptrdiff_t>(y * row), clip);
    }
    return out;
}

/// Python's round(): half to even.
std::size_t half(std::size_t difference) {
    const std::size_t down = difference / 2;
    return difference % 2 == 0 ? down : down + down % 2;
}

}  // namespace

Image resize(const Image& image, std::size_t width, std::size_t height, const std::string& filter) {
    if (image.width == 0 || image.height == 0 || width == 0 || height == 0) throw Error("an image has no pixels");
    const Filter how = filter_named(filter);
    const auto across = [&](const Image& in) { return in.width == width ? in : horizontally(in, width, how); };
    const auto down = [&](const Image& in) { return in.height == height ? in : vertically(in, height, how); };
    // Each pass rounds, so their order shows. Pillow's, from 13.0 on: down first where the height loses more than twice
    // as many pixels as the width; before, across first always.
    const auto lost = [](std::size_t from, std::size_t to) { return static_cast<long long>(from) - static_cast<long long>(to); };
    const bool down_first = image.height > height && lost(image.height, height) > 2 * lost(image.width, width);
    return down_first ? across(down(image)) : down(across(image));
}

std::vector<std::uint8_t> crop_pixels(const Image& image, const Preprocessing& how) {
    if (image.width == 0 || image.height == 0) throw Error("an image has no pixels");
    // the longer side is rounded down, from a quotient in double precision, as torchvision has it
    const auto longer = static_cast<std::size_t>(static_cast<double>(how.resize * std::max(image.width, image.height)) /
                                                 static_cast<double>(std::min(image.width, image.height)));
    const bool portrait = image.width <= image.height;
    const Image scaled =
        resize(image, portrait ? how.resize : longer, portrait ? longer : how.resize, how.interpolation);
    if (scaled.width < how.width || scaled.height < how.height) throw Error("the crop is larger than the resized image");
    const std::size_t left = half(scaled.width - how.width), top = half(scaled.height - how.height);
    std::vector<std::uint8_t> out(3 * how.height * how.width);
    for (std::size_t y = 0; y < how.height; ++y)
        std::memcpy(out.data() + 3 * y * how.width, scaled.rgb.data() + 3 * ((top + y) * scaled.width + left), 3 * how.width);
    return out;
}

void prepare(const Image& image, const Preprocessing& how, void* out) {
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
}

}  // namespace sit_deploy
