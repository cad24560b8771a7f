// A bundle of sit-deploy: what an engine is, what it takes, and that nothing in it was changed. See docs/bundle.md.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace sit_deploy {

/// From an image to what the network takes: turn, resize, crop the centre, scale to [0, 1], normalise.
struct Preprocessing {
    std::size_t height = 0, width = 0;  ///< of the crop, in pixels
    std::size_t resize = 0;             ///< pixels that the picture's shorter side gets; where it is squeezed, both sides of a square crop
    std::string interpolation;          ///< "bilinear", "bicubic" or "lanczos", antialiased as Pillow does it
    std::array<float, 3> mean{}, std{};  ///< of R, G and B in [0, 1]
    bool pixels = false;  ///< the network takes uint8 (n, H, W, 3) and normalises by itself; else float32 (n, 3, H, W)
    bool upright = false;  ///< a picture is first turned as its EXIF orientation says; else it is taken as stored
    bool squash = false;   ///< a picture is squeezed into the crop's shape; else it keeps its own
    bool crop_floor = false;  ///< a crop that begins between two pixels begins at the lower one; else at the even one

    /// Bytes of one image as the network takes it. Throws Error where they cannot be counted.
    [[nodiscard]] std::size_t bytes() const;
};

/// What an engine gives of an image, float32: "logits", "features", "cls" or "patches". See docs/outputs.md.
struct Output {
    std::string name;
    std::vector<std::size_t> shape;  ///< of one image: {classes}, {dim} or {patches, dim}

    /// Numbers of one image. Throws Error where they cannot be counted.
    [[nodiscard]] std::size_t values() const;
};

/// Images and the reference's outputs, to check an engine with: `images` as the network takes them.
struct Golden {
    std::size_t count = 0;
    std::vector<std::uint8_t> images;
    std::vector<float> logits;  ///< empty where the engine gives none
    std::map<std::string, std::vector<float>> outputs;  ///< all of them by name, the logits among them
};

/// An open bundle. Immutable, so any thread may read it.
class Bundle {
public:
    /// Read the manifest and verify it and every file against their SHA-256, then every number against its bounds and
    /// the golden outputs against the manifest.
    /// Throws Error: not a bundle, of a newer schema, with something missing or changed, or with what cannot be right.
    static Bundle open(const std::filesystem::path& folder);

    std::filesystem::path path;
    std::string model, precision;
    std::string engine_kind, engine_version, engine_target;
    std::filesystem::path engine_file, model_file;  ///< full paths; model_file is the ONNX graph
    std::vector<std::string> classes;               ///< names in label order; their numbers where there are none; empty without logits
    std::vector<Output> outputs;                    ///< in order; none where that is the logits alone
    std::size_t batch_min = 1, batch_best = 1, batch_max = 1;
    Preprocessing preprocessing;

    /// What the engine gives, in order.
    [[nodiscard]] std::vector<Output> given() const;

    /// Read golden.npz. Throws Error if it is damaged or does not fit the manifest.
    [[nodiscard]] Golden golden() const;

    /// Largest difference of an output from the reference, in its standard deviations, that its precision is allowed.
    [[nodiscard]] float tolerance() const;

    /// Least cosine of an embedding (an output but logits, each token for itself) and the reference's that its precision is allowed.
    [[nodiscard]] float least_cosine() const;
};

}  // namespace sit_deploy
