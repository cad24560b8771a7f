// JPEG by libjpeg and PNG by libpng. Both report errors by longjmp, so what they run in holds nothing with a destructor;
// memory and library state belong to objects outside.
#include <csetjmp>
#include <cstddef>
#include <cstdio>  // jpeglib.h needs both, and includes neither
#include <cstring>

#include <jpeglib.h>

#include <jerror.h>
#include <png.h>

#include "files.hpp"
#include "sit_deploy/error.hpp"
#include "sit_deploy/image.hpp"

namespace sit_deploy {
namespace {

constexpr std::size_t most_pixels = 178956970;  // where Pillow takes a file for a decompression bomb

void check_size(std::size_t width, std::size_t height) {
    if (width == 0 || height == 0 || width > most_pixels / height)
        throw Error("the image is " + std::to_string(width) + " x " + std::to_string(height) + " pixels: too large to trust");
}

class Jpeg {
public:
    Jpeg(const std::uint8_t* data, std::size_t size) {
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
        guarded([&] {
            jpeg_create_decompress(&info_);
            jpeg_mem_src(&info_, data, static_cast<unsigned long>(size));
            jpeg_read_header(&info_, TRUE);
        });
    }
    Jpeg(const Jpeg&) = delete;
    Jpeg& operator=(const Jpeg&) = delete;

    Image read() {
        check_size(info_.image_width, info_.image_height);
        if (info_.num_components == 4) throw Error("a CMYK image; convert it to RGB");
        Image image{info_.image_width, info_.image_height, {}};
        image.rgb.resize(3 * image.width * image.height);
        std::uint8_t* rgb = image.rgb.data();
        guarded([&] {
            info_.out_color_space = JCS_RGB;  // of grey too
            jpeg_start_decompress(&info_);
            while (info_.output_scanline < info_.output_height) {
                JSAMPROW row = rgb + 3 * static_cast<std::size_t>(info_.output_scanline) * info_.output_width;
                jpeg_read_scanlines(&info_, &row, 1);
            }
            jpeg_finish_decompress(&info_);
        });
        return image;
    }

private:
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

    Owned info_;
    Errors errors_{};
};

class Png {
public:
    Png(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {
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
        guarded([&] { png_read_info(png_, info_); });
        Image image{png_get_image_width(png_, info_), png_get_image_height(png_, info_), {}};
        check_size(image.width, image.height);
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
            png_read_end(png_, nullptr);
        });
        return image;
    }

private:
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

Image decode(const std::uint8_t* data, std::size_t size) {
    constexpr std::uint8_t jpeg[] = {0xFF, 0xD8, 0xFF}, png[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'};
    if (size > sizeof jpeg && std::memcmp(data, jpeg, sizeof jpeg) == 0) return Jpeg(data, size).read();
    if (size > sizeof png && std::memcmp(data, png, sizeof png) == 0) return Png(data, size).read();
    throw Error("neither JPEG nor PNG; convert it");
}

Image load_image(const std::filesystem::path& path) {
    const std::vector<std::uint8_t> data = read_file(path);
    try {
        return decode(data.data(), data.size());
    } catch (const Error& error) {
        throw Error(path.string() + ": " + error.what());
    }
}

}  // namespace sit_deploy
