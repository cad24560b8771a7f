#include "sit_deploy/bundle.hpp"

#include <cstring>
#include <map>

#include "files.hpp"
#include "json.hpp"
#include "npz.hpp"
#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t schema = 1;
constexpr char again[] = "; copy it again or build the bundle again";

Preprocessing read_preprocessing(const json::Value& fields) {
    Preprocessing how;
    how.height = fields.at("size").items.at(0).size();
    how.width = fields.at("size").items.at(1).size();
    how.resize = fields.at("resize").size();
    how.interpolation = fields.at("interpolation").string();
    for (std::size_t i = 0; i < 3; ++i) {
        how.mean[i] = static_cast<float>(fields.at("mean").items.at(i).number());
        how.std[i] = static_cast<float>(fields.at("std").items.at(i).number());
    }
    const std::string form = fields.at("layout").string() + " " + fields.at("dtype").string();
    if (form != "NCHW float32" && form != "NHWC uint8") throw Error("has an input unknown here (" + form + "); upgrade");
    how.pixels = form == "NHWC uint8";
    return how;
}

void check_files(const fs::path& folder, const json::Value& files) {
    for (const auto& [name, facts] : files.members) {
        const fs::path file = folder / name;
        if (fs::path(name).filename() != name || !fs::is_regular_file(file))
            throw Error("bundle " + folder.string() + " lacks its file " + name + again);
        if (sha256_of_file(file) != facts.at("sha256").string())
            throw Error("bundle " + folder.string() + " was changed: " + name + " does not match its hash" + again);
    }
}

/// A file that the manifest has a hash for, so that nothing is opened unchecked.
fs::path listed(const fs::path& folder, const json::Value& manifest, const std::string& name) {
    if (!manifest.at("files").find(name)) throw Error("lists no hash for " + name);
    return folder / name;
}

Bundle read(const fs::path& folder, const json::Value& manifest) {
    Bundle bundle;
    bundle.path = folder;
    bundle.model = manifest.at("model").at("name").string();
    bundle.precision = manifest.at("precision").string();
    const json::Value& engine = manifest.at("engine");
    bundle.engine_kind = engine.at("kind").string();
    bundle.engine_version = engine.at("version").string();
    bundle.engine_target = engine.at("target").string();
    bundle.engine_file = listed(folder, manifest, engine.at("file").string());
    bundle.model_file = listed(folder, manifest, "model.onnx");
    listed(folder, manifest, "golden.npz");
    const json::Value& batch = manifest.at("batch");
    const bool fixed = batch.find("size") != nullptr;
    bundle.batch_min = batch.at(fixed ? "size" : "min").size();
    bundle.batch_best = batch.at(fixed ? "size" : "opt").size();
    bundle.batch_max = batch.at(fixed ? "size" : "max").size();
    const std::size_t count = manifest.at("model").at("num_classes").size();
    for (const json::Value& name : manifest.at("classes").items) bundle.classes.push_back(name.string());
    if (bundle.classes.empty())
        for (std::size_t i = 0; i < count; ++i) bundle.classes.push_back(std::to_string(i));
    if (bundle.classes.size() != count || count == 0 || bundle.batch_min == 0 || bundle.batch_min > bundle.batch_max)
        throw Error("contradicts itself");
    bundle.preprocessing = read_preprocessing(manifest.at("preprocessing"));
    return bundle;
}

}  // namespace

Bundle Bundle::open(const fs::path& folder) {
    const fs::path path = folder / "manifest.json";
    if (!fs::is_regular_file(path))
        throw Error(folder.string() + " is not a bundle: it has no manifest.json; make one with `sit-deploy build`");
    const std::vector<std::uint8_t> text = read_file(path);
    try {
        const json::Value manifest = json::parse({reinterpret_cast<const char*>(text.data()), text.size()});
        if (manifest.at("schema").size() > schema) throw Error("is of a newer schema; upgrade this library");
        const std::string canonical = manifest.canonical("digest");
        if (sha256(canonical.data(), canonical.size()) != manifest.at("digest").string())
            throw Error("was changed: it does not match its digest");
        const Bundle bundle = read(folder, manifest);
        check_files(folder, manifest.at("files"));
        return bundle;
    } catch (const std::out_of_range&) {
        throw Error(path.string() + " lacks an entry" + again);
    } catch (const Error& error) {
        const std::string what = error.what();
        if (what.rfind("bundle ", 0) == 0) throw;
        throw Error(path.string() + " " + what + again);
    }
}

Golden Bundle::golden() const {
    const fs::path file = path / "golden.npz";
    try {
        const std::vector<std::uint8_t> archive = read_file(file);
        Array images = read_npz(archive, "images");
        const Array logits = read_npz(archive, "logits");
        Golden found;
        found.count = images.shape.empty() ? 0 : images.shape[0];
        const std::size_t floats = found.count * classes.size();
        if (found.count == 0 || images.type != (preprocessing.pixels ? "|u1" : "<f4") || logits.type != "<f4" ||
            images.data.size() != found.count * preprocessing.bytes() || logits.data.size() != floats * sizeof(float))
            throw Error("does not fit the manifest");
        found.images = std::move(images.data);
        found.logits.resize(floats);
        std::memcpy(found.logits.data(), logits.data.data(), logits.data.size());
        return found;
    } catch (const Error& error) {
        throw Error(file.string() + ": " + error.what());
    }
}

float Bundle::tolerance() const {
    static const std::map<std::string, float> known = {
        {"fp32", 1e-4F}, {"fp16", 0.05F}, {"bf16", 0.4F}, {"int8", 1.0F}, {"fp8", 1.5F}};
    const auto found = known.find(precision);
    if (found == known.end()) throw Error("precision " + precision + " is unknown here; upgrade this library");
    return found->second;
}

}  // namespace sit_deploy
