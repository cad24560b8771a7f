// sit_check BUNDLE: does this engine, on this machine, give what was validated? Status 0 yes, 1 no, 2 it cannot run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>

#include "sit_deploy/classifier.hpp"

int main(int argc, char** argv) try {
    if (argc != 2) {
        std::fprintf(stderr, "Usage: sit_check BUNDLE\n");
        return 2;
    }
    const sit_deploy::Classifier classifier(argv[1]);
    const sit_deploy::Golden golden = classifier.bundle().golden();
    const std::vector<float> logits = classifier.infer(golden.images.data(), golden.count);
    double sum = 0, squares = 0, worst = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        sum += golden.logits[i];
        squares += static_cast<double>(golden.logits[i]) * golden.logits[i];
        const double off = std::fabs(static_cast<double>(logits[i]) - golden.logits[i]);
        worst = std::isnan(off) ? INFINITY : std::max(worst, off);
    }
    const double mean = sum / static_cast<double>(logits.size());
    const double deviation = std::sqrt(squares / static_cast<double>(logits.size()) - mean * mean);
    const double error = worst / deviation;
    const bool good = error <= static_cast<double>(classifier.bundle().tolerance());
    std::printf("%s on %s: error %.2e of at most %g: %s\n", classifier.bundle().model.c_str(),
                classifier.engine().name().c_str(), error, static_cast<double>(classifier.bundle().tolerance()),
                good ? "good" : "out of tolerance");
    return good ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 2;
}
