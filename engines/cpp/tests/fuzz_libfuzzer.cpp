// sit_fuzz with clang's libFuzzer: SIT_FUZZ_TARGET=json sit_fuzz CORPUS [options of libFuzzer]
#include <cstdlib>

#include "fuzz_targets.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace sit_deploy::fuzz;
    static const Target& chosen = target(std::getenv("SIT_FUZZ_TARGET"));
    run(chosen, data, size);
    return 0;
}
