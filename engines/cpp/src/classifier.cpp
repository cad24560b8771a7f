#include "sit_deploy/classifier.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "boundary.hpp"
#include "checked.hpp"

namespace sit_deploy {
namespace {

/// The best `top` classes of a row of finite logits.
std::vector<Prediction> best(const float* row, const std::vector<std::string>& classes, std::size_t top) {
    const double highest = *std::max_element(row, row + classes.size());
    const double sum =
        std::accumulate(row, row + classes.size(), 0.0, [&](double s, float v) { return s + std::exp(v - highest); });
    std::vector<std::size_t> order(classes.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    top = std::min(top, classes.size());
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                      // ties go to the lower index, as in Python
                      [&](std::size_t a, std::size_t b) { return row[a] != row[b] ? row[a] > row[b] : a < b; });
    std::vector<Prediction> found;
    for (std::size_t k = 0; k < top; ++k)
        found.push_back({order[k], classes[order[k]], static_cast<float>(std::exp(row[order[k]] - highest) / sum)});
    return found;
}

/// Do something with each; of several, an error says with which.
template <class Item, class Work>
void for_each_named(const std::vector<Item>& items, Work work) {
    for (std::size_t i = 0; i < items.size(); ++i) {
        try {
            work(items[i], i);
        } catch (const Error& error) {
            if (items.size() == 1) throw;
            throw Error("image " + std::to_string(i + 1) + " of " + std::to_string(items.size()) + ": " + error.what());
        }
    }
}

bool same(const std::vector<Output>& one, const std::vector<Output>& other) {
    return std::equal(one.begin(), one.end(), other.begin(), other.end(),
                      [](const Output& a, const Output& b) { return a.name == b.name && a.shape == b.shape; });
}

}  // namespace

Classifier::Classifier(const std::filesystem::path& bundle, const Options& options)
    : bundle_(Bundle::open(bundle)), engine_(open_engine(bundle_, options)) {}

Classifier::Classifier(Bundle bundle, std::unique_ptr<Engine> engine) : bundle_(std::move(bundle)), engine_(std::move(engine)) {
    if (!engine_ || engine_->classes() != bundle_.classes.size() || !same(engine_->outputs(), bundle_.given()) || engine_->image_bytes() != bundle_.preprocessing.bytes() ||
        engine_->batch_min() != bundle_.batch_min || engine_->batch_max() != bundle_.batch_max)
        throw Error("the engine is not of this bundle");
}

std::vector<float> Classifier::infer(const void* images, std::size_t count) const {
    if (bundle_.classes.empty()) {
        std::string names;
        for (const Output& output : engine_->outputs()) names += (names.empty() ? "" : ", ") + output.name;
        throw Error(bundle_.path.string() + " gives " + names + " and no logits; call outputs()");
    }
    return std::move(outputs(images, count).at("logits"));
}

std::map<std::string, std::vector<float>> Classifier::outputs(const void* images, std::size_t count) const {
    return at_boundary("classifying", [&] {
        if (count == 0) throw Error("no images to classify; pass at least one");
        if (!images) throw Error("no memory is given to take images from");
        const std::size_t bytes = engine_->image_bytes(), values = engine_->values(), least = engine_->batch_min();
        (void)checked_product("bytes of so many images", {count, bytes});
        (void)checked_product("logits of so many images", {count, values, sizeof(float)});
        const auto* data = static_cast<const std::uint8_t*>(images);
        std::map<std::string, std::vector<float>> found;
        for (const Output& output : engine_->outputs()) found[output.name].resize(count * output.values());
        std::vector<float> given(std::min(engine_->batch_max(), std::max(count, least)) * values);
        std::vector<std::uint8_t> filled;
        for (std::size_t start = 0; start < count;) {
            const std::size_t part = std::min(engine_->batch_max(), count - start), batch = std::max(part, least);
            const std::uint8_t* from = data + start * bytes;
            if (part < least) {
                // filled up with the last image, as the engine takes no fewer
                filled.resize(least * bytes);
                std::memcpy(filled.data(), from, part * bytes);
                for (std::size_t i = part; i < least; ++i)
                    std::memcpy(filled.data() + i * bytes, data + (count - 1) * bytes, bytes);
                from = filled.data();
            }
            engine_->infer(from, batch, given.data());
            const float* next = given.data();  // each output of the whole batch after the other
            for (const Output& output : engine_->outputs()) {
                const std::size_t each = output.values();
                std::copy_n(next, part * each, found[output.name].begin() + static_cast<std::ptrdiff_t>(start * each));
                next += batch * each;
            }
            start += part;
        }
        return found;
    });
}

std::vector<std::vector<Prediction>> Classifier::classify(const std::vector<Pixels>& pixels, std::size_t top) const {
    return at_boundary("classifying", [&] {
        if (pixels.empty()) throw Error("no images to classify; pass at least one");
        if (top == 0) throw Error("top, the classes of each image, is 0; pass at least 1");
        const std::size_t bytes = engine_->image_bytes(), classes = engine_->classes();
        std::vector<std::uint8_t> prepared(checked_product("bytes of so many images", {pixels.size(), bytes}));
        for_each_named(pixels, [&](const Pixels& each, std::size_t i) { prepare(each, bundle_.preprocessing, prepared.data() + i * bytes); });
        const std::vector<float> logits = infer(prepared.data(), pixels.size());
        if (!std::all_of(logits.begin(), logits.end(), [](float v) { return std::isfinite(v); }))
            throw Error("the engine gives NaN or infinite logits; check it with sit_check");
        std::vector<std::vector<Prediction>> found;
        for (std::size_t i = 0; i < pixels.size(); ++i) found.push_back(best(logits.data() + i * classes, bundle_.classes, top));
        return found;
    });
}

std::vector<Prediction> Classifier::classify(const Pixels& pixels, std::size_t top) const {
    return classify(std::vector<Pixels>{pixels}, top).front();
}

std::vector<std::vector<Prediction>> Classifier::classify(const std::vector<Image>& images, std::size_t top) const {
    return at_boundary("classifying", [&] {
        std::vector<Pixels> views(images.size());
        for_each_named(images, [&](const Image& each, std::size_t i) { views[i] = view(each); });
        return classify(views, top);
    });
}

std::vector<Prediction> Classifier::classify(const Image& image, std::size_t top) const { return classify(view(image), top); }

}  // namespace sit_deploy
