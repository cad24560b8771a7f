// What is used of cv::Mat, for machines without OpenCV: views of memory of the caller's, and parts of them, with the members that
// OpenCV gives them.
#pragma once

#include <cstddef>

#define CV_8U 0
#define CV_16U 2
#define CV_MAKETYPE(depth, channels) ((depth) + (((channels) - 1) << 3))
#define CV_8UC1 CV_MAKETYPE(CV_8U, 1)
#define CV_8UC2 CV_MAKETYPE(CV_8U, 2)
#define CV_8UC3 CV_MAKETYPE(CV_8U, 3)
#define CV_8UC4 CV_MAKETYPE(CV_8U, 4)
#define CV_16UC3 CV_MAKETYPE(CV_16U, 3)

namespace cv {

struct Rect {
    int x, y, width, height;
    Rect(int left, int top, int wide, int high) : x(left), y(top), width(wide), height(high) {}
};

struct MatStep {
    std::size_t bytes = 0;
    operator std::size_t() const { return bytes; }
};

class Mat {
public:
    int dims = 0, rows = 0, cols = 0;
    unsigned char* data = nullptr;
    const unsigned char* dataend = nullptr;  // behind the last pixel of the whole, of a part too
    MatStep step;

    Mat() = default;
    Mat(int high, int wide, int type, void* memory, std::size_t row = 0)
        : dims(2), rows(high), cols(wide), data(static_cast<unsigned char*>(memory)), type_(type) {
        const std::size_t least = static_cast<std::size_t>(wide) * pixel();
        step.bytes = row ? row : least;
        dataend = data + static_cast<std::size_t>(high - 1) * step + least;
    }
    Mat(int count, const int* sizes, int type, void* memory) : dims(count), rows(-1), cols(-1), data(static_cast<unsigned char*>(memory)), type_(type) {
        std::size_t bytes = pixel();
        for (int i = 0; i < count; ++i) bytes *= static_cast<std::size_t>(sizes[i]);
        dataend = data + bytes;
    }

    [[nodiscard]] bool empty() const { return data == nullptr; }
    [[nodiscard]] int depth() const { return type_ & 7; }
    [[nodiscard]] int channels() const { return (type_ >> 3) + 1; }
    [[nodiscard]] Mat operator()(const Rect& part) const {
        Mat out = *this;
        out.data += static_cast<std::size_t>(part.y) * step + static_cast<std::size_t>(part.x) * pixel();
        out.rows = part.height;
        out.cols = part.width;
        return out;
    }

private:
    [[nodiscard]] std::size_t pixel() const { return static_cast<std::size_t>(channels()) * (depth() == CV_16U ? 2 : 1); }

    int type_ = 0;
};

}  // namespace cv
