// sit_latency BUNDLE [SECONDS [THREADS]]: how long until the first result, and how long one batch takes then.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "sit_deploy/classifier.hpp"

using Clock = std::chrono::steady_clock;

namespace {

double milliseconds(Clock::time_point since) {
    return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
}

/// A word of the command line as a number from `least` to `most`.
double number(const char* name, const char* word, double least, double most) {
    char* end = nullptr;
    const double value = std::strtod(word, &end);
    if (end == word || *end != '\0' || !(value >= least && value <= most))
        throw sit_deploy::Error(std::string(name) + " must be a number from " + std::to_string(static_cast<long>(least)) + " to " +
                                std::to_string(static_cast<long>(most)) + ", got " + word);
    return value;
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 2 || argc > 4) {
        std::fprintf(stderr, "Usage: sit_latency BUNDLE [SECONDS [THREADS]]\n");
        return 2;
    }
    const double seconds = argc > 2 ? number("SECONDS", argv[2], 0, 86400) : 5;
    sit_deploy::Options options;
    if (argc > 3) options.threads = static_cast<int>(number("THREADS", argv[3], 0, 4096));
    const auto started = Clock::now();
    const sit_deploy::Classifier classifier(argv[1], options);
    const std::size_t batch = classifier.bundle().batch_best;
    const std::vector<std::uint8_t> images(batch * classifier.bundle().preprocessing.bytes());
    (void)classifier.infer(images.data(), batch);
    const double first = milliseconds(started);
    std::vector<double> taken;
    for (const auto begun = Clock::now(); milliseconds(begun) < 1e3 * seconds || taken.size() < 3;) {
        const auto before = Clock::now();
        (void)classifier.infer(images.data(), batch);
        taken.push_back(milliseconds(before));
    }
    std::sort(taken.begin(), taken.end());
    const auto at = [&](double share) { return taken[static_cast<std::size_t>(share * static_cast<double>(taken.size() - 1))]; };
    std::printf("{\"engine\": \"%s\", \"batch\": %zu, \"runs\": %zu, \"first_ms\": %.3f, \"p50_ms\": %.4f, \"p90_ms\": %.4f, "
                "\"p99_ms\": %.4f}\n",
                classifier.engine().name().c_str(), batch, taken.size(), first, at(0.5), at(0.9), at(0.99));
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 2;
}
