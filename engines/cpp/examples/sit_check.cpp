// sit_check BUNDLE: does this engine, on this machine, give what was validated? Status 0 yes, 1 no, 2 it cannot run.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>

#include "sit_deploy/classifier.hpp"

namespace {

/// Largest difference, in standard deviations of what is expected; infinite where one is NaN.
double error_of(const std::vector<float>& found, const std::vector<float>& expected, const std::string& where) {
    const auto count = static_cast<double>(expected.size());
    const double mean = std::accumulate(expected.begin(), expected.end(), 0.0) / count;
    const double variance = std::accumulate(expected.begin(), expected.end(), 0.0, [&](double sum, float value) {
        return sum + (value - mean) * (value - mean);
    });
    if (!(variance > 0))
        throw sit_deploy::Error(where + ": its golden outputs are all the same, so any engine would pass; build the bundle again");
    double worst = 0;
    for (std::size_t i = 0; i < found.size(); ++i) {
        const double off = std::fabs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
        worst = std::isnan(off) ? INFINITY : std::max(worst, off);
    }
    return worst / std::sqrt(variance / count);
}

/// Least cosine of a vector of `dim` numbers and the one expected; -1 where one is NaN.
double least_cosine(const std::vector<float>& found, const std::vector<float>& expected, std::size_t dim) {
    double least = 1;
    for (std::size_t start = 0; start + dim <= found.size(); start += dim) {
        double product = 0, one = 0, other = 0;
        for (std::size_t i = start; i < start + dim; ++i) {
            const auto a = static_cast<double>(found[i]), b = static_cast<double>(expected[i]);
            product += a * b;
            one += a * a;
            other += b * b;
        }
        const double cosine = product / std::sqrt(one * other);
        least = std::isnan(cosine) ? -1 : std::min(least, cosine);
    }
    return least;
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 2) {
        std::fprintf(stderr, "Usage: sit_check BUNDLE\n");
        return 2;
    }
    const sit_deploy::Classifier classifier(argv[1]);
    const sit_deploy::Bundle& bundle = classifier.bundle();
    const auto tolerance = static_cast<double>(bundle.tolerance());
    const sit_deploy::Golden golden = bundle.golden();
    const auto found = classifier.outputs(golden.images.data(), golden.count);
    bool all_good = true;
    for (const sit_deploy::Output& output : bundle.given()) {
        const std::vector<float>& expected = golden.outputs.at(output.name);
        const double error = error_of(found.at(output.name), expected, bundle.path.string());
        const bool embedding = output.name != "logits";
        const double cosine = embedding ? least_cosine(found.at(output.name), expected, output.shape.back()) : 1;
        const bool good = error <= tolerance && (!embedding || cosine >= static_cast<double>(bundle.least_cosine()));
        all_good = all_good && good;
        std::printf("%s on %s: ", sit_deploy::printable(bundle.model).c_str(), classifier.engine().name().c_str());
        if (embedding) std::printf("%s, cosine %.6f of at least %g, ", output.name.c_str(), cosine, static_cast<double>(bundle.least_cosine()));
        std::printf("error %.2e of at most %g: %s\n", error, tolerance, good ? "good" : "out of tolerance");
    }
    if (std::fflush(stdout) != 0) throw sit_deploy::Error("cannot write the result");
    return all_good ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 2;
}
