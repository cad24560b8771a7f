// Arrays as NumPy's savez writes them: .npy files in a ZIP archive that is not compressed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace sit_deploy {

struct Array {
    std::string type;  ///< NumPy's: "<f4", "|u1"
    std::vector<std::size_t> shape;  ///< as the file says: whether `data` is as much is for the reader to see
    std::vector<std::uint8_t> data;
};

/// The array `name` of an archive. Throws Error: damaged, compressed, in Fortran order, twice there, or without it.
Array read_npz(const std::vector<std::uint8_t>& archive, const std::string& name);

}  // namespace sit_deploy
