// A bundle's graph on OpenVINO's CPU plugin: model.onnx, or what an OpenVINO bundle holds of it in OpenVINO's own format.
#include <openvino/openvino.hpp>

#include <cstring>

#include "backends.hpp"
#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

[[noreturn]] void failed(const std::string& what, const std::exception& error) {
    std::string text = error.what();
    for (char& c : text)
        if (c == '\n') c = ' ';
    throw Error("OpenVINO " + what + ": " + text.substr(0, 400));
}

class OpenVino final : public Engine {
public:
    OpenVino(const Bundle& bundle, const Options& options)
        : classes_(bundle.classes.size()), how_(bundle.preprocessing), low_(bundle.batch_min), high_(bundle.batch_max) {
        try {
            const std::string file = (bundle.engine_kind == "openvino" ? bundle.engine_file : bundle.model_file).string();
            const auto model = core_.read_model(file);
            if (model->inputs().size() != 1 || model->outputs().size() != 1)
                throw Error(file + " must have one input and one output");
            ov::AnyMap settings = {
                // on some CPUs it would round to bfloat16 by itself: what was validated is what runs
                ov::hint::inference_precision(ov::element::f32),
                ov::hint::performance_mode(options.contexts > 1 ? ov::hint::PerformanceMode::THROUGHPUT
                                                                : ov::hint::PerformanceMode::LATENCY),
            };
            if (options.contexts > 1) settings.insert(ov::num_streams(options.contexts));
            if (options.threads > 0) settings.insert(ov::inference_num_threads(options.threads));
            compiled_ = core_.compile_model(model, "CPU", settings);
            for (int i = 0; i < options.contexts; ++i)
                pool_.add(std::make_unique<ov::InferRequest>(compiled_.create_infer_request()));
        } catch (const ov::Exception& error) {
            failed("cannot load " + bundle.model_file.string(), error);
        }
    }

    void infer(const void* images, std::size_t batch, float* logits) override {
        if (batch < low_ || batch > high_)
            throw Error("the engine takes batches of " + std::to_string(low_) + " to " + std::to_string(high_) + ", got " +
                        std::to_string(batch));
        const ov::Shape shape = how_.pixels ? ov::Shape{batch, how_.height, how_.width, 3}
                                            : ov::Shape{batch, 3, how_.height, how_.width};
        pool_.with([&](ov::InferRequest& request) {
            try {
                // the caller's memory, read only; OpenVINO's interface has no const
                request.set_input_tensor(
                    ov::Tensor(how_.pixels ? ov::element::u8 : ov::element::f32, shape, const_cast<void*>(images)));
                request.infer();
                const ov::Tensor out = request.get_output_tensor();
                if (out.get_size() != batch * classes_) throw Error("the graph does not give a logit for each class");
                std::memcpy(logits, out.data<const float>(), out.get_byte_size());
            } catch (const ov::Exception& error) {
                failed("failed while running", error);
            }
        });
    }

    [[nodiscard]] std::string name() const override {
        return std::string("OpenVINO ") + ov::get_openvino_version().buildNumber;
    }

private:
    ov::Core core_;
    ov::CompiledModel compiled_;
    std::size_t classes_;
    Preprocessing how_;
    std::size_t low_, high_;
    Pool<ov::InferRequest> pool_;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(const Bundle& bundle, const Options& options) {
    return std::make_unique<OpenVino>(bundle, options);
}

}  // namespace sit_deploy
