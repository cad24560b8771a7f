// A bundle's plan on TensorRT 10, 11 or TensorRT-RTX: whichever headers it is compiled with.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>

#include "backends.hpp"
#include "files.hpp"
#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

#ifdef SIT_DEPLOY_TENSORRT_RTX
constexpr char kind[] = "tensorrt-rtx", title[] = "TensorRT-RTX";
#else
constexpr char kind[] = "tensorrt", title[] = "TensorRT";
#endif

void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    std::string text = std::string(what) + ": " + cudaGetErrorString(status);
    if (status == cudaErrorMemoryAllocation) text += "; free GPU memory, or open fewer contexts or a smaller batch";
    throw Error(text);
}

struct DeviceFree {
    void operator()(void* memory) const { cudaFree(memory); }
};
struct HostFree {
    void operator()(void* memory) const { cudaFreeHost(memory); }
};
struct StreamDestroy {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using DeviceMemory = std::unique_ptr<void, DeviceFree>;
using HostMemory = std::unique_ptr<void, HostFree>;
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, StreamDestroy>;

DeviceMemory device_memory(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "GPU memory");
    return DeviceMemory(memory);
}

HostMemory host_memory(std::size_t bytes) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "page-locked memory");
    return HostMemory(memory);
}

Stream make_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a CUDA stream");
    return Stream(stream);
}

/// Keeps the library's last error for the message of ours, and prints nothing.
class Logger final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard lock(mutex_);
        std::strncpy(last_, message, sizeof last_ - 1);
    }

    std::string last() {
        const std::lock_guard lock(mutex_);
        return last_[0] ? last_ : "no reason given";
    }

private:
    std::mutex mutex_;
    char last_[400] = "";
};

/// One execution context with memory of its own for the largest batch.
struct Context {
    DeviceMemory activations;  // outlives the context that runs in it
    std::unique_ptr<nvinfer1::IExecutionContext> execution;
    Stream stream;
    DeviceMemory device_in;
    HostMemory host_in;
    std::vector<DeviceMemory> device_out;  // of each output
    std::vector<HostMemory> host_out;
};

/// Before anything of TensorRT: without a device its runtime hands back pointers to nothing.
void require_device(int device) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0)
        throw Error(std::string("needs an NVIDIA GPU and its driver (") +
                    (status == cudaSuccess ? "no device" : cudaGetErrorString(status)) + "); open it with Backend::openvino instead");
    if (device < 0 || device >= count)
        throw Error("GPU " + std::to_string(device) + " is not here; there are " + std::to_string(count));
    check(cudaSetDevice(device), "the GPU");
}

class TensorRt final : public Engine {
public:
    TensorRt(const Bundle& bundle, const Options& options)
        : Engine(bundle), device_(options.device), how_(bundle.preprocessing), names_(outputs().size()) {
        if (bundle.engine_kind != kind)
            throw Error(bundle.path.string() + " holds an engine of " + bundle.engine_kind + ", and this program has " + title);
        require_device(device_);
        if (getInferLibVersion() != NV_TENSORRT_VERSION)
            throw Error(std::string(title) + " " + std::to_string(getInferLibVersion()) + " is loaded, and this program was compiled for " +
                        std::to_string(NV_TENSORRT_VERSION) + "; put the right one first into LD_LIBRARY_PATH");
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        if (!runtime_) throw Error(std::string(title) + " cannot start: " + logger_.last());
        const std::vector<std::uint8_t> plan = read_file(bundle.engine_file, std::numeric_limits<std::size_t>::max() / 2);
        engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
        if (!engine_)
            throw Error(bundle.engine_file.string() + " was built by " + title + " " + bundle.engine_version + " for " +
                        bundle.engine_target + ", and cannot be opened here: " + logger_.last() + "; build it again here");
        find_tensors(bundle);
        for (int i = 0; i < options.contexts; ++i) pool_.add(make_context());
    }

    ~TensorRt() override { cudaSetDevice(device_); }

    [[nodiscard]] std::string name() const override {
        return std::string(title) + " " + std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR) + "." +
               std::to_string(NV_TENSORRT_PATCH);
    }

private:
    void run(const void* images, std::size_t batch, float* values) override {
        check(cudaSetDevice(device_), "the GPU");  // which is each thread's own
        pool_.with([&](Context& context) { run_on(context, images, batch, values); });
    }

    /// Of one batch, as the bundle says that the plan takes it.
    [[nodiscard]] nvinfer1::Dims input_shape(std::size_t batch) const {
        const auto n = static_cast<std::int64_t>(batch), h = static_cast<std::int64_t>(how_.height),
                   w = static_cast<std::int64_t>(how_.width);
        nvinfer1::Dims shape{};
        shape.nbDims = 4;
        const std::int64_t extents[] = {n, how_.pixels ? h : 3, how_.pixels ? w : h, how_.pixels ? 3 : w};
        std::copy(std::begin(extents), std::end(extents), shape.d);
        return shape;
    }

    /// Whether a tensor's shape, with -1 for what is open, allows one.
    static bool allows(const nvinfer1::Dims& shape, const nvinfer1::Dims& wanted) {
        bool same = shape.nbDims == wanted.nbDims;
        for (int i = 0; same && i < shape.nbDims; ++i) same = shape.d[i] == -1 || shape.d[i] == wanted.d[i];
        return same;
    }

    /// Of one batch, as the bundle says that the plan gives it.
    [[nodiscard]] nvinfer1::Dims output_shape(std::size_t number, std::size_t batch) const {
        const std::vector<std::size_t>& extents = outputs()[number].shape;
        nvinfer1::Dims shape{};
        shape.nbDims = static_cast<std::int32_t>(1 + extents.size());
        shape.d[0] = static_cast<std::int64_t>(batch);
        std::transform(extents.begin(), extents.end(), shape.d + 1, [](std::size_t extent) { return static_cast<std::int64_t>(extent); });
        return shape;
    }

    /// Which output a tensor is: by its name, where there are several; their count where it is none.
    [[nodiscard]] std::size_t output_number(const char* tensor) const {
        if (outputs().size() == 1) return 0;
        const auto found = std::find_if(outputs().begin(), outputs().end(), [&](const Output& output) { return output.name == tensor; });
        return static_cast<std::size_t>(found - outputs().begin());
    }

    /// The names of input and outputs, whose types and shapes the bundle has told.
    void find_tensors(const Bundle& bundle) {
        for (int i = 0; i < engine_->getNbIOTensors(); ++i) {
            const char* tensor = engine_->getIOTensorName(i);
            const bool input = engine_->getTensorIOMode(tensor) == nvinfer1::TensorIOMode::kINPUT;
            const auto expected = input && how_.pixels ? nvinfer1::DataType::kUINT8 : nvinfer1::DataType::kFLOAT;
            const std::size_t number = output_number(tensor);
            if (!input && number == outputs().size())
                throw Error(bundle.engine_file.string() + " has inputs or outputs that its manifest does not tell of");
            std::string& place = input ? input_ : names_[number];
            bool fits = place.empty() && engine_->getTensorDataType(tensor) == expected;
            for (const std::size_t batch : {batch_min(), batch_max()})
                fits = fits && allows(engine_->getTensorShape(tensor), input ? input_shape(batch) : output_shape(number, batch));
            if (!fits)
                throw Error(bundle.engine_file.string() + " has inputs or outputs that its manifest does not tell of");
            place = tensor;
        }
        if (input_.empty() || std::any_of(names_.begin(), names_.end(), [](const std::string& name) { return name.empty(); })) throw Error(bundle.engine_file.string() + " has no input or no output");
    }

    std::unique_ptr<Context> make_context() {
        auto context = std::make_unique<Context>();
#ifdef SIT_DEPLOY_TENSORRT_RTX
        // its engines are built to take memory from outside (BuilderFlag::kREQUIRE_USER_ALLOCATION)
        context->execution.reset(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
#else
        context->execution.reset(engine_->createExecutionContext());
#endif
        if (!context->execution) throw Error(std::string(title) + " gives no execution context: " + logger_.last());
#ifdef SIT_DEPLOY_TENSORRT_RTX
        if (const std::int64_t bytes = engine_->getDeviceMemorySizeV2(); bytes > 0) {
            context->activations = device_memory(static_cast<std::size_t>(bytes));
            context->execution->setDeviceMemoryV2(context->activations.get(), bytes);
        }
#endif
        const std::size_t in = batch_max() * image_bytes();
        context->stream = make_stream();
        context->device_in = device_memory(in);
        context->host_in = host_memory(in);
        bool taken = context->execution->setTensorAddress(input_.c_str(), context->device_in.get());
        for (std::size_t i = 0; i < outputs().size(); ++i) {
            const std::size_t out = batch_max() * outputs()[i].values() * sizeof(float);
            context->device_out.push_back(device_memory(out));
            context->host_out.push_back(host_memory(out));
            taken = taken && context->execution->setTensorAddress(names_[i].c_str(), context->device_out[i].get());
        }
        if (!taken) throw Error(std::string(title) + " takes no memory for its tensors: " + logger_.last());
        return context;
    }

    void run_on(Context& context, const void* images, std::size_t batch, float* values) {
        if (!context.execution->setInputShape(input_.c_str(), input_shape(batch)))
            throw Error(std::string(title) + " refuses a batch of " + std::to_string(batch) + ": " + logger_.last());
        const std::size_t in = batch * image_bytes();
        cudaStream_t stream = context.stream.get();
        std::memcpy(context.host_in.get(), images, in);
        check(cudaMemcpyAsync(context.device_in.get(), context.host_in.get(), in, cudaMemcpyHostToDevice, stream), "images to the GPU");
        if (!context.execution->enqueueV3(stream)) throw Error(std::string(title) + " failed while running: " + logger_.last());
        for (std::size_t i = 0; i < outputs().size(); ++i)
            check(cudaMemcpyAsync(context.host_out[i].get(), context.device_out[i].get(), batch * outputs()[i].values() * sizeof(float),
                                  cudaMemcpyDeviceToHost, stream),
                  "outputs from the GPU");
        check(cudaStreamSynchronize(stream), "the GPU");
        for (std::size_t i = 0; i < outputs().size(); ++i) {
            const std::size_t size = batch * outputs()[i].values();
            std::memcpy(values, context.host_out[i].get(), size * sizeof(float));
            values += size;
        }
    }

    int device_;
    Preprocessing how_;
    Logger logger_;
    std::string input_;
    std::vector<std::string> names_;  // of the plan's outputs, in the bundle's order
    std::unique_ptr<nvinfer1::IRuntime> runtime_;  // outlives the engine, as the engine does its contexts
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    Pool<Context> pool_;
};

}  // namespace

std::unique_ptr<Engine> open_tensorrt(const Bundle& bundle, const Options& options) {
    return std::make_unique<TensorRt>(bundle, options);
}

}  // namespace sit_deploy
