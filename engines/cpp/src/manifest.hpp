// What a manifest must be: every field that is read here, with its bounds, and what must fit what.
#pragma once

#include <filesystem>
#include <string_view>

#include "json.hpp"
#include "sit_deploy/bundle.hpp"

namespace sit_deploy {

/// A manifest whose digest is right. Throws Error: no JSON, of a newer schema, or changed since it was written.
json::Value verified_manifest(std::string_view text);

/// The bundle that a manifest in `folder` tells of. Throws Error: a field is missing, of another kind or beyond its bounds,
/// or contradicts another.
Bundle read_manifest(const std::filesystem::path& folder, const json::Value& manifest);

/// Whether its engine gives scores of classes.
bool has_logits(const Bundle& bundle);

/// What preparing an image needs of its numbers, whoever wrote them. Throws Error as read_manifest().
void check(const Preprocessing& how);

/// The arrays of golden.npz. Throws Error: damaged, of other types or shapes than the bundle says, or with NaN in them.
Golden read_golden(const std::vector<std::uint8_t>& archive, const Bundle& bundle);

/// What running an engine needs of a bundle, whoever filled it in. Throws Error as read_manifest().
void check(const Bundle& bundle);

}  // namespace sit_deploy
