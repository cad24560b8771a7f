// One interface, two backends: TensorRT (10, 11, RTX) for a bundle's plan, OpenVINO for its graph on a CPU.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

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

    /// Run `batch` images, as many as the bundle allows at once, laid out as its preprocessing says; writes batch *
    /// classes logits. Throws Error: the runtime failed.
    virtual void infer(const void* images, std::size_t batch, float* logits) = 0;

    /// Runtime and version, for people.
    [[nodiscard]] virtual std::string name() const = 0;

protected:
    Engine() = default;
};

/// Whether a backend was compiled in.
bool has_backend(Backend backend);

/// Open a bundle's engine. Throws Error: the backend is not compiled in, its runtime cannot load the file, or no GPU.
std::unique_ptr<Engine> open_engine(const Bundle& bundle, const Options& options = {});

}  // namespace sit_deploy
