#include "sit_deploy/engine.hpp"

#include "backends.hpp"
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

std::unique_ptr<Engine> open_engine(const Bundle& bundle, const Options& options) {
    if (options.contexts < 1) throw Error("an engine has 1 context or more, got " + std::to_string(options.contexts));
    if (options.threads < 0) throw Error("threads must be 0 or more, got " + std::to_string(options.threads));
    const bool has_plan = bundle.engine_kind.rfind("tensorrt", 0) == 0;
    if (options.backend == Backend::tensorrt && !has_plan)
        throw Error(bundle.path.string() + " holds an engine of " + bundle.engine_kind + ", not of TensorRT; build one with --engine tensorrt");
    if (options.backend == Backend::tensorrt) return open_tensorrt(bundle, options);
    if (options.backend == Backend::automatic && has_plan && has_backend(Backend::tensorrt)) return open_tensorrt(bundle, options);
    return open_openvino(bundle, options);
}

}  // namespace sit_deploy
