// One interface, two backends: TensorRT (10, 11, RTX) for a bundle's plan, OpenVINO for its graph on a CPU.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "sit_deploy/bundle.hpp"

namespace sit_deploy {

enum class Backend { automatic, openvino, tensorrt };

struct Options {
    Backend backend = Backend::automatic;  ///< TensorRT for a TensorRT bundle where it is compiled in, else OpenVINO
    int contexts = 1;                      ///< runs at a time; more callers wait
    int threads = 0;                       ///< CPU threads of OpenVINO, 0 for its own choice
    int device = 0;                        ///< number of the GPU
};

/// An open engine. infer() may be called from any number of threads.
class Engine {
public:
    virtual ~Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    /// Run `batch` images, as many as the bundle allows at once, laid out as its preprocessing says: batch * image_bytes()
    /// bytes. Writes batch * values() numbers: the outputs one after the other, each of the whole batch; of most bundles
    /// that is the logits, batch * classes(). Throws Error: another batch, no memory given, or the runtime failed.
    void infer(const void* images, std::size_t batch, float* values);

    /// Runtime and version, for people.
    [[nodiscard]] virtual std::string name() const = 0;

    /// Classes that there are logits of; 0 without logits.
    [[nodiscard]] std::size_t classes() const { return classes_; }
    /// What it gives, in order.
    [[nodiscard]] const std::vector<Output>& outputs() const { return outputs_; }
    /// Numbers that all outputs have of an image.
    [[nodiscard]] std::size_t values() const { return values_; }
    [[nodiscard]] std::size_t image_bytes() const { return image_bytes_; }
    [[nodiscard]] std::size_t batch_min() const { return low_; }
    [[nodiscard]] std::size_t batch_max() const { return high_; }

protected:
    /// Throws Error where the bundle's numbers cannot be right.
    explicit Engine(const Bundle& bundle);

    /// What infer() does with arguments that it has checked.
    virtual void run(const void* images, std::size_t batch, float* values) = 0;

private:
    std::vector<Output> outputs_;
    std::size_t classes_, values_, image_bytes_, low_, high_;
};

/// Whether a backend was compiled in.
bool has_backend(Backend backend);

/// Open a bundle's engine. Throws Error: the backend is not compiled in, its runtime cannot load the file, the file takes or
/// gives something else than the bundle says, or no GPU.
std::unique_ptr<Engine> open_engine(const Bundle& bundle, const Options& options = {});

}  // namespace sit_deploy
