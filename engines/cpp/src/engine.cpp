#include "sit_deploy/engine.hpp"

#include "backends.hpp"
#include "boundary.hpp"
#include "limits.hpp"
#include "manifest.hpp"
#include "sit_deploy/error.hpp"

namespace sit_deploy {

#ifndef SIT_DEPLOY_OPENVINO
std::unique_ptr<Engine> open_openvino(const Bundle&, const Options&) {
    throw Error("built without OpenVINO; configure again with -DOpenVINO_DIR, which `python -m openvino.utils` knows");
}
#endif

#ifndef SIT_DEPLOY_TENSORRT
std::unique_ptr<Engine> open_tensorrt(const Bundle&, const Options&) {
    throw Error("built without TensorRT; configure again with -DTENSORRT_ROOT where its headers are");
}
#endif

namespace {

std::size_t values_of(const std::vector<Output>& outputs) {
    std::size_t sum = 0;
    for (const Output& output : outputs) sum += output.values();  // check(bundle) has counted them
    return sum;
}

}  // namespace

Engine::Engine(const Bundle& bundle)
    : outputs_((check(bundle), bundle.given())),
      classes_(bundle.classes.size()),
      values_(values_of(outputs_)),
      image_bytes_(bundle.preprocessing.bytes()),
      low_(bundle.batch_min),
      high_(bundle.batch_max) {}

void Engine::infer(const void* images, std::size_t batch, float* values) {
    at_boundary("running the engine", [&] {
        if (!images || !values) throw Error("no memory is given for images or logits");
        if (batch < low_ || batch > high_)
            throw Error("the engine takes batches of " + std::to_string(low_) + " to " + std::to_string(high_) + ", got " +
                        std::to_string(batch));
        run(images, batch, values);
    });
}

bool has_backend(Backend backend) {
#ifdef SIT_DEPLOY_OPENVINO
    constexpr bool openvino = true;
#else
    constexpr bool openvino = false;
#endif
#ifdef SIT_DEPLOY_TENSORRT
    constexpr bool tensorrt = true;
#else
    constexpr bool tensorrt = false;
#endif
    switch (backend) {
        case Backend::openvino: return openvino;
        case Backend::tensorrt: return tensorrt;
        case Backend::automatic: return openvino || tensorrt;
    }
    return false;
}

namespace {

void check(const char* name, int value, int least, int most) {
    if (value < least || value > most)
        throw Error(std::string(name) + " must be from " + std::to_string(least) + " to " + std::to_string(most) + ", got " + std::to_string(value));
}

}  // namespace

std::unique_ptr<Engine> open_engine(const Bundle& bundle, const Options& options) {
    return at_boundary("opening the engine of " + bundle.path.string(), [&] {
        check("contexts", options.contexts, 1, limits::contexts);
        check("threads", options.threads, 0, limits::threads);
        const bool has_plan = bundle.engine_kind.rfind("tensorrt", 0) == 0;
        switch (options.backend) {
            case Backend::openvino: return open_openvino(bundle, options);
            case Backend::tensorrt:
                if (!has_plan)
                    throw Error(bundle.path.string() + " holds an engine of " + bundle.engine_kind + ", not of TensorRT; build one with --engine tensorrt");
                return open_tensorrt(bundle, options);
            case Backend::automatic:
                return has_plan && has_backend(Backend::tensorrt) ? open_tensorrt(bundle, options) : open_openvino(bundle, options);
        }
        throw Error("no such backend; it is automatic, openvino or tensorrt");
    });
}

}  // namespace sit_deploy
