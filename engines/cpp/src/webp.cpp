#include "webp.hpp"

#include "sit_deploy/error.hpp"

#ifdef SIT_DEPLOY_WEBP

#include <cstring>
#include <memory>
#include <optional>
#include <string_view>

#include <webp/decode.h>
#include <webp/demux.h>

#include "exif.hpp"

namespace sit_deploy {
namespace {

struct Demuxed {
    void operator()(WebPDemuxer* demuxer) const { WebPDemuxDelete(demuxer); }
};
struct Freed {
    void operator()(std::uint8_t* memory) const { WebPFree(memory); }
};

/// The first chunk of a name; empty where there is none.
std::string_view chunk(const WebPDemuxer* demuxer, const char* name) {
    WebPChunkIterator found{};
    std::string_view data;  // of the file, which outlives the iterator
    if (WebPDemuxGetChunk(demuxer, name, 1, &found)) data = {reinterpret_cast<const char*>(found.chunk.bytes), found.chunk.size};
    WebPDemuxReleaseChunkIterator(&found);
    return data;
}

}  // namespace

Image decode_webp(const std::uint8_t* data, std::size_t size) {
    const auto damaged = [] { return Error("cannot decode the image (the WebP is truncated or damaged)"); };
    const WebPData file{data, size};
    const std::unique_ptr<WebPDemuxer, Demuxed> demuxer(WebPDemux(&file));
    if (!demuxer) throw damaged();
    Image image{WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_WIDTH), WebPDemuxGetI(demuxer.get(), WEBP_FF_CANVAS_HEIGHT), {}};
    check_size(image.width, image.height);
    WebPIterator frame{};
    const bool found = WebPDemuxGetFrame(demuxer.get(), 1, &frame) != 0;
    const WebPData coded = frame.fragment;
    const auto x = static_cast<std::size_t>(frame.x_offset), y = static_cast<std::size_t>(frame.y_offset);
    WebPDemuxReleaseIterator(&frame);
    int wide = 0, high = 0;
    // into memory of libwebp's, which becomes real as rows come: a header of a few bytes may promise any number of them
    const std::unique_ptr<std::uint8_t, Freed> rgb(found ? WebPDecodeRGB(coded.bytes, coded.size, &wide, &high) : nullptr);
    const auto width = static_cast<std::size_t>(wide), height = static_cast<std::size_t>(high);
    if (!rgb || x + width > image.width || y + height > image.height) throw damaged();
    image.rgb.resize(3 * image.width * image.height);  // black where the first frame is not
    for (std::size_t row = 0; row < height; ++row)
        std::memcpy(image.rgb.data() + 3 * ((y + row) * image.width + x), rgb.get() + 3 * row * width, 3 * width);
    const std::string_view exif = chunk(demuxer.get(), "EXIF");
    image.orientation = orientation_of(exif.empty() ? std::nullopt : std::optional(exif), chunk(demuxer.get(), "XMP "));
    return image;
}

}  // namespace sit_deploy

#else

namespace sit_deploy {

Image decode_webp(const std::uint8_t*, std::size_t) {
    throw Error("a WebP, and this library was built without libwebp: install it (on Debian or Ubuntu: apt-get install libwebp-dev) and "
                "configure again, or convert the image to PNG");
}

}  // namespace sit_deploy

#endif
