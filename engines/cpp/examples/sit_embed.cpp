// sit_embed BUNDLE IMAGE...: the first output of each picture, a line of numbers each; and how alike the pictures are to the first.
#include <cmath>
#include <cstdio>
#include <exception>

#include "sit_deploy/classifier.hpp"

namespace {

/// The cosine of two vectors.
double cosine(const float* a, const float* b, std::size_t size) {
    double product = 0, first = 0, second = 0;
    for (std::size_t i = 0; i < size; ++i) {
        product += static_cast<double>(a[i]) * static_cast<double>(b[i]);
        first += static_cast<double>(a[i]) * static_cast<double>(a[i]);
        second += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    }
    return product / std::sqrt(first * second);
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 3) {
        std::fprintf(stderr, "Usage: sit_embed BUNDLE IMAGE...\n");
        return 2;
    }
    const sit_deploy::Classifier classifier(argv[1]);
    const std::size_t bytes = classifier.bundle().preprocessing.bytes(), count = static_cast<std::size_t>(argc - 2);
    std::vector<std::uint8_t> prepared(count * bytes);
    for (std::size_t i = 0; i < count; ++i)
        sit_deploy::prepare(sit_deploy::load_image(argv[i + 2]), classifier.bundle().preprocessing, prepared.data() + i * bytes);
    const auto outputs = classifier.outputs(prepared.data(), count);
    const sit_deploy::Output first = classifier.bundle().given().front();
    const std::vector<float>& values = outputs.at(first.name);
    const std::size_t size = first.values();
    for (std::size_t i = 0; i < count; ++i) {
        const float* row = values.data() + i * size;
        std::printf("%s\t%s\t%.6f\t", argv[i + 2], first.name.c_str(), cosine(row, values.data(), size));
        for (std::size_t k = 0; k < size; ++k) std::printf("%s%.6g", k ? " " : "", static_cast<double>(row[k]));
        std::printf("\n");
    }
    if (std::fflush(stdout) != 0) throw sit_deploy::Error("cannot write the result");
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 2;
}
