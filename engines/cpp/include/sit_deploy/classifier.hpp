// What most programs need: a bundle, opened once, that names what is in images.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "sit_deploy/bundle.hpp"
#include "sit_deploy/engine.hpp"
#include "sit_deploy/error.hpp"
#include "sit_deploy/image.hpp"

namespace sit_deploy {

struct Prediction {
    std::size_t index;
    std::string name;
    float probability;
};

/// Thread-safe: every call works on memory of its own, and the engine runs options.contexts of them at a time.
class Classifier {
public:
    explicit Classifier(const std::filesystem::path& bundle, const Options& options = {});

    /// With an engine of yours, which must be of this bundle. Throws Error where its sizes are not the bundle's.
    Classifier(Bundle bundle, std::unique_ptr<Engine> engine);

    [[nodiscard]] const Bundle& bundle() const { return bundle_; }
    [[nodiscard]] const Engine& engine() const { return *engine_; }

    /// Logits (count, classes) of any number of prepared images, cut and filled up to the batches that the engine takes.
    /// images: count * preprocessing.bytes() bytes. Throws Error: no image, more than memory can hold, no logits, or
    /// the runtime failed.
    [[nodiscard]] std::vector<float> infer(const void* images, std::size_t count) const;

    /// Every output by name of any number of prepared images, (count, values) each; as infer(), which gives the logits among them.
    [[nodiscard]] std::map<std::string, std::vector<float>> outputs(const void* images, std::size_t count) const;

    /// The best `top` classes of each image. Throws Error as infer(), for logits that are NaN or infinite, and for a `top` of 0.
    [[nodiscard]] std::vector<std::vector<Prediction>> classify(const std::vector<Image>& images,
                                                                std::size_t top = 5) const;
    [[nodiscard]] std::vector<Prediction> classify(const Image& image, std::size_t top = 5) const;

    /// The same of pixels in memory of yours; of several, the error says which is wrong.
    [[nodiscard]] std::vector<std::vector<Prediction>> classify(const std::vector<Pixels>& pixels, std::size_t top = 5) const;
    [[nodiscard]] std::vector<Prediction> classify(const Pixels& pixels, std::size_t top = 5) const;

private:
    Bundle bundle_;
    std::unique_ptr<Engine> engine_;
};

}  // namespace sit_deploy
