// Reading files whole, and their SHA-256.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace sit_deploy {

/// Throws Error where the file is missing, no ordinary file (a pipe or a device has no end), larger than `most` bytes, or
/// cannot be read.
std::vector<std::uint8_t> read_file(const std::filesystem::path& path, std::size_t most);

/// In lower-case hexadecimal.
std::string sha256(const void* data, std::size_t size);

/// Of a file, read in pieces: a plan may be larger than memory should give. Throws Error as read_file().
std::string sha256_of_file(const std::filesystem::path& path);

}  // namespace sit_deploy
