// Enough of libnvinfer to link the TensorRT backend with where only its headers are: what must be refused before any call
// of the library can then be tried. A call that gets here is a failed test.
#include <NvInfer.h>

#include <cstdlib>

extern "C" {
int32_t getInferLibVersion() noexcept { std::abort(); }
void* createInferRuntime_INTERNAL(void*, int32_t) noexcept { std::abort(); }
}
