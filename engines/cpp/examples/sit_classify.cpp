// sit_classify BUNDLE IMAGE...: the five likeliest classes of each picture.
#include <cstdio>
#include <exception>

#include "sit_deploy/classifier.hpp"

int main(int argc, char** argv) try {
    if (argc < 3) {
        std::fprintf(stderr, "Usage: sit_classify BUNDLE IMAGE...\n");
        return 2;
    }
    const sit_deploy::Classifier classifier(argv[1]);
    std::vector<sit_deploy::Image> images;
    for (int i = 2; i < argc; ++i) images.push_back(sit_deploy::load_image(argv[i]));
    const auto found = classifier.classify(images);
    for (std::size_t i = 0; i < found.size(); ++i)
        for (const auto& best : found[i])
            std::printf("%s\t%zu\t%.6f\t%s\n", argv[i + 2], best.index, best.probability, sit_deploy::printable(best.name).c_str());
    if (std::fflush(stdout) != 0) throw sit_deploy::Error("cannot write the result");
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 2;
}
