// What the Python tests ask the library: one verb a process, raw bytes on standard output.
//   decode IMAGE | classify BUNDLE IMAGE... | resize FILTER WIDTH HEIGHT IMAGE | prepare BUNDLE IMAGE | infer BUNDLE RAW COUNT... | hammer BUNDLE THREADS CONTEXTS
//   pixels BUNDLE RAW VIEW... | look BUNDLE RAW VIEW..., where VIEW is OFFSET,SIZE,WIDTH,HEIGHT,STRIDE,FORMAT,ORIENTATION into RAW
//   outputs BUNDLE RAW COUNT | open BUNDLE | tensorrt BUNDLE | orientation IMAGE... | refuse BUNDLE THREADS
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>

#include "sit_deploy/classifier.hpp"

namespace {

using namespace sit_deploy;

void put(const void* data, std::size_t size) { std::fwrite(data, 1, size, stdout); }

void put(const Image& image) {
    std::printf("%zu %zu\n", image.width, image.height);
    put(image.rgb.data(), image.rgb.size());
}

std::vector<std::uint8_t> raw_bytes(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// Pixels in memory of their own that has no byte more than they say: a read beyond it is found.
struct Frame {
    std::vector<std::uint8_t> bytes;
    Pixels pixels;

    Frame(const std::vector<std::uint8_t>& raw, const char* words) {
        std::size_t at = 0;
        int format = 0, orientation = 0;
        long long width = 0, height = 0;
        if (std::sscanf(words, "%zu,%zu,%lld,%lld,%zu,%d,%d", &at, &pixels.size, &width, &height, &pixels.stride, &format, &orientation) != 7 ||
            at + pixels.size > raw.size())
            throw std::runtime_error("no such view");
        bytes.assign(raw.data() + at, raw.data() + at + pixels.size);
        pixels.data = bytes.data();
        pixels.width = width;
        pixels.height = height;
        pixels.format = static_cast<PixelFormat>(format);
        pixels.orientation = static_cast<std::uint8_t>(orientation);
    }
};

/// Prepare each on its own, or classify all at once.
void frames(bool prepared, int argc, char** argv) {
    const std::vector<std::uint8_t> raw = raw_bytes(argv[3]);
    std::vector<Frame> kept;
    std::vector<Pixels> views;
    for (int i = 4; i < argc; ++i) kept.emplace_back(raw, argv[i]);
    for (const Frame& each : kept) views.push_back(each.pixels);
    if (prepared) {
        const Bundle bundle = Bundle::open(argv[2]);
        std::vector<char> out(bundle.preprocessing.bytes());
        for (const Pixels& each : views) {
            prepare(each, bundle.preprocessing, out.data());
            put(out.data(), out.size());
        }
        return;
    }
    for (const auto& found : Classifier(argv[2]).classify(views, 3))
        for (const Prediction& each : found) std::printf("%zu %a\n", each.index, static_cast<double>(each.probability));
}

/// Every thread runs the golden images one by one and must get what the first run gave.
int hammer(const char* bundle, int threads, int contexts) {
    Options options;
    options.contexts = contexts;
    options.threads = 1;
    const Classifier classifier(bundle, options);
    const Golden golden = classifier.bundle().golden();
    const std::size_t bytes = classifier.bundle().preprocessing.bytes();
    std::vector<std::vector<float>> expected;
    for (std::size_t i = 0; i < golden.count; ++i) expected.push_back(classifier.infer(golden.images.data() + i * bytes, 1));
    std::atomic<int> wrong = 0;
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t)
        running.emplace_back([&, t] {
            for (std::size_t k = 0; k < 25; ++k) {
                const std::size_t i = (k + static_cast<std::size_t>(t)) % golden.count;
                if (classifier.infer(golden.images.data() + i * bytes, 1) != expected[i]) ++wrong;
            }
        });
    for (std::thread& each : running) each.join();
    std::printf("%d wrong\n", wrong.load());
    return wrong == 0 ? 0 : 1;
}

/// Threads that all ask for what is refused: each gets an Error of its own, and the engine still runs after.
int refuse(const char* bundle, int threads) {
    Options options;
    options.threads = 1;
    const Classifier classifier(bundle, options);
    std::atomic<int> refused = 0;
    std::vector<std::thread> running;
    for (int t = 0; t < threads; ++t)
        running.emplace_back([&] {
            for (int k = 0; k < 10; ++k) {
                try {
                    (void)classifier.classify(Image{100, 100, std::vector<std::uint8_t>(10)});
                } catch (const Error&) {
                    ++refused;
                }
            }
        });
    for (std::thread& each : running) each.join();
    std::printf("%d refused, %zu found\n", refused.load(), classifier.classify(Image{1, 1, {1, 2, 3}}, 2).size());
    return 0;
}

int run(int argc, char** argv) {
    const std::string verb = argc > 1 ? argv[1] : "";
    if (verb == "decode" && argc == 3) {
        put(load_image(argv[2]));
    } else if (verb == "resize" && argc == 6) {
        put(resize(load_image(argv[5]), std::stoul(argv[3]), std::stoul(argv[4]), argv[2]));
    } else if (verb == "prepare" && argc == 4) {
        const Bundle bundle = Bundle::open(argv[2]);
        std::vector<char> out(bundle.preprocessing.bytes());
        prepare(load_image(argv[3]), bundle.preprocessing, out.data());
        put(out.data(), out.size());
    } else if ((verb == "pixels" || verb == "look") && argc >= 5) {
        frames(verb == "pixels", argc, argv);
    } else if (verb == "classify" && argc >= 4) {
        std::vector<Image> images;
        for (int i = 3; i < argc; ++i) images.push_back(load_image(argv[i]));
        for (const auto& found : Classifier(argv[2]).classify(images, 3))
            for (const Prediction& each : found) std::printf("%zu %a\n", each.index, static_cast<double>(each.probability));
    } else if (verb == "infer" && argc >= 5) {
        const Classifier classifier(argv[2]);
        std::ifstream file(argv[3], std::ios::binary);
        const std::vector<char> raw{std::istreambuf_iterator<char>(file), {}};
        for (int i = 4; i < argc; ++i) {
            const std::size_t count = std::stoul(argv[i]), bytes = count * classifier.bundle().preprocessing.bytes();
            const std::vector<char> images(raw.data(), raw.data() + std::min(bytes, raw.size()));  // no byte more
            const std::vector<float> logits = classifier.infer(images.data(), count);
            put(logits.data(), logits.size() * sizeof(float));
        }
    } else if (verb == "outputs" && argc == 5) {
        const Classifier classifier(argv[2]);
        std::ifstream file(argv[3], std::ios::binary);
        const std::vector<char> raw{std::istreambuf_iterator<char>(file), {}};
        const auto found = classifier.outputs(raw.data(), std::stoul(argv[4]));
        for (const Output& output : classifier.bundle().given())
            put(found.at(output.name).data(), found.at(output.name).size() * sizeof(float));
    } else if (verb == "hammer" && argc == 5) {
        return hammer(argv[2], std::stoi(argv[3]), std::stoi(argv[4]));
    } else if (verb == "refuse" && argc == 4) {
        return refuse(argv[2], std::stoi(argv[3]));
    } else if (verb == "orientation" && argc >= 3) {
        for (int i = 2; i < argc; ++i) {
            const Image image = load_image(argv[i]);
            std::fprintf(stdout, "%d\n", image.orientation);
            put(upright(image));
        }
    } else if (verb == "open" && argc == 3) {
        const Bundle bundle = Bundle::open(argv[2]);
        const Golden golden = bundle.golden();
        for (const std::string& name : bundle.classes) std::printf("%s\n", name.c_str());
        std::printf("%zu %zu %zu %zu\n", bundle.batch_min, bundle.batch_best, bundle.batch_max, golden.count);
    } else if (verb == "tensorrt" && argc == 3) {
        Options options;
        options.backend = Backend::tensorrt;
        const Classifier classifier(argv[2], options);
    } else {
        std::fprintf(stderr, "no such verb\n");
        return 3;
    }
    return 0;
}

}  // namespace

int main(int argc, char** argv) try {
    return run(argc, argv);
} catch (const sit_deploy::Error& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 2;
}
