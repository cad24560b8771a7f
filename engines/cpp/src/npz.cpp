#include "npz.hpp"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "sit_deploy/error.hpp"

namespace sit_deploy {
namespace {

constexpr std::uint32_t local_header = 0x04034b50, central_header = 0x02014b50, end_header = 0x06054b50;
constexpr std::uint64_t end_size = 22, central_size = 46, local_size = 30;
constexpr std::uint64_t longest_comment = 0xFFFF;
constexpr std::uint64_t in_zip64 = 0xFFFFFFFF;  // a size or place that stands elsewhere, for archives of 4 GB and more

[[noreturn]] void damaged() { throw Error("not an archive of NumPy arrays"); }

/// A view of bytes, which every access is checked against. Places are 64 bits wide and sums of fields of 32: none wraps.
class Bytes {
public:
    explicit Bytes(std::string_view data) : data_(data) {}

    [[nodiscard]] std::uint64_t size() const { return data_.size(); }

    [[nodiscard]] std::string_view part(std::uint64_t at, std::uint64_t size) const {
        if (at > data_.size() || data_.size() - at < size) damaged();
        return data_.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(size));
    }

    [[nodiscard]] std::uint64_t little(std::uint64_t at, std::uint64_t bytes) const {
        std::uint64_t value = 0, shift = 0;
        for (const char byte : part(at, bytes)) {
            value |= static_cast<std::uint64_t>(static_cast<std::uint8_t>(byte)) << shift;
            shift += 8;
        }
        return value;
    }

private:
    std::string_view data_;
};

/// What is stored under a name in an archive, by the directory at its end (PKWARE APPNOTE 6.3, 4.3).
std::string_view find_file(const Bytes& zip, const std::string& name) {
    if (zip.size() < end_size) damaged();
    std::uint64_t end = zip.size() - end_size;
    const std::uint64_t last = end > longest_comment ? end - longest_comment : 0;
    while (zip.little(end, 4) != end_header)
        if (end-- == last) damaged();
    std::uint64_t at = zip.little(end + 16, 4);
    std::optional<std::string_view> found;
    for (std::uint64_t left = zip.little(end + 10, 2); left > 0; --left) {
        if (zip.little(at, 4) != central_header) damaged();
        const std::uint64_t name_size = zip.little(at + 28, 2);
        const std::uint64_t entry = at;
        at += central_size + name_size + zip.little(at + 30, 2) + zip.little(at + 32, 2);
        if (zip.part(entry + central_size, name_size) != name) continue;
        if (found) throw Error("has " + name + " twice");
        if (zip.little(entry + 10, 2) != 0) throw Error(name + " is compressed; write it with numpy.savez");
        if ((zip.little(entry + 8, 2) & 1) != 0) throw Error(name + " is encrypted");
        const std::uint64_t size = zip.little(entry + 20, 4), local = zip.little(entry + 42, 4);
        if (size == in_zip64 || local == in_zip64) throw Error(name + " is of 4 GB or more");
        if (zip.little(entry + 24, 4) != size || zip.little(local, 4) != local_header) damaged();
        const std::uint64_t local_name = zip.little(local + 26, 2);
        if (zip.part(local + local_size, local_name) != name) damaged();
        found = zip.part(local + local_size + local_name + zip.little(local + 28, 2), size);
    }
    if (!found) throw Error("lacks the array " + name);
    return *found;
}

/// What follows `'key': ` in the header of an .npy file (NumPy Enhancement Proposal 1).
std::string_view after(std::string_view header, const std::string& key) {
    const std::string spelled = "'" + key + "': ";
    const std::size_t at = header.find(spelled);
    if (at == std::string_view::npos) damaged();
    return header.substr(at + spelled.size());
}

/// The text between the first two characters of a kind.
std::string_view between(std::string_view text, char open, char close) {
    if (text.empty() || text[0] != open) damaged();
    const std::size_t end = text.find(close, 1);
    if (end == std::string_view::npos) damaged();
    return text.substr(1, end - 1);
}

/// "4, 3, 112, 112" or "4," as numbers.
std::vector<std::size_t> extents(std::string_view text) {
    std::vector<std::size_t> out;
    const char* at = text.data();
    const char* last = at + text.size();
    while (at != last) {
        std::size_t extent = 0;
        const auto [end, error] = std::from_chars(at, last, extent);
        if (error != std::errc() || (end != last && *end != ',')) damaged();
        out.push_back(extent);
        at = std::find_if(end, last, [](char c) { return c != ',' && c != ' '; });
    }
    return out;
}

}  // namespace

Array read_npz(const std::vector<std::uint8_t>& archive, const std::string& name) {
    const Bytes zip({reinterpret_cast<const char*>(archive.data()), archive.size()});
    const Bytes file(find_file(zip, name + ".npy"));
    if (file.part(0, 6) != "\x93NUMPY") damaged();
    const std::uint64_t version = file.little(6, 1);
    if (version < 1 || version > 3) throw Error(name + " is of a newer format");
    const std::uint64_t width = version == 1 ? 2 : 4;  // of the header's size
    const std::string_view header = file.part(8 + width, file.little(8, width));
    if (after(header, "fortran_order").rfind("False", 0) != 0) throw Error(name + " is in Fortran's order; write it in C's");
    Array array;
    array.type = between(after(header, "descr"), '\'', '\'');
    array.shape = extents(between(after(header, "shape"), '(', ')'));
    const std::uint64_t start = 8 + width + header.size();
    const std::string_view data = file.part(start, file.size() - start);
    array.data.assign(data.begin(), data.end());
    return array;
}

}  // namespace sit_deploy
