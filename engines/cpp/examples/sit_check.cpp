// sit_check BUNDLE: does this engine, on this machine, give what was validated? Status 0 yes, 1 no, 2 it cannot run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>

#include "sit_deploy/classifier.hpp"

int main(int argc, char** argv) try {
    if (argc != 2) {
        std::fprintf(stderr, "Usage: sit_check BUNDLE\n");
        return 2;
    }
    const sit_deploy::Classifier classifier(argv[1]);
    const sit_deploy::Bundle& bundle = classifier.bundle();
    const auto tolerance = static_cast<double>(bundle.tolerance());
    const sit_deploy::Golden golden = bundle.golden();
    const std::vector<float>& expected = golden.logits;
    const auto count = static_cast<double>(expected.size());
    const double mean = std::accumulate(expected.begin(), expected.end(), 0.0) / count;
    const double variance = std::accumulate(expected.begin(), expected.end(), 0.0, [&](double sum, float logit) {
        return sum + (logit - mean) * (logit - mean);
    });
    if (!(variance > 0))
        throw sit_deploy::Error(bundle.path.string() + ": its golden outputs are all the same, so any engine would pass; build the bundle again");
    const std::vector<float> logits = classifier.infer(golden.images.data(), golden.count);
    double worst = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        const double off = std::fabs(static_cast<double>(logits[i]) - static_cast<double>(expected[i]));
        worst = std::isnan(off) ? INFINITY : std::max(worst, off);
    }
    const double error = worst / std::sqrt(variance / count);
    const bool good = error <= tolerance;
    std::printf("%s on %s: error %.2e of at most %g: %s\n", sit_deploy::printable(bundle.model).c_str(), classifier.engine().name().c_str(), error,
                tolerance, good ? "good" : "out of tolerance");
    if (std::fflush(stdout) != 0) throw sit_deploy::Error("cannot write the result");
    return good ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 2;
}
