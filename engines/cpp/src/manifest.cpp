#include "manifest.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "checked.hpp"
#include "files.hpp"
#include "limits.hpp"
#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

namespace fs = std::filesystem;

constexpr const char* known_outputs[] = {"logits", "features", "cls", "patches"};
constexpr std::size_t schema = 2;  // 2 has outputs

/// What `read` makes of a field; an error names the field.
template <class Read>
auto field(const json::Value& group, const std::string& key, Read read) {
    const json::Value& value = group.at(key);
    try {
        return read(value);
    } catch (const Error& error) {
        throw Error("field " + key + ": " + error.what());
    }
}

std::string text(const json::Value& group, const std::string& key) {
    return field(group, key, [](const json::Value& value) { return value.string(); });
}

std::size_t whole(const json::Value& group, const std::string& key, std::size_t most) {
    return field(group, key, [&](const json::Value& value) {
        const std::size_t number = value.size();
        if (number < 1 || number > most)
            throw Error("must be from 1 to " + std::to_string(most) + ", and is " + std::to_string(number));
        return number;
    });
}

/// Height and width.
std::pair<std::size_t, std::size_t> pair_of_sizes(const json::Value& value) {
    const auto& items = value.row(2);
    return {items[0].size(), items[1].size()};
}

/// Of R, G and B, as float32.
std::array<float, 3> colours(const json::Value& group, const std::string& key) {
    return field(group, key, [](const json::Value& value) {
        std::array<float, 3> out{};
        const auto& items = value.row(out.size());
        for (std::size_t i = 0; i < out.size(); ++i) {
            const double number = items[i].number();
            if (std::fabs(number) > 1e6) throw Error("has " + items[i].token + ", which no colour has");  // before float: it may not hold it
            out[i] = static_cast<float>(number);
        }
        return out;
    });
}

/// Whether a field says `other` in place of `usual`, which is also what it says where it is not there.
bool is_other(const json::Value& fields, const std::string& name, const std::string& usual, const std::string& other) {
    const std::string said = fields.find(name) ? text(fields, name) : usual;
    if (said != usual && said != other) throw Error("has " + name + " unknown here (" + said + "); upgrade this library");
    return said == other;
}

Preprocessing read_preprocessing(const json::Value& fields) {
    static const char* const known[] = {"size", "resize", "interpolation", "mean", "std", "layout", "dtype", "orientation", "crop_mode", "crop_offset"};
    for (const auto& [name, value] : fields.members)  // one that is passed over would give other pixels without a word
        if (std::find(std::begin(known), std::end(known), name) == std::end(known))
            throw Error("has preprocessing unknown here (" + name + "); upgrade this library");
    Preprocessing how;
    const auto size = field(fields, "size", pair_of_sizes);
    how.height = size.first;
    how.width = size.second;
    how.resize = whole(fields, "resize", limits::resized);
    how.interpolation = text(fields, "interpolation");
    how.mean = colours(fields, "mean");
    how.std = colours(fields, "std");
    const std::string form = text(fields, "layout") + " " + text(fields, "dtype");
    if (form != "NCHW float32" && form != "NHWC uint8") throw Error("has an input unknown here (" + form + "); upgrade this library");
    how.pixels = form == "NHWC uint8";
    // what is not there is what was done before there was a choice
    how.upright = is_other(fields, "orientation", "stored", "exif");
    how.squash = is_other(fields, "crop_mode", "center", "squash");
    how.crop_floor = is_other(fields, "crop_offset", "round", "floor");
    return how;
}

/// A file that the manifest has a hash for, so that nothing is opened unchecked.
fs::path listed(const fs::path& folder, const json::Value& manifest, const std::string& name) {
    if (!manifest.at("files").find(name)) throw Error("lists no hash for " + name);
    return folder / name;
}

/// None where the manifest tells of none: then that is the logits alone.
std::vector<Output> read_outputs(const json::Value& manifest) {
    const json::Value* listed = manifest.find("outputs");
    if (!listed || listed->kind == json::Value::Kind::null) return {};
    return field(manifest, "outputs", [](const json::Value& value) {
        std::vector<Output> found;
        if (value.kind != json::Value::Kind::array || value.items.empty() || value.items.size() > std::size(known_outputs))
            throw Error("must be 1 to " + std::to_string(std::size(known_outputs)) + " outputs");
        for (const json::Value& each : value.items) {
            Output output{text(each, "name"), {}};
            if (text(each, "dtype") != "float32") throw Error("has an output of a type unknown here; upgrade this library");
            const json::Value& shape = each.at("shape");
            if (shape.kind != json::Value::Kind::array) throw Error("has an output without a shape");
            for (const json::Value& extent : shape.items) output.shape.push_back(extent.size());
            found.push_back(std::move(output));
        }
        return found;
    });
}

std::vector<std::string> read_classes(const json::Value& manifest) {
    const std::size_t count = whole(manifest.at("model"), "num_classes", limits::classes);
    std::vector<std::string> names;
    const json::Value& listed_names = manifest.at("classes");
    if (listed_names.kind == json::Value::Kind::null || (listed_names.kind == json::Value::Kind::array && listed_names.items.empty())) {
        for (std::size_t i = 0; i < count; ++i) names.push_back(std::to_string(i));
        return names;
    }
    return field(manifest, "classes", [&](const json::Value& value) {
        if (value.kind != json::Value::Kind::array || value.items.size() != count)
            throw Error("contradicts itself: it should have " + std::to_string(count) + " names");
        for (const json::Value& name : value.items) names.push_back(name.string());
        return names;
    });
}

}  // namespace

bool has_logits(const Bundle& bundle) {
    return bundle.outputs.empty() ||
           std::any_of(bundle.outputs.begin(), bundle.outputs.end(), [](const Output& output) { return output.name == "logits"; });
}

json::Value verified_manifest(std::string_view text) {
    json::Value manifest = json::parse(text);
    const std::size_t found = field(manifest, "schema", [](const json::Value& value) { return value.size(); });
    if (found < 1) throw Error("is no manifest of sit-deploy");
    if (found > schema) throw Error("is of a newer schema; upgrade this library");
    const std::string canonical = manifest.canonical("digest");
    if (sha256(canonical.data(), canonical.size()) != manifest.at("digest").string())
        throw Error("was changed: it does not match its digest");
    return manifest;
}

Bundle read_manifest(const fs::path& folder, const json::Value& manifest) {
    Bundle bundle;
    bundle.path = folder;
    bundle.model = text(manifest.at("model"), "name");
    bundle.precision = text(manifest, "precision");
    const json::Value& engine = manifest.at("engine");
    bundle.engine_kind = text(engine, "kind");
    bundle.engine_version = text(engine, "version");
    bundle.engine_target = text(engine, "target");
    bundle.engine_file = listed(folder, manifest, text(engine, "file"));
    bundle.model_file = listed(folder, manifest, "model.onnx");
    listed(folder, manifest, "golden.npz");
    for (const auto& [name, facts] : manifest.at("files").members) (void)text(facts, "sha256");
    const json::Value& batch = manifest.at("batch");
    const bool fixed = batch.find("size") != nullptr;
    bundle.batch_min = whole(batch, fixed ? "size" : "min", limits::batch);
    bundle.batch_best = whole(batch, fixed ? "size" : "opt", limits::batch);
    bundle.batch_max = whole(batch, fixed ? "size" : "max", limits::batch);
    bundle.outputs = read_outputs(manifest);
    if (has_logits(bundle)) bundle.classes = read_classes(manifest);
    bundle.preprocessing = read_preprocessing(manifest.at("preprocessing"));
    const auto size = field(manifest.at("model"), "image_size", pair_of_sizes);
    if (size != std::pair(bundle.preprocessing.height, bundle.preprocessing.width))
        throw Error("contradicts itself: preprocessing.size is not model.image_size");
    check(bundle);
    return bundle;
}

void check(const Preprocessing& how) {
    const auto within = [](std::size_t value, std::size_t most) { return value >= 1 && value <= most; };
    if (!within(how.height, limits::side) || !within(how.width, limits::side))
        throw Error("field size: an input is 1 to " + std::to_string(limits::side) + " pixels high and wide, not " +
                    std::to_string(how.height) + " x " + std::to_string(how.width));
    if (!within(how.resize, limits::resized) || how.resize < std::max(how.height, how.width))
        throw Error("field resize: must be from the crop's " + std::to_string(std::max(how.height, how.width)) + " to " +
                    std::to_string(limits::resized) + " pixels, and is " + std::to_string(how.resize));
    if (how.interpolation != "bilinear" && how.interpolation != "bicubic" && how.interpolation != "lanczos")
        throw Error("field interpolation: " + how.interpolation + " is unknown here; it must be bilinear, bicubic or lanczos");
    const auto finite = [](float value) { return std::isfinite(value); };
    if (!std::all_of(how.mean.begin(), how.mean.end(), finite)) throw Error("field mean: must be three numbers");
    const auto divides = [](float value) { return std::isfinite(value) && value > 0; };
    if (!std::all_of(how.std.begin(), how.std.end(), divides)) throw Error("field std: must be three numbers above 0");
}

namespace {

/// Outputs as whoever filled the bundle in says: known, each once, of extents that can be, logits of its classes.
void check_outputs(const Bundle& bundle) {
    for (std::size_t i = 0; i < bundle.outputs.size(); ++i) {
        const Output& output = bundle.outputs[i];
        if (std::find(std::begin(known_outputs), std::end(known_outputs), output.name) == std::end(known_outputs))
            throw Error(printable("field outputs: " + output.name + " is unknown here; upgrade this library"));
        for (std::size_t k = 0; k < i; ++k)
            if (bundle.outputs[k].name == output.name) throw Error("field outputs: " + output.name + " is there twice");
        if (output.shape.size() != (output.name == "patches" ? 2U : 1U))
            throw Error("field outputs: " + output.name + " has a shape that it cannot have");
        for (const std::size_t extent : output.shape)
            if (extent < 1 || extent > limits::side * limits::side)
                throw Error("field outputs: " + output.name + " must be from 1 to " + std::to_string(limits::side * limits::side) + " long");
        if (output.name == "logits" && output.shape[0] != bundle.classes.size())
            throw Error("field outputs: logits must be as many as there are classes");
    }
}

}  // namespace

void check(const Bundle& bundle) {
    check(bundle.preprocessing);
    if (has_logits(bundle) && (bundle.classes.empty() || bundle.classes.size() > limits::classes))
        throw Error("field classes: must be 1 to " + std::to_string(limits::classes));
    check_outputs(bundle);
    if (bundle.batch_min < 1 || bundle.batch_min > bundle.batch_best || bundle.batch_best > bundle.batch_max ||
        bundle.batch_max > limits::batch)
        throw Error("field batch: must be 1 <= min <= opt <= max <= " + std::to_string(limits::batch));
    // so that what is allocated for a batch later can be counted
    (void)checked_product("bytes of a batch", {bundle.batch_max, bundle.preprocessing.bytes()});
    if (has_logits(bundle)) (void)checked_product("logits of a batch", {bundle.batch_max, bundle.classes.size(), sizeof(float)});
    std::size_t values = 0;
    for (const Output& output : bundle.given()) values += output.values();  // four of at most 2^56
    (void)checked_product("outputs of a batch", {bundle.batch_max, values, sizeof(float)});
}

}  // namespace sit_deploy
