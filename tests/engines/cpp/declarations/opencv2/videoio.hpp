// What docs/cpp.md uses of OpenCV's cameras, to be compiled and not to be linked.
#pragma once

#include <opencv2/core.hpp>

namespace cv {

class VideoCapture {
public:
    explicit VideoCapture(int device);
    bool read(Mat& frame);
};

}  // namespace cv
