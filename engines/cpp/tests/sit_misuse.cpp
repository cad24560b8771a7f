// Every public function with arguments that cannot be right: each must throw Error, and prints its message after a name.
// "BUNDLE" is a good one. What gets past, or throws another type, is printed in capitals.
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>

#include "sit_deploy/classifier.hpp"

namespace {

using namespace sit_deploy;

constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();

void refused(const char* name, const std::function<void()>& work) {
    try {
        work();
        std::printf("%s\tNOT REFUSED\n", name);
    } catch (const Error& error) {
        std::printf("%s\t%s\n", name, error.what());
    } catch (const std::exception& error) {
        std::printf("%s\tANOTHER TYPE: %s\n", name, error.what());
    }
}

Preprocessing with(Preprocessing how, const std::function<void(Preprocessing&)>& change) {
    change(how);
    return how;
}

Bundle with(Bundle bundle, const std::function<void(Bundle&)>& change) {
    change(bundle);
    return bundle;
}

Options with(const std::function<void(Options&)>& change) {
    Options options;
    change(options);
    return options;
}

/// An engine of a bundle that runs nothing.
class Still final : public Engine {
public:
    explicit Still(const Bundle& bundle) : Engine(bundle) {}
    [[nodiscard]] std::string name() const override { return "still"; }

private:
    void run(const void*, std::size_t batch, float* logits) override {
        for (std::size_t i = 0; i < batch * values(); ++i) logits[i] = std::nanf("");
    }
};

void images(const Preprocessing& how) {
    const Image short_of{100, 100, std::vector<std::uint8_t>(10)}, good{2, 2, std::vector<std::uint8_t>(12)};
    const Image bad[] = {short_of,
                         {2, 2, std::vector<std::uint8_t>(13)},
                         {0, 2, {}},
                         {huge / 3 + 1, 1, std::vector<std::uint8_t>(3)},                  // 3 * width wraps to less
                         {std::size_t{1} << 32, std::size_t{1} << 32, {}},                 // and so does width * height
                         {2, 2, std::vector<std::uint8_t>(12), 9}};
    std::vector<std::uint8_t> out(how.bytes());
    for (const Image& image : bad) {
        refused("resize", [&] { (void)resize(image, 8, 8, "bicubic"); });
        refused("upright", [&] { (void)upright(image); });
        refused("crop_pixels", [&] { (void)crop_pixels(image, how); });
        refused("prepare", [&] { prepare(image, how, out.data()); });
    }
    for (const std::size_t side : {std::size_t{0}, huge, std::size_t{1} << 63})
        for (const char* name : {"bicubic", "lanczos"}) {
            refused("resize to", [&] { (void)resize(good, side, 8, name); });
            refused("resize to", [&] { (void)resize(good, 8, side, name); });
        }
    refused("filter", [&] { (void)resize(good, 8, 8, "nearest"); });
    refused("no memory", [&] { prepare(good, how, nullptr); });
    refused("no memory", [&] { (void)decode(nullptr, 100); });
    const Preprocessing wrong[] = {
        with(how, [](Preprocessing& p) { p.width = 0; }),
        with(how, [](Preprocessing& p) { p.height = huge; }),
        with(how, [](Preprocessing& p) { p.resize = p.width - 1; }),
        with(how, [](Preprocessing& p) { p.resize = 100000; }),
        with(how, [](Preprocessing& p) { p.std[1] = 0; }),
        with(how, [](Preprocessing& p) { p.mean[2] = std::nanf(""); }),
        with(how, [](Preprocessing& p) { p.interpolation = "box"; }),
    };
    for (const Preprocessing& each : wrong) {
        refused("prepare so", [&] { prepare(good, each, out.data()); });
        refused("crop so", [&] { (void)crop_pixels(good, each); });
    }
    refused("bytes", [&] { (void)with(how, [](Preprocessing& p) { p.height = p.width = huge / 2; }).bytes(); });
}

/// Two good rows of two pixels in 16 bytes, changed.
Pixels with(const std::vector<std::uint8_t>& memory, const std::function<void(Pixels&)>& change) {
    Pixels pixels{memory.data(), memory.size(), 2, 2, 8, PixelFormat::rgb};
    change(pixels);
    return pixels;
}

void raw_pixels(const Classifier& classifier) {
    const Preprocessing& how = classifier.bundle().preprocessing;
    constexpr std::int64_t far = std::numeric_limits<std::int64_t>::max(), wraps = std::int64_t{1} << 32;
    const std::vector<std::uint8_t> memory(14);  // the last row is not filled up
    const Pixels bad[] = {
        with(memory, [](Pixels& p) { p.data = nullptr; }),
        Pixels{},
        with(memory, [](Pixels& p) { p.size = 13; }),
        with(memory, [](Pixels& p) { p.size = 0; }),
        with(memory, [](Pixels& p) { p.format = PixelFormat::bgra; }),  // a byte too few for the last pixels
        with(memory, [](Pixels& p) { p.stride = 5; }),
        with(memory, [](Pixels& p) { p.stride = 0; }),
        with(memory, [](Pixels& p) { p.stride = huge - 7; }),
        with(memory, [](Pixels& p) { p.stride = huge / 2 + 1, p.height = 3; }),  // twice it wraps to 0
        with(memory, [](Pixels& p) { p.width = 0; }),
        with(memory, [](Pixels& p) { p.height = 0; }),
        with(memory, [](Pixels& p) { p.width = -2; }),
        with(memory, [](Pixels& p) { p.height = -2; }),
        with(memory, [](Pixels& p) { p.width = far; }),
        with(memory, [](Pixels& p) { p.height = far; }),
        with(memory, [](Pixels& p) { p.width = p.height = wraps; }),
        with(memory, [](Pixels& p) { p.width = -1, p.height = -1; }),
        with(memory, [](Pixels& p) { p.format = static_cast<PixelFormat>(5); }),
        with(memory, [](Pixels& p) { p.format = static_cast<PixelFormat>(-1); }),
        with(memory, [](Pixels& p) { p.orientation = 0; }),
    };
    const Pixels good = with(memory, [](Pixels&) {});
    std::vector<std::uint8_t> out(how.bytes());
    prepare(good, how, out.data());
    for (const Pixels& each : bad) {
        refused("prepare pixels", [&] { prepare(each, how, out.data()); });
        refused("crop pixels", [&] { (void)crop_pixels(each, how); });
        refused("upright pixels", [&] { (void)upright(each); });
        refused("classify pixels", [&] { (void)classifier.classify(each); });
        refused("classify several", [&] { (void)classifier.classify(std::vector<Pixels>{good, each}); });
    }
    refused("no memory", [&] { prepare(good, how, nullptr); });
    refused("classify none", [&] { (void)classifier.classify(std::vector<Pixels>{}); });
    refused("no class", [&] { (void)classifier.classify(good, 0); });
    refused("no class", [&] { (void)classifier.classify(Image{2, 2, std::vector<std::uint8_t>(12)}, 0); });
    refused("view", [] { (void)view(Image{100, 100, std::vector<std::uint8_t>(10)}); });
}

void engines(const Bundle& bundle) {
    for (const Bundle& each : {with(bundle, [](Bundle& b) { b.classes.clear(); }), with(bundle, [](Bundle& b) { b.batch_min = 0; }),
                               with(bundle, [](Bundle& b) { b.batch_max = huge; }), with(bundle, [](Bundle& b) { b.batch_min = b.batch_max + 1; }),
                               with(bundle, [](Bundle& b) { b.preprocessing.width = 0; }), with(bundle, [](Bundle& b) { b.model_file = "/dev/null/x"; })})
        refused("open_engine", [&] { (void)open_engine(each); });
    for (const Options& each : {with([](Options& o) { o.contexts = 0; }), with([](Options& o) { o.contexts = 1 << 30; }),
                                with([](Options& o) { o.threads = -1; }), with([](Options& o) { o.threads = 1'000'000; }),
                                with([](Options& o) { o.backend = static_cast<Backend>(7); })})
        refused("options", [&] { (void)open_engine(bundle, each); });
    refused("engine of another bundle", [&] {
        const Classifier other(bundle, std::make_unique<Still>(with(bundle, [](Bundle& b) { b.classes.emplace_back("one more"); })));
    });
    const auto outputs = [&](std::vector<Output> each) { return with(bundle, [&](Bundle& b) { b.outputs = std::move(each); }); };
    const std::size_t classes = bundle.classes.size();
    for (const Bundle& each : {outputs({{"tokens", {3}}}), outputs({{"logits", {classes + 1}}}), outputs({{"features", {0}}}),
                               outputs({{"features", {huge}}}), outputs({{"features", {3, 4}}}), outputs({{"patches", {4}}}),
                               outputs({{"cls", {3}}, {"cls", {3}}}), outputs({{"patches", {1U << 26, 1U << 26}}})})
        refused("outputs", [&] { (void)open_engine(each); });
    const Bundle embedding = with(outputs({{"features", {3}}}), [](Bundle& b) { b.classes.clear(); });
    refused("outputs of another graph", [&] { (void)open_engine(embedding); });
    refused("no logits", [&] {
        const Classifier one(embedding, std::make_unique<Still>(embedding));
        const std::vector<std::uint8_t> pixels(bundle.preprocessing.bytes());
        (void)one.infer(pixels.data(), 1);
    });
    refused("no engine", [&] { const Classifier none(bundle, nullptr); });
    const Classifier classifier(bundle, std::make_unique<Still>(bundle));
    const std::vector<std::uint8_t> pixels(bundle.preprocessing.bytes());
    raw_pixels(classifier);
    refused("infer none", [&] { (void)classifier.infer(pixels.data(), 0); });
    refused("infer", [&] { (void)classifier.infer(nullptr, 1); });
    for (const std::size_t count : {huge, huge / bundle.preprocessing.bytes() + 2, (huge >> 2) / bundle.classes.size() + 2})
        refused("infer many", [&] { (void)classifier.infer(pixels.data(), count); });
    refused("classify none", [&] { (void)classifier.classify(std::vector<Image>{}); });
    refused("classify", [&] { (void)classifier.classify(Image{100, 100, std::vector<std::uint8_t>(10)}); });
    refused("NaN logits", [&] { (void)classifier.classify(Image{1, 1, {1, 2, 3}}); });
    Still engine(bundle);
    std::vector<float> logits(bundle.batch_max * bundle.classes.size());
    refused("engine batch", [&] { engine.infer(pixels.data(), bundle.batch_max + 1, logits.data()); });
    refused("engine memory", [&] { engine.infer(pixels.data(), bundle.batch_max, nullptr); });
}

void files(const Bundle& bundle) {
    for (const std::string& path : {std::string("/dev/zero"), std::string("/"), std::string("/nowhere"), std::string(5000, 'x'), std::string()})
        refused("load_image", [&] { (void)load_image(path); });
    for (const std::string& path : {std::string("/dev/null"), std::string(5000, 'x'), std::string("\033[31m")})
        refused("open", [&] { (void)Bundle::open(path); });
    refused("golden", [&] { (void)with(bundle, [](Bundle& b) { b.path = "/nowhere"; }).golden(); });
    refused("golden so", [&] { (void)with(bundle, [](Bundle& b) { b.classes.emplace_back("one more"); }).golden(); });
    refused("golden so", [&] { (void)with(bundle, [](Bundle& b) { b.preprocessing.height = std::size_t{1} << 62; }).golden(); });
    refused("tolerance", [&] { (void)with(bundle, [](Bundle& b) { b.precision = "int2\n\033[31m"; }).tolerance(); });
}

}  // namespace

int main(int, char** argv) {
    const Bundle bundle = Bundle::open(argv[1]);
    images(bundle.preprocessing);
    engines(bundle);
    files(bundle);
    return 0;
}
