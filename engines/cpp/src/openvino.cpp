// A bundle's graph on OpenVINO's CPU plugin: model.onnx, or what an OpenVINO bundle holds of it in OpenVINO's own format.
#include <openvino/openvino.hpp>
#include <openvino/opsets/opset13.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <sstream>

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
    OpenVino(const Bundle& bundle, const Options& options) : Engine(bundle), how_(bundle.preprocessing) {
        const std::string file = (bundle.engine_kind == "openvino" ? bundle.engine_file : bundle.model_file).string();
        try {
            const auto model = core_.read_model(file);
            check_graph(*model, file);
            const bool low = in_bfloat16(*model);
            if (low && !has_bfloat16())
                throw Error(file + " computes in bf16, which this CPU has no kernels for" + limited() +
                            "; build it for this machine with --precision fp32" + (int8_saturates() ? "" : " or int8"));
            if (in_8_bits(*model) && int8_saturates())
                throw Error(file + " is in int8, and OpenVINO adds products of 8 bits in 16 on a CPU without VNNI, which saturates" + limited() +
                            "; build it for this machine with --precision fp32");
            ov::AnyMap settings = {
                // on some CPUs it would round to bfloat16 by itself: what was validated is what runs
                ov::hint::inference_precision(low ? ov::element::bf16 : ov::element::f32),
                ov::hint::performance_mode(options.contexts > 1 ? ov::hint::PerformanceMode::THROUGHPUT
                                                                : ov::hint::PerformanceMode::LATENCY),
            };
            if (options.contexts > 1) settings.insert(ov::num_streams(options.contexts));
            if (options.threads > 0) settings.insert(ov::inference_num_threads(options.threads));
            compiled_ = core_.compile_model(model, "CPU", settings);
            for (int i = 0; i < options.contexts; ++i)
                pool_.add(std::make_unique<ov::InferRequest>(compiled_.create_infer_request()));
        } catch (const ov::Exception& error) {
            failed("cannot load " + file, error);
        }
    }

    [[nodiscard]] std::string name() const override {
        return std::string("OpenVINO ") + ov::get_openvino_version().buildNumber;
    }

private:
    static constexpr std::size_t kInputs = 64;

    /// Of one batch, as the bundle says that the graph takes it.
    [[nodiscard]] ov::Shape input_shape(std::size_t batch) const {
        return how_.pixels ? ov::Shape{batch, how_.height, how_.width, 3} : ov::Shape{batch, 3, how_.height, how_.width};
    }

    [[nodiscard]] ov::element::Type input_type() const { return how_.pixels ? ov::element::u8 : ov::element::f32; }

    /// Whether a bundle's engine says that it is to be inferred in bfloat16.
    static bool in_bfloat16(const ov::Model& model) {
        if (!model.has_rt_info("sit_deploy", "inference_precision")) return false;
        const auto said = model.get_rt_info<std::string>("sit_deploy", "inference_precision");
        if (said != "bf16") throw Error("the engine is to be inferred in '" + said + "', which this release does not know; build it again");
        return true;
    }

    /// What keeps OpenVINO from instructions that the CPU may have.
    static std::string limited() {
        for (const char* name : {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"})
            if (const char* value = std::getenv(name)) return std::string(" (with ") + name + "=" + value + " set)";
        return "";
    }

    static bool in_8_bits(const ov::Model& model) {
        const auto operators = model.get_ops();
        return std::any_of(operators.begin(), operators.end(), [](const auto& each) { return std::strcmp(each->get_type_name(), "FakeQuantize") == 0; });
    }

    /// A product of a matrix of rows x inputs with a weight, as OpenVINO compiles it: what it lists is what the CPU has, whatever it may use.
    [[nodiscard]] ov::CompiledModel product(const std::shared_ptr<ov::opset13::Parameter>& images, const ov::Output<ov::Node>& codes,
                                            const ov::Output<ov::Node>& weight, ov::element::Type precision) {
        const auto matmul = std::make_shared<ov::opset13::MatMul>(codes, weight, false, true);
        const auto model = std::make_shared<ov::Model>(ov::OutputVector{matmul}, ov::ParameterVector{images}, "product");
        return core_.compile_model(model, "CPU", ov::hint::inference_precision(precision));
    }

    static std::shared_ptr<ov::opset13::Parameter> rows() {
        return std::make_shared<ov::opset13::Parameter>(ov::element::f32, ov::PartialShape{8, kInputs});
    }

    template <typename T>
    static std::shared_ptr<ov::Node> filled(ov::element::Type type, const ov::Shape& shape, T value) {
        return ov::opset13::Constant::create(type, shape, std::vector<T>(ov::shape_size(shape), value));
    }

    /// Whether OpenVINO multiplies bfloat16 here; it would emulate it on others.
    [[nodiscard]] bool has_bfloat16() {
        const auto types = core_.get_property("CPU", ov::device::capabilities);
        if (std::find(types.begin(), types.end(), "BF16") == types.end()) return false;
        try {
            const auto images = rows();
            const auto weight = filled(ov::element::f32, {16, kInputs}, 1.0F);
            for (const auto& kernel : product(images, images, weight, ov::element::bf16).get_runtime_model()->get_ordered_ops()) {
                const auto& told = kernel->get_rt_info();
                const auto found = told.find("primitiveType");
                if (found == told.end()) continue;
                const auto name = found->second.as<std::string>();  // "brgemm_avx512_amx_bf16"; what emulates is "jit_gemm_bf16"
                if (name.rfind("brgemm", 0) == 0 && name.find("bf16") != std::string::npos) return true;
            }
        } catch (const ov::Exception&) {  // instructions too old for any
        }
        return false;
    }

    /// Whether a product of 8 bits loses what two of its terms have beyond 16 bits.
    [[nodiscard]] bool int8_saturates() {
        const float largest = 255, weight = 127;
        const auto images = rows();
        const auto low = filled(ov::element::f32, {}, 0.0F), high = filled(ov::element::f32, {}, largest);
        const auto codes = std::make_shared<ov::opset13::FakeQuantize>(images, low, high, low, high, 256);
        const auto whole = filled(ov::element::i8, {16, kInputs}, static_cast<std::int8_t>(weight));
        const auto scaled = std::make_shared<ov::opset13::Multiply>(std::make_shared<ov::opset13::Convert>(whole, ov::element::f32),
                                                                    filled(ov::element::f32, {16, 1}, 1.0F));
        auto request = product(images, codes, scaled, ov::element::f32).create_infer_request();
        ov::Tensor input(ov::element::f32, {8, kInputs});
        std::fill_n(input.data<float>(), input.get_size(), largest);
        request.set_input_tensor(input);
        request.infer();
        const ov::Tensor sums = request.get_output_tensor();
        const float exact = largest * weight * kInputs;
        const float* values = sums.data<const float>();
        return std::any_of(values, values + sums.get_size(), [exact](float sum) { return sum != exact; });
    }

    static ov::Shape output_shape(const Output& output, std::size_t batch) {
        ov::Shape shape{batch};
        shape.insert(shape.end(), output.shape.begin(), output.shape.end());
        return shape;
    }

    /// Where a model gives an output: by its name, where it gives several.
    [[nodiscard]] ov::Output<const ov::Node> port(const ov::Model& model, const Output& output, const std::string& file) const {
        if (outputs().size() == 1) return model.output();
        for (const auto& each : model.outputs())
            if (each.get_names().count(output.name) != 0) return each;
        throw Error(file + " has no output " + output.name + ", which its manifest tells of; build the bundle again");
    }

    /// Refuse a graph that takes or gives something else than the bundle says, for its smallest or its largest batch.
    void check_graph(const ov::Model& model, const std::string& file) const {
        const std::size_t count = outputs().size();
        if (model.inputs().size() != 1 || model.outputs().size() != count)
            throw Error(file + " must have one input and " + (count == 1 ? "one output" : std::to_string(count) + " outputs"));
        const auto input = model.input();
        const auto fits = [](const auto& port, const ov::element::Type& type, const ov::Shape& shape) {
            return port.get_element_type() == type && port.get_partial_shape().compatible(ov::PartialShape(shape));
        };
        for (const std::size_t batch : {batch_min(), batch_max()}) {
            const ov::Shape images = input_shape(batch);
            for (const Output& wanted : outputs()) {
                const ov::Output<const ov::Node> output = port(model, wanted, file);
                const ov::Shape shape = output_shape(wanted, batch);
                if (fits(input, input_type(), images) && fits(output, ov::element::f32, shape)) continue;
                std::ostringstream text;
                text << file << " takes " << input.get_element_type() << ' ' << input.get_partial_shape() << " and gives "
                     << output.get_element_type() << ' ' << output.get_partial_shape() << ", where its manifest says " << input_type() << ' '
                     << ov::PartialShape(images) << " and f32 " << ov::PartialShape(shape) << "; build the bundle again";
                throw Error(text.str());
            }
        }
    }

    void run(const void* images, std::size_t batch, float* values) override {
        pool_.with([&](ov::InferRequest& request) {
            try {
                // the caller's memory, read only; OpenVINO's interface has no const
                request.set_input_tensor(ov::Tensor(input_type(), input_shape(batch), const_cast<void*>(images)));
                request.infer();
                for (const Output& output : outputs()) {
                    const ov::Tensor out = outputs().size() == 1 ? request.get_output_tensor() : request.get_tensor(output.name);
                    const std::size_t size = batch * output.values();
                    if (out.get_size() != size) throw Error("the graph does not give as many numbers as its manifest says of " + output.name);
                    std::memcpy(values, out.data<const float>(), out.get_byte_size());
                    values += size;
                }
            } catch (const ov::Exception& error) {
                failed("failed while running", error);
            }
        });
    }

    ov::Core core_;
    ov::CompiledModel compiled_;
    Preprocessing how_;
    Pool<ov::InferRequest> pool_;
};

}  // namespace

std::unique_ptr<Engine> open_openvino(const Bundle& bundle, const Options& options) {
    return std::make_unique<OpenVino>(bundle, options);
}

}  // namespace sit_deploy
