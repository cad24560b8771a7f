#include "fuzz_targets.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include <unistd.h>

#include "exif.hpp"
#include "files.hpp"
#include "json.hpp"
#include "manifest.hpp"
#include "npz.hpp"
#include "sit_deploy/classifier.hpp"

namespace sit_deploy::fuzz {
namespace {

/// Numbers, and what is left, of an input: 0 where it is used up.
class Input {
public:
    Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

    std::uint8_t byte() {
        if (left_ == 0) return 0;
        --left_;
        return *data_++;
    }

    std::size_t number(int bytes) {
        std::size_t value = 0;
        for (int i = 0; i < bytes; ++i) value = value << 8 | byte();
        return value;
    }

    /// A size as people pass it: mostly small, at times as wrong as can be.
    std::size_t size() {
        const std::uint8_t kind = byte();
        if (kind < 192) return kind;
        return kind < 240 ? number(2) : number(8);
    }

    std::vector<std::uint8_t> rest() const { return {data_, data_ + left_}; }

private:
    const std::uint8_t* data_;
    std::size_t left_;
};

void expect(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "does not hold: %s\n", what);
    std::abort();
}

void json_text(const std::uint8_t* data, std::size_t size) {
    const json::Value value = json::parse({reinterpret_cast<const char*>(data), size});
    const std::string canonical = value.canonical();
    expect(json::parse(canonical).canonical() == canonical, "canonical JSON is its own canonical form");
}

void npz(const std::uint8_t* data, std::size_t size) {
    const std::vector<std::uint8_t> archive(data, data + size);
    for (const char* name : {"images", "logits"}) (void)read_npz(archive, name);
}

void picture(const std::uint8_t* data, std::size_t size) {
    const Image image = decode(data, size);
    expect(image.rgb.size() == 3 * image.width * image.height, "an image has three bytes a pixel");
    if (image.rgb.size() < 1 << 20) (void)upright(image);
}

void exif(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const int found[] = {orientation_of(text, {}), orientation_of({}, text), orientation_of(text, text)};
    for (const int each : found) expect(each >= 1 && each <= 8, "an orientation is 1 to 8");
}

Preprocessing preprocessing(Input& in) {
    static const char* const filters[] = {"bilinear", "bicubic", "lanczos", "nearest"};
    Preprocessing how;
    how.height = in.size();
    how.width = in.size();
    how.resize = in.size();
    how.interpolation = filters[in.byte() % 4];
    how.pixels = (in.byte() & 1) != 0;
    const unsigned char flags = in.byte();
    how.upright = (flags & 1) != 0;
    how.squash = (flags & 2) != 0;
    how.crop_floor = (flags & 4) != 0;
    how.mean = {0.5F, 0.5F, 0.5F};
    how.std = {0.5F, 0.5F, static_cast<float>(in.byte())};
    return how;
}

/// An image that may say of itself what is not so.
Image image(Input& in) {
    Image made{in.size(), in.size(), {}, static_cast<std::uint8_t>(in.byte() % 10)};
    const bool honest = in.byte() < 224 && made.width < 4096 && made.height < 4096 && made.width * made.height < 1 << 16;
    made.rgb = in.rest();
    if (honest) made.rgb.resize(3 * made.width * made.height, 77);
    return made;
}

void preparing(const std::uint8_t* data, std::size_t size) {
    Input in(data, size);
    const Preprocessing how = preprocessing(in);
    // what is large and right takes long, and is not what is looked for
    const bool large = how.bytes() > 1 << 20 || how.resize > 4096;
    std::vector<std::uint8_t> out(large ? 1 : how.bytes());
    if (large && how.height >= 1 && how.height <= 8192 && how.width >= 1 && how.width <= 8192 && how.resize <= 32768) return;
    prepare(image(in), how, out.data());
}

/// Pixels that say of themselves what is not so; the memory has what they say, and no byte more.
void raw_pixels(const std::uint8_t* data, std::size_t size) {
    Input in(data, size);
    Preprocessing how = preprocessing(in);
    if (how.height > 64 || how.width > 64 || how.resize > 512) return;  // preparing() has these
    Pixels pixels;
    pixels.width = static_cast<std::int64_t>(in.size());
    pixels.height = static_cast<std::int64_t>(in.size());
    pixels.stride = in.size();
    pixels.format = static_cast<PixelFormat>(in.byte() % 6);
    pixels.orientation = static_cast<std::uint8_t>(in.byte() % 10);
    const bool honest = in.byte() < 224 && pixels.width < 256 && pixels.height >= 0 && pixels.height < 256 && pixels.stride < 1024;
    std::vector<std::uint8_t> memory = in.rest();
    if (honest) memory.resize(pixels.stride * static_cast<std::size_t>(pixels.height), 77);
    pixels.data = memory.data();
    pixels.size = memory.size();
    std::vector<std::uint8_t> out(how.bytes());
    prepare(pixels, how, out.data());
    Image same = upright(pixels);
    if (!how.upright) {
        Pixels stored = pixels;
        stored.orientation = 1;
        same = upright(stored);
    }
    std::vector<std::uint8_t> expected(how.bytes());
    prepare(same, how, expected.data());
    expect(out == expected, "pixels are prepared as the image that they are");
}

void resizing(const std::uint8_t* data, std::size_t size) {
    static const char* const filters[] = {"bilinear", "bicubic", "lanczos", ""};
    Input in(data, size);
    const std::size_t width = in.size(), height = in.size();
    if (width <= 1 << 28 && height <= 1 << 28 && width * height > 1 << 18 && width * height <= 178956970) return;  // right, and slow
    const char* const filter = filters[in.byte() % 4];
    const Image out = resize(image(in), width, height, filter);
    expect(out.width == width && out.height == height && out.rgb.size() == 3 * width * height, "resized to what was asked");
}

/// A folder of this process for a bundle, which goes with it.
struct Folder {
    std::filesystem::path path = std::filesystem::temp_directory_path() / ("sit_fuzz." + std::to_string(::getpid()));
    Folder() { std::filesystem::create_directories(path); }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { std::filesystem::remove_all(path); }

    void write(const char* name, std::string_view text) const {
        std::ofstream(path / name, std::ios::binary).write(text.data(), static_cast<std::streamsize>(text.size()));
    }
};

/// The parts of an input, which a zero byte divides: a manifest, and what golden.npz shall be.
std::pair<std::string_view, std::string_view> parts(const std::uint8_t* data, std::size_t size) {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    const std::size_t cut = std::min(text.find('\0'), size);
    return {text.substr(0, cut), text.substr(std::min(cut + 1, size))};
}

/// A manifest as someone writes it who can compute hashes: with the right digest, and of golden.npz the right hash.
void bundle(const std::uint8_t* data, std::size_t size) {
    static const Folder folder;
    const auto [text, golden] = parts(data, size);
    json::Value manifest = json::parse(text);
    for (auto& [key, files] : manifest.members)
        for (auto& [name, facts] : files.members)
            if (key == "files" && (name == "golden.npz" || name == "model.onnx"))
                for (auto& [fact, value] : facts.members)
                    if (fact == "sha256")
                        value.token = '"' + (name == "model.onnx" ? sha256("", 0) : sha256(golden.data(), golden.size())) + '"';
    const std::string fields = manifest.canonical("digest");
    const std::string digest = "\"digest\":\"" + sha256(fields.data(), fields.size()) + "\"}";
    folder.write("manifest.json", fields.size() > 2 ? fields.substr(0, fields.size() - 1) + "," + digest : fields);
    folder.write("model.onnx", "");
    folder.write("golden.npz", golden);
    const Bundle opened = Bundle::open(folder.path);
    const Golden found = opened.golden();
    expect(found.logits.size() == found.count * opened.classes.size(), "a logit for each class");
    for (const Output& output : opened.given())
        expect(found.outputs.at(output.name).size() == found.count * output.values(), "outputs as large as they should be");
    expect(found.images.size() == found.count * opened.preprocessing.bytes(), "images as large as they should be");
}

/// Gives what an input says, NaN among it.
class Scripted final : public Engine {
public:
    Scripted(const Bundle& bundle, Input& in) : Engine(bundle), in_(in) {}
    [[nodiscard]] std::string name() const override { return "scripted"; }

private:
    void run(const void* images, std::size_t batch, float* logits) override {
        const auto* bytes = static_cast<const std::uint8_t*>(images);
        unsigned sum = 0;
        for (std::size_t i = 0; i < batch * image_bytes(); ++i) sum += bytes[i];  // every byte must be there
        for (std::size_t i = 0; i < batch * classes(); ++i) {
            const std::uint8_t kind = in_.byte();
            logits[i] = kind == 255 ? std::nanf("") : kind == 254 ? 3e38F : static_cast<float>(kind + sum % 2);
        }
    }

    Input& in_;
};

void classifying(const std::uint8_t* data, std::size_t size) {
    Input in(data, size);
    Bundle made;
    made.preprocessing = preprocessing(in);
    if (made.preprocessing.height > 64 || made.preprocessing.width > 64 || made.preprocessing.resize > 512) return;  // preparing() has these
    made.classes.resize(in.byte() % 16, "name");
    made.batch_min = in.byte() % 6;
    made.batch_best = in.byte() % 6;
    made.batch_max = in.byte() % 6;
    const std::size_t top = in.size(), count = in.byte() % 8;
    Input script = in;
    const Classifier classifier(made, std::make_unique<Scripted>(made, script));
    if ((in.byte() & 1) != 0) {
        const std::vector<std::uint8_t> images(count * made.preprocessing.bytes(), 3);
        expect(classifier.infer(images.data(), count).size() == count * made.classes.size(), "a logit for each class of each image");
        (void)classifier.infer(images.data(), std::numeric_limits<std::size_t>::max() - in.number(4));  // more than there can be
        return;
    }
    const auto found = classifier.classify(std::vector<Image>(count, image(in)), top);
    expect(found.size() == count, "an answer for each image");
    for (const auto& each : found) expect(each.size() == std::min(top, made.classes.size()), "as many classes as asked");
}

constexpr Target targets[] = {{"json", json_text},   {"npz", npz},           {"picture", picture}, {"exif", exif},
                              {"bundle", bundle},    {"prepare", preparing}, {"resize", resizing}, {"classify", classifying},
                              {"pixels", raw_pixels}};

}  // namespace

const Target& target(const char* name) {
    for (const Target& each : targets)
        if (name && std::strcmp(each.name, name) == 0) return each;
    std::fprintf(stderr, "no such target; there are");
    for (const Target& each : targets) std::fprintf(stderr, " %s", each.name);
    std::fprintf(stderr, "\n");
    std::exit(3);
}

void run(const Target& target, const std::uint8_t* data, std::size_t size) {
    try {
        target.run(data, size);
    } catch (const Error&) {
        // said in words: right
    } catch (const std::exception& error) {
        std::fprintf(stderr, "another type leaves the library: %s\n", error.what());
        std::abort();
    }
}

}  // namespace sit_deploy::fuzz
