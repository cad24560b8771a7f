#include "sit_deploy/classifier.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace sit_deploy {

Classifier::Classifier(const std::filesystem::path& bundle, const Options& options)
    : bundle_(Bundle::open(bundle)), engine_(open_engine(bundle_, options)) {}

std::vector<float> Classifier::infer(const void* images, std::size_t count) const {
    if (count == 0) throw Error("no images to classify; pass at least one");
    const std::size_t bytes = bundle_.preprocessing.bytes(), classes = bundle_.classes.size();
    const auto* data = static_cast<const std::uint8_t*>(images);
    std::vector<float> logits(count * classes);
    for (std::size_t start = 0; start < count; start += bundle_.batch_max) {
        const std::size_t part = std::min(bundle_.batch_max, count - start);
        if (part >= bundle_.batch_min) {
            engine_->infer(data + start * bytes, part, logits.data() + start * classes);
            continue;
        }
        // filled up with the last image, as the engine takes no fewer
        std::vector<std::uint8_t> filled(bundle_.batch_min * bytes);
        std::memcpy(filled.data(), data + start * bytes, part * bytes);
        for (std::size_t i = part; i < bundle_.batch_min; ++i)
            std::memcpy(filled.data() + i * bytes, data + (count - 1) * bytes, bytes);
        std::vector<float> all(bundle_.batch_min * classes);
        engine_->infer(filled.data(), bundle_.batch_min, all.data());
        std::copy_n(all.begin(), part * classes, logits.begin() + static_cast<std::ptrdiff_t>(start * classes));
    }
    return logits;
}

std::vector<std::vector<Prediction>> Classifier::classify(const std::vector<Image>& images, std::size_t top) const {
    const std::size_t bytes = bundle_.preprocessing.bytes(), classes = bundle_.classes.size();
    std::vector<std::uint8_t> prepared(images.size() * bytes);
    for (std::size_t i = 0; i < images.size(); ++i) prepare(images[i], bundle_.preprocessing, prepared.data() + i * bytes);
    const std::vector<float> logits = infer(prepared.data(), images.size());
    if (!std::all_of(logits.begin(), logits.end(), [](float v) { return std::isfinite(v); }))
        throw Error("the engine gives NaN or infinite logits; check it with sit_check");
    std::vector<std::vector<Prediction>> found(images.size());
    std::vector<std::size_t> order(classes);
    top = std::min(top, classes);
    for (std::size_t i = 0; i < images.size(); ++i) {
        const float* row = logits.data() + i * classes;
        const double highest = *std::max_element(row, row + classes);
        const double sum = std::accumulate(row, row + classes, 0.0, [&](double s, float v) { return s + std::exp(v - highest); });
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                          // ties go to the lower index, as in Python
                          [&](std::size_t a, std::size_t b) { return row[a] != row[b] ? row[a] > row[b] : a < b; });
        for (std::size_t k = 0; k < top; ++k)
            found[i].push_back({order[k], bundle_.classes[order[k]], static_cast<float>(std::exp(row[order[k]] - highest) / sum)});
    }
    return found;
}

std::vector<Prediction> Classifier::classify(const Image& image, std::size_t top) const {
    return classify(std::vector<Image>{image}, top).front();
}

}  // namespace sit_deploy
