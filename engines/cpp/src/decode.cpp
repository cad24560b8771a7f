// JPEG by libjpeg and PNG by libpng; WebP is in webp.cpp. Both report errors by longjmp, so what they run in holds nothing with a destructor;
// memory and library state belong to objects outside.
#include <algorithm>
#include <charconv>
#include <csetjmp>
#include <cstddef>
#include <cstdio>  // jpeglib.h needs both, and includes neither
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include <jpeglib.h>

#include <jerror.h>
#include <png.h>

#include "boundary.hpp"
#include "exif.hpp"
#include "files.hpp"
#include "limits.hpp"
#include "sit_deploy/error.hpp"
#include "sit_deploy/image.hpp"
#include "webp.hpp"

namespace sit_deploy {
namespace {

constexpr std::uint64_t deflate_ratio = 1032;  // nothing compressed by deflate can become more times as long
// A block of 8 x 8 pixels takes a bit at least, and the component that has most of them at least a quarter of all there can be.
constexpr std::size_t pixels_a_byte = 2048;
constexpr int most_scans = 100;               // of a progressive JPEG; encoders write about ten, and each goes over all pixels

/// The names of what files begin with, for those that are not decoded here: Pillow, and with it the Python side, takes most.
std::string_view foreign_kind(std::string_view start) {
    const auto begins = [&](std::string_view with, std::size_t at = 0) { return start.size() >= at && start.substr(at, with.size()) == with; };
    if (begins("GIF8")) return "GIF";
    if (begins("BM")) return "BMP";
    if (begins({"II*\0", 4}) || begins({"MM\0*", 4})) return "TIFF";
    if (begins("ftypavi", 4)) return "AVIF";
    if (begins("ftyphei", 4) || begins("ftypmif1", 4)) return "HEIF";
    if (begins("P") && start.size() > 2 && start[1] >= '1' && start[1] <= '6' && std::string_view(" \t\r\n#").find(start[2]) != std::string_view::npos)
        return "PPM";
    return {};
}

/// Ink as Adobe writes it, 255 for none, into RGB as Pillow turns it; `pixels` of four bytes each.
void rgb_of_ink(const std::uint8_t* ink, std::size_t pixels, std::uint8_t* rgb) {
    for (std::size_t i = 0; i < pixels; ++i, ink += 4)
        for (std::size_t c = 0; c < 3; ++c) {
            const int light = ink[3], product = (255 - ink[c]) * light + 128;
            *rgb++ = static_cast<std::uint8_t>(std::max(light - ((product >> 8) + product) / 256, 0));
        }
}

class Jpeg {
public:
    Jpeg(const std::uint8_t* data, std::size_t size) : size_(size) {
        info_.err = jpeg_std_error(&errors_.base);
        errors_.base.error_exit = [](j_common_ptr info) {
            auto* errors = reinterpret_cast<Errors*>(info->err);
            errors->base.format_message(info, errors->message);
            std::longjmp(errors->jump, 1);
        };
        errors_.base.emit_message = [](j_common_ptr info, int) {
            // libjpeg would grey out what is missing of a truncated file; other warnings Pillow ignores too
            if (info->err->msg_code == JWRN_JPEG_EOF) info->err->error_exit(info);
        };
        progress_.progress_monitor = [](j_common_ptr info) {
            if (reinterpret_cast<j_decompress_ptr>(info)->input_scan_number <= most_scans) return;
            auto* errors = reinterpret_cast<Errors*>(info->err);
            std::snprintf(errors->message, sizeof errors->message, "more than %d scans", most_scans);
            std::longjmp(errors->jump, 1);
        };
        guarded([&] {
            jpeg_create_decompress(&info_);
            info_.progress = &progress_;
            jpeg_save_markers(&info_, app1, 0xFFFF);  // EXIF and XMP
            jpeg_mem_src(&info_, data, static_cast<unsigned long>(size));
            jpeg_read_header(&info_, TRUE);
        });
    }
    Jpeg(const Jpeg&) = delete;
    Jpeg& operator=(const Jpeg&) = delete;

    Image read() {
        check_size(info_.image_width, info_.image_height);
        // libjpeg takes memory for all pixels at once, and makes what is missing grey
        if (static_cast<std::size_t>(info_.image_width) * info_.image_height / pixels_a_byte > size_)
            throw Error("cannot decode the image (" + std::to_string(size_) + " bytes are too few for its pixels: it is truncated)");
        Image image{info_.image_width, info_.image_height, {}, orientation()};
        guarded([&] {
            info_.out_color_space = info_.num_components == 4 ? JCS_CMYK : JCS_RGB;  // RGB of grey too
            jpeg_start_decompress(&info_);
        });
        // memory becomes real as rows come: a header of a few bytes may promise any number of them
        const std::size_t row = 3 * image.width;
        std::vector<std::uint8_t> ink(info_.num_components == 4 ? 4 * image.width : 0);
        std::uint8_t* const inked = ink.empty() ? nullptr : ink.data();
        image.rgb.reserve(row * image.height);
        while (info_.output_scanline < info_.output_height) {
            const std::size_t before = row * info_.output_scanline, more = std::min<std::size_t>(16, info_.output_height - info_.output_scanline);
            image.rgb.resize(before + more * row);
            std::uint8_t* rgb = image.rgb.data() + before;
            guarded([&] {
                for (std::size_t i = 0; i < more; ++i, rgb += row) {
                    JSAMPROW target = inked ? inked : rgb;
                    jpeg_read_scanlines(&info_, &target, 1);  // from memory it never comes back without a row
                    if (inked) rgb_of_ink(inked, image.width, rgb);
                }
            });
        }
        guarded([&] { jpeg_finish_decompress(&info_); });
        return image;
    }

private:
    /// By the markers before the picture: parts of EXIF are one, and of several XMPs the last counts, as in Pillow.
    [[nodiscard]] std::uint8_t orientation() const {
        constexpr std::string_view exif_mark("Exif\0\0", 6), xmp_mark("http://ns.adobe.com/xap/1.0/\0", 29);
        std::optional<std::string> exif;
        std::string_view xmp;
        for (jpeg_saved_marker_ptr each = info_.marker_list; each; each = each->next) {
            std::string_view data(reinterpret_cast<const char*>(each->data), each->data_length);
            if (data.substr(0, exif_mark.size()) == exif_mark)
                exif = exif ? *exif + std::string(data.substr(exif_mark.size())) : std::string(data);
            else if (data.substr(0, xmp_mark.size()) == xmp_mark)
                xmp = data.substr(xmp_mark.size());
        }
        return orientation_of(exif, xmp);
    }

    struct Errors {
        jpeg_error_mgr base;
        std::jmp_buf jump;
        char message[JMSG_LENGTH_MAX];
    };

    template <class Work>
    void guarded(Work work) {
        if (setjmp(errors_.jump)) throw Error(std::string("cannot decode the image (") + errors_.message + ")");
        work();
    }

    /// A member of its own, so that libjpeg's memory goes where the constructor throws too.
    struct Owned : jpeg_decompress_struct {
        Owned() : jpeg_decompress_struct{} {}
        Owned(const Owned&) = delete;
        Owned& operator=(const Owned&) = delete;
        ~Owned() { jpeg_destroy_decompress(this); }
    };

    static constexpr int app1 = JPEG_APP0 + 1;
    std::size_t size_;
    Owned info_;
    Errors errors_{};
    jpeg_progress_mgr progress_{};
};

class Png {
public:
    Png(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {
        check_chunks(data, size);
        png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, &Png::fail, [](png_structp, png_const_charp) {});
        info_ = png_ ? png_create_info_struct(png_) : nullptr;
        if (!info_) {
            png_destroy_read_struct(&png_, nullptr, nullptr);
            throw Error("libpng cannot start");
        }
        png_set_read_fn(png_, this, &Png::take);
    }
    Png(const Png&) = delete;
    Png& operator=(const Png&) = delete;
    ~Png() { png_destroy_read_struct(&png_, &info_, nullptr); }

    Image read() {
        const std::size_t size = left_;
        guarded([&] {
            png_set_user_limits(png_, PNG_UINT_31_MAX, PNG_UINT_31_MAX);  // a million a side by itself; check_size has ours
            png_set_chunk_cache_max(png_, 32);                            // of texts, each of up to 8 MB
            // EXIF as it stands, which libpng would judge before Pillow's way of reading it does
            png_set_keep_unknown_chunks(png_, PNG_HANDLE_CHUNK_ALWAYS, exif_chunk, 1);
            png_read_info(png_, info_);
        });
        Image image{png_get_image_width(png_, info_), png_get_image_height(png_, info_), {}};
        check_size(image.width, image.height);
        // before memory is taken for what cannot come
        if (image.height * static_cast<std::uint64_t>(png_get_rowbytes(png_, info_)) / deflate_ratio > size)
            throw Error("cannot decode the image (the file is truncated)");
        guarded([&] {
            png_set_strip_16(png_);  // the high byte, as Pillow
            png_set_palette_to_rgb(png_);
            png_set_expand_gray_1_2_4_to_8(png_);
            png_set_gray_to_rgb(png_);
            png_set_strip_alpha(png_);
            png_set_interlace_handling(png_);
            png_read_update_info(png_, info_);
        });
        if (png_get_rowbytes(png_, info_) != 3 * image.width) throw Error("a PNG of a kind unknown here; convert it to RGB");
        image.rgb.resize(3 * image.width * image.height);
        std::vector<png_bytep> rows(image.height);
        for (std::size_t y = 0; y < image.height; ++y) rows[y] = image.rgb.data() + 3 * y * image.width;
        png_bytepp first = rows.data();
        guarded([&] {
            png_read_image(png_, first);
            png_read_end(png_, info_);  // EXIF may stand behind the pixels
        });
        image.orientation = orientation();
        return image;
    }

private:
    static constexpr png_byte exif_chunk[] = {'e', 'X', 'I', 'f', 0};

    /// By the chunk eXIf, by what ImageMagick writes as text in its place, or by XMP, as in Pillow: of each the last counts.
    [[nodiscard]] std::uint8_t orientation() const {
        std::optional<std::string> exif;
        std::string_view profile, xmp;
        png_unknown_chunkp chunks = nullptr;
        for (int i = 0, count = png_get_unknown_chunks(png_, info_, &chunks); i < count; ++i)
            if (std::memcmp(chunks[i].name, exif_chunk, sizeof exif_chunk) == 0)
                exif = std::string(reinterpret_cast<const char*>(chunks[i].data), chunks[i].size);
        png_textp texts = nullptr;
        for (int i = 0, count = png_get_text(png_, info_, &texts, nullptr); i < count; ++i) {
            const std::string_view key(texts[i].key);
            const std::size_t length = texts[i].compression > 0 ? texts[i].itxt_length : texts[i].text_length;
            const std::string_view text(texts[i].text, length);
            if (key == "Raw profile type exif") profile = text;
            if (key == "XML:com.adobe.xmp") xmp = text;
        }
        if (!exif && !profile.empty()) {
            exif = from_hexadecimal(profile);
            if (!exif) return 1;
        }
        return orientation_of(exif, xmp);
    }

    /// The bytes that an ImageMagick profile spells from its fourth line on; nothing where it spells none.
    static std::optional<std::string> from_hexadecimal(std::string_view profile) {
        for (int line = 0; line < 3; ++line) profile.remove_prefix(std::min(profile.find('\n'), profile.size() - 1) + 1);
        std::string digits, out;
        for (const char c : profile)
            if (std::string_view(" \t\n\r\f\v").find(c) == std::string_view::npos) digits += c;
        if (digits.size() % 2 != 0) return std::nullopt;
        for (std::size_t i = 0; i < digits.size(); i += 2) {
            std::uint8_t byte = 0;
            const auto [end, error] = std::from_chars(digits.data() + i, digits.data() + i + 2, byte, 16);
            if (error != std::errc() || end != digits.data() + i + 2) return std::nullopt;
            out += static_cast<char>(byte);
        }
        return out;
    }

    /// Refuse a chunk that leads beyond the file: libpng would take and clear memory for as much as it says, up to 2 GB.
    static void check_chunks(const std::uint8_t* data, std::size_t size) {
        constexpr std::size_t signature = 8, around = 12;  // a chunk's length, name and checksum
        for (std::size_t at = signature; size - at >= around;) {
            const std::uint64_t length = std::uint64_t{data[at]} << 24 | std::uint64_t{data[at + 1]} << 16 | std::uint64_t{data[at + 2]} << 8 | data[at + 3];
            if (length > size - at - around) break;
            if (std::memcmp(data + at + 4, "IEND", 4) == 0) return;
            at += around + static_cast<std::size_t>(length);
        }
        throw Error("cannot decode the image (the file is truncated)");
    }

    static void fail(png_structp png, png_const_charp message) {
        auto* self = static_cast<Png*>(png_get_error_ptr(png));
        std::snprintf(self->message_, sizeof self->message_, "%s", message);
        std::longjmp(self->jump_, 1);
    }

    static void take(png_structp png, png_bytep out, png_size_t size) {
        auto* self = static_cast<Png*>(png_get_io_ptr(png));
        if (size > self->left_) png_error(png, "the file is truncated");
        std::memcpy(out, self->data_, size);
        self->data_ += size;
        self->left_ -= size;
    }

    template <class Work>
    void guarded(Work work) {
        if (setjmp(jump_)) throw Error(std::string("cannot decode the image (") + message_ + ")");
        work();
    }

    png_structp png_ = nullptr;
    png_infop info_ = nullptr;
    const std::uint8_t* data_;
    std::size_t left_;
    std::jmp_buf jump_{};
    char message_[128] = "";
};

}  // namespace

void check_size(std::size_t width, std::size_t height) {
    if (width == 0 || height == 0 || width > limits::pixels / height)
        throw Error("the image is " + std::to_string(width) + " x " + std::to_string(height) + " pixels: too large to trust");
}

Image decode(const std::uint8_t* data, std::size_t size) {
    return at_boundary("decoding an image", [&] {
        constexpr std::uint8_t jpeg[] = {0xFF, 0xD8, 0xFF}, png[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
        if (!data && size > 0) throw Error("no memory is given to decode an image from");
        if (size > limits::image_bytes) throw Error("the file is larger than " + std::to_string(limits::image_bytes) + " bytes: too large to trust");
        if (size > sizeof jpeg && std::memcmp(data, jpeg, sizeof jpeg) == 0) return Jpeg(data, size).read();
        if (size > sizeof png && std::memcmp(data, png, sizeof png) == 0) return Png(data, size).read();
        const std::string_view start(reinterpret_cast<const char*>(data), std::min<std::size_t>(size, 16));
        if (start.substr(0, 4) == "RIFF" && start.size() > 8 && start.substr(8, 4) == "WEBP") return decode_webp(data, size);
        const std::string kind(foreign_kind(start));
        throw Error("no JPEG, PNG or WebP" + (kind.empty() ? "" : " but " + kind) + "; convert it to PNG, or decode it yourself and pass its Pixels");
    });
}

Image load_image(const std::filesystem::path& path) {
    return at_boundary(path.string(), [&] {
        const std::vector<std::uint8_t> data = read_file(path, limits::image_bytes);
        try {
            return decode(data.data(), data.size());
        } catch (const Error& error) {
            throw Error(path.string() + ": " + error.what());
        }
    });
}

}  // namespace sit_deploy
