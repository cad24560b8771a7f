#include "npz.hpp"

#include <algorithm>
#include <charconv>

#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

constexpr std::uint32_t local_header = 0x04034b50, central_header = 0x02014b50, end_header = 0x06054b50;
constexpr std::size_t end_size = 22, central_size = 46, local_size = 30;

[[noreturn]] void damaged() { throw Error("not an archive of NumPy arrays"); }

std::uint64_t little(const std::vector<std::uint8_t>& data, std::size_t at, int bytes) {
    if (at > data.size() || data.size() - at < static_cast<std::size_t>(bytes)) damaged();
    std::uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; --i) value = value << 8 | data[at + static_cast<std::size_t>(i)];
    return value;
}

/// Offset and size of a stored file in the archive, by the directory at its end (PKWARE APPNOTE 6.3, 4.3).
std::pair<std::size_t, std::size_t> find_file(const std::vector<std::uint8_t>& zip, const std::string& name) {
    if (zip.size() < end_size) damaged();
    std::size_t end = zip.size() - end_size;
    while (little(zip, end, 4) != end_header)
        if (end-- == 0) damaged();
    std::size_t at = little(zip, end + 16, 4);
    for (std::uint64_t left = little(zip, end + 10, 2); left > 0; --left) {
        if (little(zip, at, 4) != central_header) damaged();
        const std::size_t name_size = little(zip, at + 28, 2);
        const std::size_t next = at + central_size + name_size + little(zip, at + 30, 2) + little(zip, at + 32, 2);
        if (next > zip.size()) damaged();
        const auto* start = reinterpret_cast<const char*>(zip.data()) + at + central_size;
        if (std::string(start, name_size) != name) {
            at = next;
            continue;
        }
        if (little(zip, at + 10, 2) != 0) throw Error(name + " is compressed; write it with numpy.savez");
        const std::size_t size = little(zip, at + 20, 4), local = little(zip, at + 42, 4);
        if (little(zip, local, 4) != local_header) damaged();
        const std::size_t data = local + local_size + little(zip, local + 26, 2) + little(zip, local + 28, 2);
        if (data > zip.size() || zip.size() - data < size) damaged();
        return {data, size};
    }
    throw Error("lacks the array " + name);
}

/// What follows `'key': ` in the header of an .npy file (NumPy Enhancement Proposal 1).
std::string after(const std::string& header, const std::string& key) {
    const std::size_t at = header.find("'" + key + "': ");
    if (at == std::string::npos) damaged();
    return header.substr(at + key.size() + 4);
}

}  // namespace

Array read_npz(const std::vector<std::uint8_t>& archive, const std::string& name) {
    const auto [start, size] = find_file(archive, name + ".npy");
    const std::string magic = "\x93NUMPY";
    if (size < 12 || !std::equal(magic.begin(), magic.end(), reinterpret_cast<const char*>(archive.data()) + start)) damaged();
    const bool short_header = archive[start + 6] == 1;
    const std::size_t header_at = start + (short_header ? 10 : 12);
    const std::size_t header_size = little(archive, start + 8, short_header ? 2 : 4);
    if (header_size > size || header_at + header_size > start + size) damaged();
    const std::string header(reinterpret_cast<const char*>(archive.data()) + header_at, header_size);
    if (after(header, "fortran_order").rfind("False", 0) != 0) damaged();
    Array array;
    const std::string type = after(header, "descr");
    array.type = type.substr(1, type.find('\'', 1) - 1);
    const std::string shape = after(header, "shape");
    const char* at = shape.data() + 1;
    const char* last = shape.data() + std::min(shape.find(')'), shape.size());
    while (at < last) {
        std::size_t extent = 0;
        const auto [end, error] = std::from_chars(at, last, extent);
        if (error != std::errc()) damaged();
        array.shape.push_back(extent);
        at = std::find_if(end, last, [](char c) { return c >= '0' && c <= '9'; });
    }
    const auto first = archive.begin() + static_cast<std::ptrdiff_t>(header_at + header_size);
    array.data.assign(first, archive.begin() + static_cast<std::ptrdiff_t>(start + size));
    return array;
}

}  // namespace sit_deploy
