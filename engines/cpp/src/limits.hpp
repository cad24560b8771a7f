// The largest numbers that are believed, which are those of the Python side: far above what anybody needs, far below what a
// machine chokes on. What asks for more is refused before memory is taken for it.
#pragma once

#include <cstddef>

namespace sit_deploy::limits {

constexpr std::size_t classes = 1'000'000;
constexpr std::size_t side = 8192;             // of a network's input, in pixels
constexpr std::size_t resized = 4 * side;      // the shorter side before the crop
constexpr std::size_t batch = 65'536;
constexpr std::size_t golden = 1024;           // images whose logits a bundle carries
constexpr std::size_t pixels = 178'956'970;    // of a picture: where Pillow takes a file for a decompression bomb
constexpr std::size_t image_bytes = std::size_t{1} << 30;     // of a picture's file
constexpr std::size_t manifest_bytes = std::size_t{16} << 20;
constexpr std::size_t golden_bytes = std::size_t{2} << 30;    // of golden.npz
constexpr int contexts = 1024;                 // of an engine
constexpr int threads = 4096;

}  // namespace sit_deploy::limits
