#include "exif.hpp"

#include <algorithm>
#include <cstring>

namespace sit_deploy {
namespace {

constexpr std::uint64_t orientation_tag = 0x0112;

/// Bytes of TIFF 6.0 in either order. A read beyond the end gives nothing.
struct Tiff {
    std::string_view data;
    bool big;

    [[nodiscard]] std::optional<std::string_view> part(std::uint64_t at, std::uint64_t size) const {
        if (at > data.size() || data.size() - at < size) return std::nullopt;
        return data.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(size));
    }

    /// The unsigned number that up to 8 bytes spell.
    [[nodiscard]] std::uint64_t number(std::string_view bytes) const {
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < bytes.size(); ++i)
            value = value << 8 | static_cast<std::uint8_t>(bytes[big ? i : bytes.size() - 1 - i]);
        return value;
    }
};

/// Bytes of one value of a type of TIFF; 0 for a type that is none.
std::uint64_t size_of(std::uint64_t type) {
    constexpr std::uint8_t sizes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
    return type < sizeof sizes ? sizes[type] : 0;
}

template <class To, class From>
To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to{};
    std::memcpy(&to, &from, sizeof to);
    return to;
}

/// The first value of a tag as a number; bytes and text are none, and 6.0 is 6, as Python's dictionaries have it.
double value_of(const Tiff& tiff, std::uint64_t type, std::string_view bytes) {
    const std::uint64_t raw = tiff.number(bytes.substr(0, static_cast<std::size_t>(size_of(type))));
    switch (type) {
        case 3: case 4: case 13: case 16: return static_cast<double>(raw);
        case 6: return bits_of<std::int8_t>(static_cast<std::uint8_t>(raw));
        case 8: return bits_of<std::int16_t>(static_cast<std::uint16_t>(raw));
        case 9: return bits_of<std::int32_t>(static_cast<std::uint32_t>(raw));
        case 11: return static_cast<double>(bits_of<float>(static_cast<std::uint32_t>(raw)));
        case 12: return bits_of<double>(raw);
        case 5: case 10: {
            const std::uint64_t above = tiff.number(bytes.substr(0, 4)), below = tiff.number(bytes.substr(4, 4));
            if (below == 0) return 0;
            if (type == 5) return static_cast<double>(above) / static_cast<double>(below);
            const auto as_signed = [](std::uint64_t v) { return static_cast<double>(bits_of<std::int32_t>(static_cast<std::uint32_t>(v))); };
            return as_signed(above) / as_signed(below);
        }
        default: return 0;
    }
}

/// The value of the orientation's tag in the first directory, or nothing where it has none. Reading ends, as Pillow's does,
/// where the directory or a value of it leads beyond the end.
std::optional<double> tag_value(const Tiff& tiff) {
    const std::uint64_t directory = tiff.number(tiff.data.substr(4, 4));
    const auto entries = tiff.part(directory, 2);
    std::uint64_t told = 0;  // bytes that values outside the directory are said to take
    for (std::uint64_t i = 0, count = entries ? tiff.number(*entries) : 0; i < count; ++i) {
        const auto entry = tiff.part(directory + 2 + 12 * i, 12);
        if (!entry) return std::nullopt;
        const std::uint64_t type = tiff.number(entry->substr(2, 2));
        const std::uint64_t size = tiff.number(entry->substr(4, 4)) * size_of(type);
        std::optional<std::string_view> value = entry->substr(8, static_cast<std::size_t>(std::min<std::uint64_t>(size, 4)));
        if (size > 4) {
            told += size;
            if (told > tiff.data.size()) continue;
            value = tiff.part(tiff.number(entry->substr(8, 4)), size);
            if (!value) return std::nullopt;
        }
        if (size > 0 && tiff.number(entry->substr(0, 2)) == orientation_tag) return value_of(tiff, type, *value);
    }
    return std::nullopt;
}

/// What XMP says, as the attribute tiff:Orientation="6" or the element <tiff:Orientation>6.
std::optional<double> in_xmp(std::string_view xmp) {
    constexpr std::string_view name = "tiff:Orientation";
    for (std::size_t at = xmp.find(name); at != std::string_view::npos; at = xmp.find(name, at + 1)) {
        std::string_view rest = xmp.substr(at + name.size());
        if (rest.substr(0, 2) == "=\"") rest.remove_prefix(2);
        else if (rest.substr(0, 1) == ">") rest.remove_prefix(1);
        else continue;
        if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') return rest[0] - '0';
    }
    return std::nullopt;
}

}  // namespace

std::uint8_t orientation_of(std::optional<std::string_view> exif, std::string_view xmp) {
    std::optional<double> value;
    constexpr std::string_view prefix("Exif\0\0", 6);
    for (int i = 0; i < 2 && exif && exif->substr(0, prefix.size()) == prefix; ++i) exif->remove_prefix(prefix.size());
    if (exif && !exif->empty()) {
        const std::string_view magic = exif->substr(0, 4);
        const bool little = magic == std::string_view("II\x2a\0", 4) || magic == std::string_view("II\0\x2a", 4);
        const bool big = magic == std::string_view("MM\0\x2a", 4) || magic == std::string_view("MM\x2a\0", 4);
        if ((!little && !big) || exif->size() < 8) return 1;
        value = tag_value(Tiff{*exif, big});
    }
    if (!value) value = in_xmp(xmp);
    for (std::uint8_t turn = 2; turn <= 8; ++turn)
        if (value == turn) return turn;
    return 1;
}

}  // namespace sit_deploy
