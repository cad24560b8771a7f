#include "sit_deploy/bundle.hpp"

#include <cmath>
#include <cstring>
#include <map>

#include "boundary.hpp"
#include "checked.hpp"
#include "files.hpp"
#include "limits.hpp"
#include "manifest.hpp"
#include "npz.hpp"
#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

namespace fs = std::filesystem;

constexpr char again[] = "; copy it again or build the bundle again";

void check_files(const fs::path& folder, const json::Value& files) {
    for (const auto& [name, facts] : files.members) {
        const fs::path file = folder / name;
        std::error_code ignored;
        // a name with a folder in it leads out of the bundle; one with a zero byte is another name to the system
        const bool plain = fs::path(name).filename() == name && name.find('\0') == std::string::npos;
        if (!plain || !fs::is_regular_file(file, ignored))
            throw Error("bundle " + folder.string() + " lacks its file " + name + again);
        if (sha256_of_file(file) != facts.at("sha256").string())
            throw Error("bundle " + folder.string() + " was changed: " + name + " does not match its hash" + again);
    }
}

/// Whether an array is of this type and shape, and there is as much of it as that takes.
bool is(const Array& array, const std::string& type, const std::vector<std::size_t>& shape) {
    std::optional<std::size_t> bytes = type == "|u1" ? 1 : sizeof(float);
    for (const std::size_t extent : shape) bytes = bytes ? product({*bytes, extent}) : bytes;
    return array.type == type && array.shape == shape && bytes == array.data.size();
}

void check_finite(const std::vector<std::uint8_t>& floats, const char* name) {
    for (std::size_t at = 0; at + sizeof(float) <= floats.size(); at += sizeof(float)) {
        float value = 0;
        std::memcpy(&value, floats.data() + at, sizeof value);
        if (!std::isfinite(value)) throw Error(std::string("its ") + name + " hold NaN or infinity; build the bundle again");
    }
}

}  // namespace

std::size_t Preprocessing::bytes() const {
    return checked_product("bytes of an image", {3, height, width, pixels ? 1 : sizeof(float)});
}

std::size_t Output::values() const {
    std::optional<std::size_t> count = 1;
    for (const std::size_t extent : shape) count = count ? product({*count, extent}) : count;
    if (!count) throw Error("an output has more numbers than can be counted");
    return *count;
}

std::vector<Output> Bundle::given() const {
    return outputs.empty() ? std::vector<Output>{{"logits", {classes.size()}}} : outputs;
}

Bundle Bundle::open(const fs::path& folder) {
    return at_boundary(folder.string(), [&] {
        const fs::path path = folder / "manifest.json";
        std::error_code ignored;
        if (!fs::is_regular_file(path, ignored))
            throw Error(folder.string() + " is not a bundle: it has no manifest.json; make one with `sit-deploy build`");
        const std::vector<std::uint8_t> text = read_file(path, limits::manifest_bytes);
        Bundle bundle;
        json::Value manifest;
        try {
            manifest = verified_manifest({reinterpret_cast<const char*>(text.data()), text.size()});
            bundle = read_manifest(folder, manifest);
        } catch (const Error& error) {
            throw Error(path.string() + " " + error.what() + again);
        }
        check_files(folder, manifest.at("files"));
        (void)bundle.golden();
        return bundle;
    });
}

Golden Bundle::golden() const {
    const fs::path file = path / "golden.npz";
    return at_boundary(file.string(), [&] {
        const std::vector<std::uint8_t> archive = read_file(file, limits::golden_bytes);
        try {
            return read_golden(archive, *this);
        } catch (const Error& error) {
            throw Error(file.string() + ": " + error.what());
        }
    });
}

Golden read_golden(const std::vector<std::uint8_t>& archive, const Bundle& bundle) {
    Array images = read_npz(archive, "images");
    const Preprocessing& how = bundle.preprocessing;
    Golden found;
    found.count = images.shape.empty() ? 0 : images.shape[0];
    const std::vector<std::size_t> shape = how.pixels ? std::vector{found.count, how.height, how.width, std::size_t{3}}
                                                      : std::vector{found.count, std::size_t{3}, how.height, how.width};
    if (found.count == 0 || found.count > limits::golden || !is(images, how.pixels ? "|u1" : "<f4", shape))
        throw Error("does not fit the manifest");
    for (const Output& output : bundle.given()) {
        const Array array = read_npz(archive, output.name);
        std::vector<std::size_t> whole{found.count};
        whole.insert(whole.end(), output.shape.begin(), output.shape.end());
        if (!is(array, "<f4", whole)) throw Error("does not fit the manifest");
        check_finite(array.data, output.name.c_str());
        std::vector<float>& values = found.outputs[output.name];
        values.resize(array.data.size() / sizeof(float));
        std::memcpy(values.data(), array.data.data(), array.data.size());
    }
    if (const auto logits = found.outputs.find("logits"); logits != found.outputs.end()) found.logits = logits->second;
    if (!how.pixels) check_finite(images.data, "images");
    found.images = std::move(images.data);
    return found;
}

namespace {

/// What a precision is allowed, of a table by its name.
float of_precision(const std::map<std::string, float>& known, const std::string& precision) {
    const auto found = known.find(precision);
    if (found == known.end()) throw Error(printable("precision " + precision + " is unknown here; upgrade this library"));
    return found->second;
}

}  // namespace

float Bundle::tolerance() const {
    static const std::map<std::string, float> known = {
        {"fp32", 1e-4F}, {"fp16", 0.05F}, {"bf16", 0.4F}, {"int8", 1.0F}, {"fp8", 1.5F}};
    return of_precision(known, precision);
}

float Bundle::least_cosine() const {
    static const std::map<std::string, float> known = {
        {"fp32", 0.99999F}, {"fp16", 0.9997F}, {"bf16", 0.99F}, {"int8", 0.9F}, {"fp8", 0.85F}};
    return of_precision(known, precision);
}

}  // namespace sit_deploy
